"""Reads what is published, through the API."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal
from uuid import UUID

from supabase import Client

from mf.errors import SupabaseError
from mf.supabase.client import call

Id = int | str | UUID


def recommend_movies(
    client: Client, for_user: Id, k: int = 10, exclude_rated: bool = False
) -> list[tuple[int | str, float]]:
    """The ``k`` movies (1000 at most) with the highest predicted rating for a user, best first, as (movie id, predicted
    rating in stars, clipped to the range of the ratings). A user whom the published run does not know gets what the
    model says of an unseen one. Nothing when no run is published.

    Args:
        exclude_rated: leave out what the user has rated; the migration must know the table of ratings.

    Raises:
        SupabaseError: the API refused, or the id is not of the database's type.
    """
    arguments = {"for_user": _json(for_user), "k": k, "exclude_rated": exclude_rated}
    rows = call(client.rpc("recommend_movies", arguments), f"recommend movies for user {for_user}")
    return [(row["movie_id"], row["predicted_rating"]) for row in rows]


def recommend_from_ratings(client: Client, ratings: Mapping[Id, float], k: int = 10) -> list[tuple[int | str, float]]:
    """As ``recommend_movies``, for somebody who gave ``ratings`` (1000 at most, in stars, by movie id), without those.
    Movies that the published run does not know are passed over.

    Raises:
        SupabaseError: the API refused, an id is not of the database's type, or the published run was exported before
            the migration had this function.
    """
    given = [{"movie_id": _json(movie), "rating": rating} for movie, rating in ratings.items()]
    rows = call(client.rpc("recommend_from_ratings", {"ratings": given, "k": k}), "recommend movies from ratings")
    return [(row["movie_id"], row["predicted_rating"]) for row in rows]


def similar_movies(client: Client, for_movie: Id, k: int = 10) -> list[tuple[int | str, float]]:
    """The ``k`` movies (1000 at most) nearest to a movie, nearest first, as (movie id, cosine of the two embeddings).
    Nothing for a movie that the published run does not know.

    Raises:
        SupabaseError: the API refused, or the id is not of the database's type.
    """
    rows = call(client.rpc("similar_movies", {"for_movie": _json(for_movie), "k": k}), f"find movies like {for_movie}")
    return [(row["movie_id"], row["similarity"]) for row in rows]


def published_run(client: Client) -> dict[str, Any] | None:
    """The row of ``mf_runs`` that readers see now (run_id, factors, mu, rating_min, rating_max, n_users, n_movies,
    created_at, published_at, …), ``None`` when nothing is published.

    Raises:
        SupabaseError: the API refused.
    """
    rows = call(client.table("mf_runs").select("*").eq("status", "published"), "read the published run")
    return rows[0] if rows else None


def pages(client: Client, side: Literal["user", "movie"], run_id: str) -> Iterator[list[dict[str, Any]]]:
    """All embeddings of one run, as rows of ``user_id`` or ``movie_id``, ``bias`` and ``embedding``, page by page in
    the order of the ids; for the service role. What is published meanwhile does not show. A run is kept until the
    second publish after its own.

    Raises:
        SupabaseError: the run is not in the database, or was removed before the last page; or the API refused.
    """
    run = call(client.table("mf_runs").select(f"n_{side}s").eq("run_id", run_id), f"look for run {run_id}")
    missing = run[0][f"n_{side}s"] if run else 0
    key, last = f"{side}_id", None
    while missing:
        query = client.table(f"mf_{side}_embeddings").select(f"{key},bias,embedding").eq("run_id", run_id).order(key)
        rows = call(query if last is None else query.gt(key, last), f"read the {side}s of run {run_id}")
        if not rows:
            break
        yield rows
        last, missing = rows[-1][key], missing - len(rows)
    if not run or missing:
        raise SupabaseError(
            f"run {run_id} is not, or no longer, whole in the database: begin anew with the published one"
        )


def _json(value: Id) -> int | str:
    return str(value) if isinstance(value, UUID) else value
