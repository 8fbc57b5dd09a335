"""Fill a database of the embedded Supabase from a CSV file: tables of ratings and movies, and users who can sign in."""

import json
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from mf.errors import ConfigError
from mf.local.auth import password_hash
from mf.local.stack import LocalSupabase
from mf.ratings import csv
from mf.ratings.collect import Collector
from mf.ratings.config import IngestConfig
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER, id_type, read_ratings
from mf.ratings.titles import titles_beside

PASSWORD = "password"  # noqa: S105 (of made-up users, on this machine)
NAMESPACE = uuid.UUID("6b1f2f0e-5d0b-4f3c-9a61-0d3c2f7c6c52")
# As docs/supabase.md creates them.
CREATE = """
create table if not exists public.movies (
  movie_id {movie} primary key,
  title    text not null,
  genre    text,
  in_stock boolean not null default true
);
create table if not exists public.ratings (
  user_id  uuid not null references auth.users on delete cascade,
  movie_id {movie} not null,
  rating   real not null,
  rated_at timestamptz not null default now(),
  primary key (user_id, movie_id)
);
alter table public.movies enable row level security;
alter table public.ratings enable row level security;
grant select on public.movies to anon, authenticated, service_role;
grant select, insert, update, delete on public.ratings to authenticated;
grant select on public.ratings to service_role;
drop policy if exists "movies are public" on public.movies;
create policy "movies are public" on public.movies for select to anon, authenticated using (true);
drop policy if exists "own ratings" on public.ratings;
create policy "own ratings" on public.ratings for all to authenticated
  using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
"""


def user_uuid(user: Any) -> uuid.UUID:
    """The id of a file's user: the same if it is a UUID, else one derived from it."""
    try:
        return uuid.UUID(str(user))
    except ValueError:
        return uuid.uuid5(NAMESPACE, str(user))


def seed(supabase: LocalSupabase, ratings_csv: Path) -> str:
    """Fill ``public.ratings`` and ``public.movies`` and ``auth.users``, and return a report.

    Every user of the file becomes a user ``user<id>@example.com`` with the password ``PASSWORD``. Nothing is done if
    the database has ratings already.

    Args:
        supabase: a running project.
        ratings_csv: ratings, with titles in the ``movies.csv`` beside it.

    Raises:
        ConfigError: there is no such file.
        DataError: the file cannot be read, or it has too many bad rows.
    """
    if not ratings_csv.is_file():
        raise ConfigError(f"{ratings_csv}: no such file, expected a file of ratings")
    with supabase.connect() as connection:
        if rows := _rows(connection):
            return (
                f"the table ratings of the database {supabase.database} has {rows:,} rows: {ratings_csv} was not read"
            )
    with tempfile.TemporaryDirectory() as work:
        config = IngestConfig.of(ratings_csv=str(ratings_csv))
        sink = Collector(config.ratings_csv, config.max_reject_fraction)
        columns = csv.read(config, sink)
        provenance = sink.finish(Path(work) / "ratings.parquet", Path(work) / "rejects.csv", columns)
        ratings, _ = read_ratings(Path(work) / "ratings.parquet")
    ids = {user: user_uuid(user) for user in ratings[USER].unique().to_pylist()}
    titles = titles_beside(str(ratings_csv))
    names = [USER, MOVIE, RATING, *([RATED_AT] if RATED_AT in ratings.column_names else [])]
    with supabase.connect() as connection, connection.transaction():
        connection.execute(sql.SQL(CREATE).format(movie=sql.SQL(id_type(ratings[MOVIE]))))
        hashed, provider = password_hash(PASSWORD), json.dumps({"provider": "email", "providers": ["email"]})
        _copy(
            connection, "auth.users", ["id", "email", "encrypted_password", "raw_app_meta_data"],
            ((new, f"user{old}@example.com".lower(), hashed, provider) for old, new in ids.items()),
        )  # fmt: skip
        rows_of = (row for batch in ratings.to_batches(max_chunksize=10_000) for row in batch.to_pylist())
        _copy(connection, "public.ratings", names, ([ids[row[USER]], *(row[n] for n in names[1:])] for row in rows_of))
        known = [(movie, titles.get(str(movie), str(movie))) for movie in ratings[MOVIE].unique().to_pylist()]
        _copy(connection, "public.movies", ["movie_id", "title"], known)
    example = f"user{next(iter(ids))}@example.com".lower()
    return f"{provenance.summary()}\n{len(ids):,} users can sign in, such as {example} with the password {PASSWORD}"


def _rows(connection: psycopg.Connection[Any]) -> int:
    if connection.execute("select to_regclass('public.ratings')").fetchone() == (None,):
        return 0
    row = connection.execute("select count(*) from public.ratings").fetchone()
    return int(row[0]) if row else 0


def _copy(
    connection: psycopg.Connection[Any], table: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]
) -> None:
    into = sql.SQL("copy {} ({}) from stdin").format(
        sql.Identifier(*table.split(".")), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor().copy(into) as copy:
        for row in rows:
            copy.write_row(list(row))
