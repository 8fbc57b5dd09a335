"""What the pipeline can run on here: the sample, a file, a table of the embedded Supabase. Each has a local database of
its own, so that ids and their types never collide."""

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from mf.errors import ConfigError
from mf.ingest import ingest
from mf.local import LocalSupabase, databases, recreate_database
from mf.ratings.config import IngestConfig
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER, id_type, read_ratings
from mf.ratings.titles import titles_beside
from mf.sample import write_sample
from mf.supabase.config import SchemaConfig

# What PostgreSQL calls the types that ids come in, and what the migration calls them.
ID_TYPES = {"smallint": "bigint", "integer": "bigint", "bigint": "bigint", "uuid": "uuid"}

Schema = Callable[[LocalSupabase], SchemaConfig]
Titles = Callable[[LocalSupabase], Mapping[str, str]]


@dataclass(frozen=True)
class Source:
    """Ratings, and the local database that is theirs alone."""

    database: str
    parameters: dict[str, Any]  # of the pipeline
    schema: Schema  # what the database's migration is to be made for
    titles: Titles  # movie id, as text, to title
    noise_floor: float | None = None  # the best RMSE that anything can reach, where that is known


def sample(home: Path) -> Source:
    """The project's own sample, made anew."""
    made = write_sample(home / "sample")
    return Source(
        "sample",
        {"ratings_csv": str(made.ratings_csv)},
        lambda _: SchemaConfig(user_id_type="uuid", movie_id_type="bigint"),
        lambda _: titles_beside(str(made.ratings_csv)),
        made.noise_floor,
    )


def file(path: Path, parameters: Mapping[str, Any]) -> Source:
    """A file of ratings; the same content read in the same way has the same database."""
    if str(path).startswith("gs:/"):
        raise ConfigError(f"{path}: a run on this machine reads a file of its own; fetch it first: gcloud storage cp")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, expected a file of ratings")
    reading = _reading(parameters)
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256")
    digest.update(repr(sorted(reading.items())).encode())
    config = IngestConfig.of(**reading, ratings_csv=str(path))
    return Source(
        f"csv_{digest.hexdigest()[:12]}",
        {"ratings_csv": str(path)},
        lambda supabase: _made_before(supabase) or _schema_of_file(config),
        lambda _: titles_beside(str(path)),
    )


def table(name: str, parameters: Mapping[str, Any], home: Path) -> Source:
    """A table of the embedded Supabase, filled by ``seed``."""
    name = _table_name(name)
    database = f"table_{name}"
    if database not in databases(home / "supabase"):
        raise ConfigError(f"the embedded Supabase has no table {name}: make one with `make seed-table`")
    config = IngestConfig.of(**_reading(parameters), import_table=name)
    return Source(database, {"import_table": name}, lambda supabase: _schema_of_table(supabase, config), _titles_in)


def seed(name: str, path: Path | None, parameters: Mapping[str, Any], home: Path) -> str:
    """Makes the table ``name`` of the embedded Supabase anew, from a file or from the sample; says what it did."""
    path = path or write_sample(home / "sample").ratings_csv
    name = _table_name(name)
    config = IngestConfig.of(**_reading(parameters), ratings_csv=str(path))
    with tempfile.TemporaryDirectory() as work:
        provenance = ingest(config, Path(work) / "ratings.parquet", Path(work) / "rejects.csv")
        ratings, _ = read_ratings(Path(work) / "ratings.parquet")
    types = {USER: id_type(ratings[USER]), MOVIE: id_type(ratings[MOVIE]), RATING: "real", RATED_AT: "timestamptz"}
    columns = [sql.SQL("{} {}").format(sql.Identifier(c), sql.SQL(types[c])) for c in ratings.column_names]
    titles = titles_beside(str(path))
    database = f"table_{name}"
    recreate_database(home / "supabase", database)
    with (
        LocalSupabase(home / "supabase", database) as supabase,
        supabase.connect() as connection,
        connection.transaction(),
    ):
        make = sql.SQL(
            "create table public.{table} ({columns}, primary key (user_id, movie_id));"
            "alter table public.{table} enable row level security;"
            "grant select on public.{table} to service_role;"
            "create table public.movies (movie_id text primary key, title text not null);"
            "alter table public.movies enable row level security"
        )
        connection.execute(make.format(table=sql.Identifier(name), columns=sql.SQL(", ").join(columns)))
        rows = (row.values() for batch in ratings.to_batches(max_chunksize=10_000) for row in batch.to_pylist())
        _copy(connection, name, ratings.column_names, rows)
        _copy(connection, "movies", ["movie_id", "title"], titles.items())
    return f"{provenance.summary()}\nthey are the rows of the table {name} now: make run IMPORT_TABLE={name}"


def _copy(
    connection: psycopg.Connection[Any], table: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]
) -> None:
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    into = sql.SQL("copy public.{} ({}) from stdin").format(sql.Identifier(table), names)
    with connection.cursor().copy(into) as copy:
        for row in rows:
            copy.write_row(list(row))


def _reading(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the pipeline's parameters that say how ratings are read."""
    return {name: value for name, value in parameters.items() if name in IngestConfig.model_fields}


def _table_name(name: str) -> str:
    name = name.removeprefix("public.")
    if not re.fullmatch("[a-z][a-z0-9_]{0,39}", name) or name == "movies" or name.startswith("mf_"):
        raise ConfigError(
            f"a table of the embedded Supabase cannot be called {name!r}: expected a-z, 0-9 and _, 40 letters at most; "
            "movies and mf_… are taken"
        )
    return name


def _made_before(supabase: LocalSupabase) -> SchemaConfig | None:
    """For which ids the database's migration was made, when it has one."""
    with supabase.connect() as connection:
        if connection.execute("select to_regproc('public.mf_schema')").fetchone() == (None,):
            return None
        row = connection.execute("select public.mf_schema()").fetchone()
        return SchemaConfig.of(**{k: row[0][k] for k in ("user_id_type", "movie_id_type")}) if row else None


def _schema_of_file(config: IngestConfig) -> SchemaConfig:
    """The types of its ids, which the whole file decides: it is read once more, before the pipeline does."""
    with tempfile.TemporaryDirectory() as work:
        ingest(config, Path(work) / "ratings.parquet", Path(work) / "rejects.csv")
        ratings, _ = read_ratings(Path(work) / "ratings.parquet")
    return SchemaConfig(user_id_type=id_type(ratings[USER]), movie_id_type=id_type(ratings[MOVIE]))


def _schema_of_table(supabase: LocalSupabase, config: IngestConfig) -> SchemaConfig:
    with supabase.connect() as connection:
        types = dict(
            connection.execute(
                "select column_name, data_type from information_schema.columns "
                "where table_schema = 'public' and table_name = %s",
                [config.import_table],
            ).fetchall()
        )
    columns = config.find_columns(list(types), f"table {config.import_table}")
    user, movie = columns[USER], columns[MOVIE]
    return SchemaConfig.of(
        user_id_type=ID_TYPES.get(types[user], "text"),
        movie_id_type=ID_TYPES.get(types[movie], "text"),
        ratings_table=config.import_table,
        user_column=user,
        movie_column=movie,
    )


def _titles_in(supabase: LocalSupabase) -> dict[str, str]:
    with supabase.connect() as connection:
        if connection.execute("select to_regclass('public.movies')").fetchone() == (None,):
            return {}
        return dict(connection.execute("select movie_id, title from public.movies").fetchall())
