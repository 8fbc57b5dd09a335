"""Recommendations and embeddings of the published run, read through the REST API."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal
from uuid import UUID

from supabase import Client

from mf.errors import SupabaseError
from mf.supabase.client import call

Id = int | str | UUID
Entity = Literal["user", "movie"]

READ_RUN = "read the published run"


def recommend_movies(
    client: Client, for_user: Id, k: int = 10, exclude_rated: bool = False
) -> list[tuple[int | str, float]]:
    """The ``k`` movies (at most 1000) with the highest predicted rating for a user.

    Args:
        exclude_rated: leave out movies that the user has rated; needs a migration with ``--ratings_table``.

    Returns:
        (movie id, predicted rating in stars, clipped to the range of the ratings), best first. A user unknown to the
        published run gets the predictions for an unseen user. Empty when no run is published.

    Raises:
        SupabaseError: the API refused, or the id is not of the database's type.
    """
    arguments = {"for_user": _json(for_user), "k": k, "exclude_rated": exclude_rated}
    rows = call(client.rpc("recommend_movies", arguments), f"recommend movies for user {for_user}")
    return [(row["movie_id"], row["predicted_rating"]) for row in rows]


def recommend_from_ratings(client: Client, ratings: Mapping[Id, float], k: int = 10) -> list[tuple[int | str, float]]:
    """Recommendations for a new user with these ``ratings``.

    Args:
        ratings: at most 1000, in stars, by movie id; movies unknown to the published run are ignored.

    Returns:
        As ``recommend_movies``, without the rated movies.

    Raises:
        SupabaseError: the API refused, an id is not of the database's type, or the published run was exported before
            the migration had this function.
    """
    entries = [{"movie_id": _json(movie), "rating": rating} for movie, rating in ratings.items()]
    rows = call(client.rpc("recommend_from_ratings", {"ratings": entries, "k": k}), "recommend movies from ratings")
    return [(row["movie_id"], row["predicted_rating"]) for row in rows]


def similar_movies(client: Client, for_movie: Id, k: int = 10) -> list[tuple[int | str, float]]:
    """The ``k`` movies (at most 1000) most similar to a movie.

    Returns:
        (movie id, cosine similarity of the embeddings), most similar first. Empty for a movie unknown to the published
        run.

    Raises:
        SupabaseError: the API refused, or the id is not of the database's type.
    """
    rows = call(client.rpc("similar_movies", {"for_movie": _json(for_movie), "k": k}), f"find movies like {for_movie}")
    return [(row["movie_id"], row["similarity"]) for row in rows]


def published_run(client: Client) -> dict[str, Any] | None:
    """The row of ``mf_runs`` of the published run, ``None`` when no run is published.

    Its columns: run_id, factors, mu, rating_min, rating_max, n_users, n_movies, created_at, published_at, ….

    Raises:
        SupabaseError: the API refused.
    """
    rows = call(client.table("mf_runs").select("*").eq("status", "published"), READ_RUN)
    return rows[0] if rows else None


def pages(client: Client, entity: Entity, run_id: str) -> Iterator[list[dict[str, Any]]]:
    """All user or movie embeddings of one run, page by page; needs the secret key.

    A run is kept until the second publish after its own, so a publish in between does not change the pages.

    Returns:
        Rows of ``user_id`` or ``movie_id``, ``bias`` and ``embedding`` (JSON text), ordered by id.

    Raises:
        SupabaseError: the run is not in the database, or was removed before the last page; or the API refused.
    """
    run = call(client.table("mf_runs").select(f"n_{entity}s").eq("run_id", run_id), f"look for run {run_id}")
    missing = run[0][f"n_{entity}s"] if run else 0
    key, last = f"{entity}_id", None
    while missing:
        query = client.table(f"mf_{entity}_embeddings").select(f"{key},bias,embedding").eq("run_id", run_id).order(key)
        rows = call(query if last is None else query.gt(key, last), f"read the {entity}s of run {run_id}")
        if not rows:
            break
        yield rows
        last, missing = rows[-1][key], missing - len(rows)
    if not run or missing:
        raise incomplete(run_id)


def incomplete(run_id: str) -> SupabaseError:
    """The error for a run that is missing rows."""
    return SupabaseError(
        f"run {run_id} is not, or no longer, complete in the database: start again with the published run"
    )


def _json(value: Id) -> int | str:
    return str(value) if isinstance(value, UUID) else value
