"""``make demo``: a web page with recommendations from the sample, a file or a table, on the embedded Supabase."""

import io
import json
import sys
import threading
import uuid
import webbrowser
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from pyarrow import csv

from mf.errors import SupabaseError
from mf.local import LocalSupabase
from mf.local.gateway import Page
from mf.ratings.config import NONE, IngestConfig
from mf.ratings.schema import MOVIE, RATED_AT, has_ratings, id_type
from mf.ratings.titles import Movie
from mf.supabase.config import SchemaConfig
from mf.supabase.schema import migration
from pipelines.laptop import run as laptop
from pipelines.laptop.demo.data import DemoData, movie_rows
from pipelines.laptop.signals import terminating_steps

FOLDER = Path(__file__).parent
NEWCOMER = "Somebody new"
TOKEN_VALID_S = 3600  # as in Supabase Auth

SCALE = "select rating_min, rating_max from public.mf_runs where status = 'published'"


def demo(data: DemoData, bundle: Path, parameters: Mapping[str, Any], home: Path) -> None:
    """Serves the page until Ctrl-C. Trains and publishes a run first if none is published.

    Args:
        data: what is shown.
        bundle: supabase-js for the browser.
        parameters: of the pipeline; with one that is not about reading the ratings, a run is always trained.
        home: folder of the local databases and of the steps' outputs.

    Raises:
        MfError: a step of the training failed, or the run was not published.
    """
    training = {name: value for name, value in parameters.items() if name not in IngestConfig.model_fields}
    if training or not _published(home, data.source.database):
        why = "PARAMS is given" if training else f"no run of {data.label} is published yet"
        print(f"{why}: training one first\n", flush=True)
        laptop.run(data.source, training, home)
        if not _published(home, data.source.database):
            raise SupabaseError("the new run was not published: the lines above say why")
    with terminating_steps(), LocalSupabase(home / "supabase", data.source.database) as supabase:
        prepare(supabase, data.ratings, data.movies)
        supabase.gateway.pages.update(pages(supabase, bundle, data.people))
        print(f"\nthe demo  {supabase.url}/\n          Ctrl-C stops it; the data stay", flush=True)
        if sys.stdout.isatty():
            webbrowser.open(f"{supabase.url}/")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


def schema(ratings: pa.Table) -> SchemaConfig:
    """The options of the migration for the demo's tables."""
    return SchemaConfig(
        user_id_type="uuid",
        movie_id_type=id_type(ratings[MOVIE]),
        ratings_table="ratings",
        rating_column="rating" if has_ratings(ratings) else NONE,
        public_read="movies",
    )


def prepare(supabase: LocalSupabase, ratings: pa.Table, movies: Mapping[str, Movie]) -> None:
    """Fills the app's tables, and applies the migration for them.

    Args:
        supabase: the embedded Supabase, running.
        ratings: a ratings table, whose users are UUIDs; without ratings, clicks.
        movies: by id, as text.

    Raises:
        SupabaseError: the database holds runs whose ids have other types.
    """
    options = schema(ratings)
    tables = (FOLDER / "tables.sql").read_text().replace("movie_id bigint", f"movie_id {options.movie_id_type}")
    if not has_ratings(ratings):
        tables = tables.replace("rating real not null", "rating real")
    supabase.migrate(tables)
    with supabase.connect() as connection, connection.transaction(), connection.cursor() as cursor:
        with cursor.copy("copy public.movies (movie_id, title, genres) from stdin") as copy:
            for row in movie_rows(ratings, movies):
                copy.write_row(row)
        for part in _with_and_without_times(ratings):
            names = sql.SQL(", ").join(map(sql.Identifier, part.column_names))
            with cursor.copy(sql.SQL("copy public.ratings ({}) from stdin (format csv)").format(names)) as copy:
                for batch in part.to_batches(max_chunksize=1 << 16):
                    text = io.BytesIO()
                    csv.write_csv(pa.table(batch), text, csv.WriteOptions(include_header=False))
                    copy.write(text.getvalue())
    supabase.migrate(migration(options))


def _with_and_without_times(ratings: pa.Table) -> list[pa.Table]:
    """Two parts, of which the second lacks the column of times: the table fills in the time of the copy."""
    if RATED_AT not in ratings.column_names:
        return [ratings]
    known = ratings[RATED_AT].is_valid()
    return [ratings.filter(known), ratings.filter(pc.invert(known)).drop_columns([RATED_AT])]


def pages(supabase: LocalSupabase, bundle: Path, people: Mapping[str, str]) -> dict[str, Page]:
    """The page's files by path, for the gateway.

    Files are read on every request, so that edits show at once; tokens are signed on every request, so that loading
    the page again renews them.

    Args:
        supabase: after ``prepare``.
        bundle: supabase-js for the browser.
        people: names of users who can sign in, by id.
    """
    newcomer = str(uuid.uuid4())
    return {
        "/": Page("text/html; charset=utf-8", (FOLDER / "index.html").read_bytes),
        "/style.css": Page("text/css; charset=utf-8", (FOLDER / "style.css").read_bytes),
        "/app.js": Page("text/javascript; charset=utf-8", (FOLDER / "app.js").read_bytes),
        "/supabase.js": Page("text/javascript; charset=utf-8", bundle.read_bytes),
        "/config.json": Page(
            "application/json", lambda: json.dumps(config(supabase, {**people, newcomer: NEWCOMER})).encode()
        ),
    }


def config(supabase: LocalSupabase, people: Mapping[str, str]) -> dict[str, Any]:
    """The page's configuration: project, publishable key, range of ratings (null for clicks), users with their tokens.

    The tokens are like those of Supabase Auth after a sign-in: each gives access to one user's own rows.
    """
    with supabase.connect() as connection:
        low, high = connection.execute(SCALE).fetchone() or (None, None)
    return {
        "url": supabase.url,
        "key": supabase.publishable_key,
        "scale": None if low is None else {"min": low, "max": high},
        "users": [
            {
                "name": name,
                "user_id": user,
                "token": supabase.user_token(user, valid_s=TOKEN_VALID_S),
                "is_new": name == NEWCOMER,
            }
            for user, name in people.items()
        ],
    }


def _published(home: Path, database: str) -> bool:
    with LocalSupabase(home / "supabase", database) as supabase, supabase.connect() as connection:
        if connection.execute("select to_regclass('public.mf_runs')").fetchone() == (None,):
            return False
        return connection.execute("select from public.mf_runs where status = 'published'").fetchone() is not None
