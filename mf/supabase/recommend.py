"""Recommendations and embeddings of the published run, read through the REST API."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from supabase import Client

from mf.supabase.client import call
from mf.supabase.run_tables import MOVIES, READ_RUN, USERS, Entity, RunTable, incomplete

Id = int | str | UUID
Page = list[dict[str, Any]]


class Recommendation(NamedTuple):
    """One movie of a list."""

    movie_id: int | str
    score: float  # of the ranking model; of a run without one the predicted rating before clipping
    predicted_rating: float | None  # in stars, clipped to the range of the ratings; None of a run of clicks
    because: int | str | None  # the rated movie that speaks most for it; None: no ratings are known
    run_id: str


class Similar(NamedTuple):
    """A movie similar to another."""

    movie_id: int | str
    similarity: float  # cosine
    run_id: str


class Popular(NamedTuple):
    """A movie and its number of ratings."""

    movie_id: int | str
    ratings: int  # that the run was trained on
    run_id: str


def recommend_movies(
    client: Client,
    for_user: Id,
    k: int = 10,
    exclude_rated: bool | None = None,
    *,
    without_ids: Sequence[Id] = (),
    only_ids: Sequence[Id] | None = None,
    skip: int = 0,
    of_run: str | None = None,
    filters: Mapping[str, Any] | None = None,
) -> list[Recommendation]:
    """The ``k`` movies with the highest ranking score for a user, best first.

    Args:
        exclude_rated: leave out movies that the user has rated; ``None``: where the migration knows the ratings table.
        without_ids: movies to leave out, at most 10,000.
        only_ids: the movies to choose from, at most 10,000.
        skip: movies to pass over, for the next page; ``k + skip`` is at most 1000.
        of_run: the run to read; ``None``: the published one.
        filters: values by column of the migration's ``--items_filter``; only movies that have them all are listed.

    Returns:
        A user unknown to the run gets the most popular movies. Empty when no run is published.

    Raises:
        SupabaseError: the API refused, or an id is not of the database's type.
    """
    arguments = {"for_user": _json(for_user), "k": k, "exclude_rated": exclude_rated}
    arguments |= _choice(without_ids, only_ids, skip, of_run) | dict(filters or {})
    rows = call(client.rpc("recommend_movies", arguments), f"recommend movies for user {for_user}")
    return [Recommendation(**row) for row in rows]


def recommend_from_ratings(
    client: Client,
    ratings: Mapping[Id, float | None],
    k: int = 10,
    *,
    without_ids: Sequence[Id] = (),
    only_ids: Sequence[Id] | None = None,
    skip: int = 0,
    of_run: str | None = None,
    filters: Mapping[str, Any] | None = None,
) -> list[Recommendation]:
    """Recommendations for a new user with these ``ratings``.

    Args:
        ratings: at most 1000, in stars, by movie id; movies unknown to the run are ignored. For a run of clicks None:
            only the movies count.
        without_ids, only_ids, skip, of_run, filters: as for ``recommend_movies``.

    Returns:
        As ``recommend_movies``, without the rated movies.

    Raises:
        SupabaseError: the API refused, an id is not of the database's type, or the published run was exported before
            the migration had this function.
    """
    entries = [{"movie_id": _json(movie), "rating": rating} for movie, rating in ratings.items()]
    arguments = {"ratings": entries, "k": k} | _choice(without_ids, only_ids, skip, of_run) | dict(filters or {})
    rows = call(client.rpc("recommend_from_ratings", arguments), "recommend movies from ratings")
    return [Recommendation(**row) for row in rows]


def similar_movies(
    client: Client,
    for_movie: Id,
    k: int = 10,
    *,
    without_ids: Sequence[Id] = (),
    only_ids: Sequence[Id] | None = None,
    filters: Mapping[str, Any] | None = None,
) -> list[Similar]:
    """The ``k`` movies (at most 1000) most similar to a movie, most similar first.

    Args:
        without_ids, only_ids, filters: as for ``recommend_movies``.

    Returns:
        Empty for a movie unknown to the published run.

    Raises:
        SupabaseError: the API refused, or an id is not of the database's type.
    """
    arguments = {"for_movie": _json(for_movie), "k": k} | _ids(without_ids, only_ids) | dict(filters or {})
    rows = call(client.rpc("similar_movies", arguments), f"find movies like {for_movie}")
    return [Similar(**row) for row in rows]


def popular_movies(
    client: Client, k: int = 10, *, skip: int = 0, filters: Mapping[str, Any] | None = None
) -> list[Popular]:
    """The ``k`` movies with the most ratings in the published run, most ratings first.

    Args:
        skip: movies to pass over, for the next page; ``k + skip`` is at most 1000.
        filters: as for ``recommend_movies``.

    Raises:
        SupabaseError: the API refused, or the run was exported before the migration had this function.
    """
    rows = call(client.rpc("popular_movies", {"k": k, "skip": skip} | dict(filters or {})), "read popular movies")
    return [Popular(**row) for row in rows]


def forget_user(client: Client, user: Id) -> int:
    """Remove a user from all runs, for good; needs the secret key. See docs/erasure.md.

    Returns:
        The number of removed rows.

    Raises:
        SupabaseError: the API refused, or the id is not of the database's type.
    """
    return int(call(client.rpc("mf_forget_user", {"forget": _json(user)}), "forget a user")["rows"])


def _choice(without_ids: Sequence[Id], only_ids: Sequence[Id] | None, skip: int, of_run: str | None) -> dict[str, Any]:
    return _ids(without_ids, only_ids) | {"skip": skip, "of_run": of_run}


def _ids(without_ids: Sequence[Id], only_ids: Sequence[Id] | None) -> dict[str, Any]:
    only = None if only_ids is None else [_json(movie) for movie in only_ids]
    return {"without_ids": [_json(movie) for movie in without_ids], "only_ids": only}


def published_run(client: Client) -> dict[str, Any] | None:
    """The row of ``mf_runs`` of the published run, ``None`` when no run is published.

    Its columns: run_id, factors, mu, rating_min, rating_max, n_users, n_movies, created_at, published_at, ….

    Raises:
        SupabaseError: the API refused.
    """
    rows = call(client.table("mf_runs").select("*").eq("status", "published"), READ_RUN)
    return rows[0] if rows else None


def pages(client: Client, entity: Entity, run_id: str) -> Iterator[Page]:
    """All user or movie embeddings of one run, page by page; needs the secret key.

    A run is kept until the second publish after its own, so a publish in between does not change the pages.

    Returns:
        Rows of ``user_id`` or ``movie_id``, ``bias`` and ``embedding`` (JSON text), ordered by id; both are None in a
        run of clicks.

    Raises:
        SupabaseError: the run is not in the database, or was removed before the last page; or the API refused.
    """
    run = call(client.table("mf_runs").select(f"n_{entity}s").eq("run_id", run_id), f"look for run {run_id}")
    if not run:
        raise incomplete(run_id)
    yield from table_pages(client, USERS if entity == "user" else MOVIES, run_id, run[0][f"n_{entity}s"])


def table_pages(client: Client, table: RunTable, run_id: str, n: int) -> Iterator[Page]:
    """The ``n`` rows of a run in one table, page by page, ordered by id; fewer if users have been forgotten since.

    Raises:
        SupabaseError: rows are missing, or the API refused.
    """
    last, missing = None, n
    columns = ",".join((table.key, *table.columns))
    while missing:
        query = client.table(table.name).select(columns).eq("run_id", run_id).order(table.key)
        rows = call(query if last is None else query.gt(table.key, last), f"read the {table.label} of run {run_id}")
        if not rows:
            query = client.table("mf_runs").select(f"n:{'->>'.join(table.counted)}").eq("run_id", run_id)
            now = call(query, f"look for run {run_id}")
            if not now or n - missing < int(now[0]["n"]):
                raise incomplete(run_id)
            return
        yield rows
        last, missing = rows[-1][table.key], missing - len(rows)


def _json(value: Id) -> int | str:
    return str(value) if isinstance(value, UUID) else value
