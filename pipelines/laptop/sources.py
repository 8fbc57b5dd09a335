"""Sources of ratings for a local run: the sample, a file, or a table of the embedded Supabase.

Each source has its own local database, so that ids and their types never collide.
"""

import hashlib
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mf.errors import ConfigError
from mf.local import LocalSupabase, databases
from mf.ratings.config import NONE, IngestConfig
from mf.ratings.fetch import local_files
from mf.ratings.schema import MOVIE, RATING, USER, id_type
from mf.ratings.titles import titles_beside
from mf.reuse import ingest_once
from mf.sample import write_sample
from mf.supabase.config import SchemaConfig

# PostgreSQL type of an id column to the migration's id type; any other is text.
ID_TYPES = {"smallint": "bigint", "integer": "bigint", "bigint": "bigint", "uuid": "uuid"}


@dataclass(frozen=True)
class LocalSource:
    """A source of ratings for a local run.

    Attributes:
        database: name of the local database that only this source uses.
        parameters: the pipeline's parameters that select the source.
        schema: options of the database's migration.
        titles: movie titles by movie id, as text.
        noise_floor: the lowest RMSE that any model can reach, if known.
    """

    database: str
    parameters: dict[str, Any]
    schema: Callable[[LocalSupabase], SchemaConfig]
    titles: Callable[[LocalSupabase], Mapping[str, str]]
    noise_floor: float | None = None


def sample_source(home: Path) -> LocalSource:
    """The synthetic sample, which is written to ``home``."""
    sample = write_sample(home / "sample")
    return LocalSource(
        "sample",
        {"ratings_csv": str(sample.ratings_csv)},
        lambda _: SchemaConfig(user_id_type="uuid", movie_id_type="bigint"),
        lambda _: titles_beside(str(sample.ratings_csv)),
        sample.noise_floor,
    )


def file_source(path: Path, parameters: Mapping[str, Any]) -> LocalSource:
    """A file of ratings, or the files of a folder or a glob. The database depends on their content and on how they are
    read, not on their names.

    Raises:
        ConfigError: there is no such file.
    """
    if str(path).startswith("gs:/"):
        raise ConfigError(f"{path}: a local run reads a local file; download it first: gcloud storage cp")
    reading = ingest_parameters(parameters)
    digest = hashlib.sha256()
    with local_files(str(path)) as files:
        for file in files:
            if not file.path.is_file():
                raise ConfigError(f"{path}: no such file, expected a file of ratings")
            with file.path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    digest.update(repr(sorted(reading.items())).encode())
    config = IngestConfig.of(**reading, ratings_csv=str(path))
    return LocalSource(
        f"csv_{digest.hexdigest()[:12]}",
        {"ratings_csv": str(path)},
        lambda supabase: _applied_schema(supabase) or _schema_of_file(config),
        lambda _: titles_beside(str(path), str(parameters.get("movie_column", "")), print),
    )


def table_source(name: str, parameters: Mapping[str, Any], home: Path) -> LocalSource:
    """A table of the embedded Supabase that ``seed_table`` filled.

    Raises:
        ConfigError: there is no such table.
    """
    name = check_table_name(name)
    database = f"table_{name}"
    if database not in databases(home / "supabase"):
        raise ConfigError(f"the embedded Supabase has no table {name}: create it with `make seed-table`")
    config = IngestConfig.of(**ingest_parameters(parameters), import_table=name)
    return LocalSource(
        database, {"import_table": name}, lambda supabase: _schema_of_table(supabase, config), _titles_in
    )


def ingest_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's parameters that belong to ingest."""
    return {name: value for name, value in parameters.items() if name in IngestConfig.model_fields}


def check_table_name(name: str) -> str:
    """The name of a table in the embedded Supabase, without its schema.

    Raises:
        ConfigError: a table cannot have this name.
    """
    name = name.removeprefix("public.")
    if not re.fullmatch("[a-z][a-z0-9_]{0,39}", name) or name == "movies" or name.startswith("mf_"):
        raise ConfigError(
            f"a table of the embedded Supabase cannot be called {name!r}: expected a-z, 0-9 and _, at most 40; "
            "movies and mf_… are reserved"
        )
    return name


def _applied_schema(supabase: LocalSupabase) -> SchemaConfig | None:
    """The id types of the migration that the database already has."""
    with supabase.connect() as connection:
        if connection.execute("select to_regproc('public.mf_schema')").fetchone() == (None,):
            return None
        row = connection.execute("select public.mf_schema()").fetchone()
        return SchemaConfig.of(**{k: row[0][k] for k in ("user_id_type", "movie_id_type")}) if row else None


def _schema_of_file(config: IngestConfig) -> SchemaConfig:
    """The id types of a file. They depend on every row, so the file is read once before the pipeline reads it."""
    with tempfile.TemporaryDirectory() as work:
        # Kept, so that the first step does not read the file a second time.
        ingest_once(config, Path(work) / "ratings.parquet", Path(work) / "rejects.csv")
        users, movies = (pq.read_table(Path(work) / "ratings.parquet", columns=[name])[name] for name in (USER, MOVIE))
        return SchemaConfig(user_id_type=id_type(users), movie_id_type=id_type(movies))


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
        rating_column=columns.get(RATING, NONE),
    )


def _titles_in(supabase: LocalSupabase) -> dict[str, str]:
    with supabase.connect() as connection:
        if connection.execute("select to_regclass('public.movies')").fetchone() == (None,):
            return {}
        return dict(connection.execute("select movie_id, title from public.movies").fetchall())
