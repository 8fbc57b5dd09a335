"""Fills a table of the embedded Supabase with ratings."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from mf.ingest import ingest
from mf.local import LocalSupabase, recreate_database
from mf.ratings.config import IngestConfig
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER, id_type, read_ratings
from mf.ratings.titles import movies_beside
from mf.sample import write_sample
from pipelines.laptop.sources import check_table_name, ingest_parameters


def seed_table(name: str, path: Path | None, parameters: Mapping[str, Any], home: Path) -> str:
    """Recreates a table of ratings in the embedded Supabase, from a file or the sample, and returns a report.

    The table has a database of its own, with a table ``movies`` of the titles.

    Args:
        name: of the table.
        path: file of ratings; ``None``: the sample.
        parameters: of the pipeline; those of ingest say how the file is read.
        home: folder of the databases.

    Raises:
        ConfigError: the table cannot have this name, or the file is invalid.
    """
    path = path or write_sample(home / "sample").ratings_csv
    name = check_table_name(name)
    config = IngestConfig.of(**ingest_parameters(parameters), ratings_csv=str(path))
    with tempfile.TemporaryDirectory() as work:
        provenance = ingest(config, Path(work) / "ratings.parquet", Path(work) / "rejects.csv")
        ratings, _ = read_ratings(Path(work) / "ratings.parquet")
    types = {USER: id_type(ratings[USER]), MOVIE: id_type(ratings[MOVIE]), RATING: "real", RATED_AT: "timestamptz"}
    columns = [sql.SQL("{} {}").format(sql.Identifier(c), sql.SQL(types[c])) for c in ratings.column_names]
    movies = movies_beside(str(path))
    database = f"table_{name}"
    recreate_database(home / "supabase", database)
    with (
        LocalSupabase(home / "supabase", database) as supabase,
        supabase.connect() as connection,
        connection.transaction(),
    ):
        create = sql.SQL(
            "create table public.{table} ({columns}, primary key (user_id, movie_id));"
            "alter table public.{table} enable row level security;"
            "grant select on public.{table} to service_role;"
            "create table public.movies (movie_id text primary key, title text not null, genres text[]);"
            "alter table public.movies enable row level security;"
            "grant select on public.movies to service_role"
        )
        connection.execute(create.format(table=sql.Identifier(name), columns=sql.SQL(", ").join(columns)))
        rows = (row.values() for batch in ratings.to_batches(max_chunksize=10_000) for row in batch.to_pylist())
        _copy(connection, name, ratings.column_names, rows)
        titles = ((movie, found.title, list(found.genres)) for movie, found in movies.items())
        _copy(connection, "movies", ["movie_id", "title", "genres"], titles)
    return f"{provenance.summary()}\nthe table {name} holds these ratings now: make run IMPORT_TABLE={name}"


def _copy(
    connection: psycopg.Connection[Any], table: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]
) -> None:
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    into = sql.SQL("copy public.{} ({}) from stdin").format(sql.Identifier(table), names)
    with connection.cursor().copy(into) as copy:
        for row in rows:
            copy.write_row(list(row))
