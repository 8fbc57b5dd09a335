"""Ratings and movies of the demo page: of the sample, a file or a table.

A source becomes a folder with ``ratings.parquet`` and ``movies.csv``, from which the pipeline trains and the demo fills
its tables. Its users get UUIDs, since the page signs them in.
"""

import csv
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import SecretStr

from mf.errors import ConfigError, SupabaseError
from mf.files import written_aside
from mf.ingest import ingest
from mf.local import LocalSupabase
from mf.local.seed import NAMESPACE
from mf.ratings.config import IngestConfig
from mf.ratings.schema import MOVIE, USER, id_type, read_ratings
from mf.ratings.titles import Movie, movie_columns, movies_beside, movies_of
from mf.reuse import ingest_once
from mf.supabase.client import call, connect
from mf.supabase.credentials import Credentials
from pipelines.laptop.own import OwnProject
from pipelines.laptop.run import environment, ingested
from pipelines.laptop.sources import LocalSource, file_source, ingest_parameters, sample_source, table_source

MOVIES = "movies"  # table of a project with titles
PAGE = 1000  # rows per request, Supabase's limit by default
SAMPLE_NAMES = ("Ada", "Ben", "Chloe", "Deniz", "Emre")  # of the sample's users who can sign in
PEOPLE = len(SAMPLE_NAMES)


@dataclass(frozen=True)
class DemoData:
    """What the demo shows.

    Attributes:
        source: trains and publishes the model.
        label: the source as messages name it.
        ratings: users are UUIDs as text.
        movies: by id, as text.
        people: users who can sign in, by UUID, with their names; from most to fewest ratings.
    """

    source: LocalSource
    label: str
    ratings: pa.Table
    movies: Mapping[str, Movie]
    people: Mapping[str, str]


def sample_data(home: Path) -> DemoData:
    """The synthetic sample, whose users have UUIDs."""
    source = sample_source(home)
    path = source.parameters["ratings_csv"]
    ratings = _ingested(IngestConfig.of(ratings_csv=path), home)
    people = dict(zip(example_users(ratings), SAMPLE_NAMES, strict=True))
    return DemoData(source, "the sample", ratings, movies_beside(path), people)


def file_data(path: Path, parameters: Mapping[str, Any], home: Path) -> DemoData:
    """A file of ratings, or the files of a folder or a glob, with the titles beside it.

    Raises:
        ConfigError: there is no such file.
        DataError: it cannot be read, or too many rows are bad.
    """
    file_source(path, parameters)  # checks that it exists
    config = IngestConfig.of(**ingest_parameters(parameters), ratings_csv=str(path))
    return _converted(str(path), _ingested(config, home), movies_beside(str(path), config.movie_column, print), home)


def table_data(name: str, parameters: Mapping[str, Any], home: Path) -> DemoData:
    """A table of the embedded Supabase that ``seed_table`` filled.

    Raises:
        ConfigError: there is no such table.
    """
    database = table_source(name, parameters, home).database
    with LocalSupabase(home / "supabase", database) as supabase:
        variables = {"SUPABASE_URL": supabase.url, "SUPABASE_KEY": supabase.secret_key, "NO_PROXY": "127.0.0.1"}
        return _read_table(name, parameters, home, supabase.url, SecretStr(supabase.secret_key), variables)


def project_data(url: str, name: str, parameters: Mapping[str, Any], home: Path) -> DemoData:
    """A table of the user's own project, which is read and not changed; titles from its table ``movies``.

    Raises:
        ConfigError: no table is named, the address is malformed, or there is no key.
        SupabaseError: the table cannot be read.
    """
    if not name:
        raise ConfigError("SUPABASE_URL needs IMPORT_TABLE=ratings, the table of your project that the demo shows")
    project = OwnProject.find(url)
    return _read_table(name, parameters, home, project.url, project.key, project.environment())


def example_users(ratings: pa.Table) -> list[Any]:
    """Ids of ``PEOPLE`` users (of fewer, all), evenly spread from the most ratings to the fewest."""
    counts = pc.value_counts(ratings[USER].combine_chunks())
    ids, numbers = counts.field("values").to_pylist(), counts.field("counts").to_numpy()
    order = sorted(range(len(ids)), key=lambda one: (-numbers[one], str(ids[one])))
    return [ids[one] for one in order[:: max(1, len(ids) // PEOPLE)][:PEOPLE]]


def _read_table(
    name: str,
    parameters: Mapping[str, Any],
    home: Path,
    url: str,
    key: SecretStr | None,
    variables: Mapping[str, str],
) -> DemoData:
    config = IngestConfig.of(**ingest_parameters(parameters), import_table=name)
    with environment(**variables):
        ratings = _ingested(config, home, url)
        movies = read_movies_table(Credentials(url, key) if key else None, config.movie_column, print)
    return _converted(f"table {name}", ratings, movies, home)


def read_movies_table(
    credentials: Credentials | None, movie_column: str, say: Callable[[str], None]
) -> dict[str, Movie]:
    """Movies by id from the project's table ``movies``, whose columns are recognised as those of ``movies.csv``.

    Args:
        credentials: None: only the database's own address is known, and titles are not read.
        movie_column: the ratings' column of movie ids, which the table may have too.
        say: is told why there are no titles.
    """
    try:
        if credentials is None:
            raise SupabaseError(f"reading the table {MOVIES} needs SUPABASE_KEY")
        with connect(credentials) as client:
            doing = f"read table {MOVIES}"
            names = list(next(iter(call(client.table(MOVIES).select("*").limit(1), doing)), {}))
            places = movie_columns(names, movie_column)
            if places is None:
                found = f"found {', '.join(names)}" if names else "found no row"
                raise SupabaseError(f"expected columns of ids and titles in table {MOVIES}, {found}")
            names = [names[place] for place in places if place >= 0]
            wanted = ",".join('"' + name.replace('"', '\\"') + '"' for name in names)
            rows: list[Sequence[Any]] = []
            while True:
                request = client.table(MOVIES).select(wanted).order(names[0]).range(len(rows), len(rows) + PAGE - 1)
                page = call(request, doing)
                if not page:
                    break
                rows += [[row[name] for name in names] for row in page]
    except SupabaseError as error:
        say(f"titles    none, ids are shown: {error}")
        return {}
    return movies_of(rows, names, movie_column) or {}


def _ingested(config: IngestConfig, home: Path, url: str = "") -> pa.Table:
    """The checked ratings; of an unchanged file from an earlier run."""
    with _reusing(home), tempfile.TemporaryDirectory() as work:
        output, rejects = Path(work) / "ratings.parquet", Path(work) / "rejects.csv"
        if config.ratings_csv:
            ingest_once(config, output, rejects)
        else:
            ingest(config, output, rejects, url=url, for_training=True)
        return read_ratings(output)[0]


@contextmanager
def _reusing(home: Path) -> Iterator[None]:
    with environment(True, **ingested(home, fresh=False)):
        yield


def _converted(label: str, ratings: pa.Table, movies: Mapping[str, Movie], home: Path) -> DemoData:
    """The data with UUIDs for users, written to a folder from which the pipeline trains."""
    names = [str(user) for user in example_users(ratings)]
    users = ratings[USER].combine_chunks().dictionary_encode()
    ids = [str(user) for user in users.dictionary.to_pylist()]
    if id_type(users.dictionary) != "uuid":
        ids = [str(uuid.uuid5(NAMESPACE, user)) for user in ids]
    uuids = dict(zip(map(str, users.dictionary.to_pylist()), ids, strict=True))
    ratings = ratings.set_column(0, USER, pa.array(np.array(ids, dtype=object)).take(users.indices))
    folder = home / "demo" / label_folder(label)
    folder.mkdir(parents=True, exist_ok=True)
    with written_aside(folder / "ratings.parquet") as temporary:
        pq.write_table(ratings, temporary, compression="zstd")
    with written_aside(folder / "movies.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["movieId", "title", "genres"])
        rows.writerows((movie, found.title, "|".join(found.genres)) for movie, found in movies.items())
    titles = {movie: found.title for movie, found in movies.items()}
    source = replace(file_source(folder / "ratings.parquet", {}), titles=lambda _: titles)
    people = {uuids[name]: f"User {name[:40]}" for name in names}
    return DemoData(source, label, ratings, movies, people)


def label_folder(label: str) -> str:
    """A folder's name for a source."""
    return uuid.uuid5(NAMESPACE, label).hex[:12]


def movie_rows(ratings: pa.Table, movies: Mapping[str, Movie]) -> list[tuple[Any, str, list[str]]]:
    """Id, title and genres of every rated movie, and of those in ``movies`` whose ids have the same type."""
    rated = ratings[MOVIE].unique()
    kind = id_type(rated)
    known = {str(movie): movie for movie in rated.to_pylist()}
    for movie in movies:
        if kind == "text" or (kind == "bigint" and movie.removeprefix("-").isdecimal() and len(movie) < 19):
            known.setdefault(movie, movie)
    return [
        (id, found.title, list(found.genres))
        for movie, id in known.items()
        for found in [movies.get(movie) or Movie(f"Movie {movie}")]
    ]
