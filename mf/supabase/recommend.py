"""Reads what is published, through the API."""

from typing import Any
from uuid import UUID

from supabase import Client

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


def _json(value: Id) -> int | str:
    return str(value) if isinstance(value, UUID) else value
