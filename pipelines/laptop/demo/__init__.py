"""``make demo``: a web page with the sample's recommendations, on the embedded Supabase."""

import json
import sys
import threading
import uuid
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mf.errors import SupabaseError
from mf.local import LocalSupabase
from mf.local.gateway import Page
from mf.local.tools import default_cache, supabase_js
from mf.supabase.config import SchemaConfig
from mf.supabase.schema import migration
from pipelines.laptop import run as laptop
from pipelines.laptop.signals import terminating_steps
from pipelines.laptop.sources import sample_source

FOLDER = Path(__file__).parent
SCHEMA = SchemaConfig(user_id_type="uuid", movie_id_type="bigint", ratings_table="ratings", public_read="movies")
NAMES = ("Ada", "Ben", "Chloe", "Deniz", "Emre")  # of five users of the sample, from most to fewest ratings
NEWCOMER = "Somebody new"
TOKEN_VALID_S = 3600  # as in Supabase Auth

CREATE_STAGED = """
create temporary table staged (user_id uuid, movie_id bigint, rating real, seconds bigint) on commit drop
"""


def demo(home: Path) -> None:
    """Serves the page until Ctrl-C. Trains and publishes a run of the sample first if none is published.

    Args:
        home: folder of the local databases and of the steps' outputs.

    Raises:
        MfError: a download or a step of the training failed, or the run was not published.
    """
    bundle = supabase_js(default_cache())  # first, because it needs the network and training takes time
    source = sample_source(home)
    if not _published(home, source.database):
        print("no run of the sample is published yet: training one first\n", flush=True)
        laptop.run(source, {}, home)
        if not _published(home, source.database):
            raise SupabaseError("the new run was not published: the lines above say why")
    with terminating_steps(), LocalSupabase(home / "supabase", source.database) as supabase:
        prepare(supabase, Path(source.parameters["ratings_csv"]).parent)
        supabase.gateway.pages.update(pages(supabase, bundle))
        print(f"\nthe demo  {supabase.url}/\n          Ctrl-C stops it; the data stay", flush=True)
        if sys.stdout.isatty():
            webbrowser.open(f"{supabase.url}/")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


def prepare(supabase: LocalSupabase, folder: Path) -> None:
    """Fills the app's tables with the sample in ``folder``, and applies the migration for them.

    Raises:
        SupabaseError: the database holds runs whose user ids are not UUIDs.
    """
    supabase.migrate((FOLDER / "tables.sql").read_text())
    with supabase.connect() as connection, connection.transaction(), connection.cursor() as cursor:
        with cursor.copy("copy public.movies (movie_id, title) from stdin (format csv, header)") as copy:
            copy.write((folder / "movies.csv").read_bytes())
        cursor.execute(CREATE_STAGED)
        with cursor.copy("copy staged from stdin (format csv, header)") as copy:
            copy.write((folder / "ratings.csv").read_bytes())
        cursor.execute("insert into public.ratings select user_id, movie_id, rating, to_timestamp(seconds) from staged")
    supabase.migrate(migration(SCHEMA))


def pages(supabase: LocalSupabase, bundle: Path) -> dict[str, Page]:
    """The page's files by path, for the gateway.

    Files are read on every request, so that edits show at once; tokens are signed on every request, so that loading
    the page again renews them.

    Args:
        supabase: after ``prepare``.
        bundle: supabase-js for the browser.
    """
    users = _example_users(supabase)
    return {
        "/": Page("text/html; charset=utf-8", (FOLDER / "index.html").read_bytes),
        "/style.css": Page("text/css; charset=utf-8", (FOLDER / "style.css").read_bytes),
        "/app.js": Page("text/javascript; charset=utf-8", (FOLDER / "app.js").read_bytes),
        "/supabase.js": Page("text/javascript; charset=utf-8", bundle.read_bytes),
        "/config.json": Page("application/json", lambda: json.dumps(config(supabase, users)).encode()),
    }


def config(supabase: LocalSupabase, users: Sequence[str]) -> dict[str, Any]:
    """The page's configuration: project, publishable key, and the users with their tokens.

    The tokens are like those of Supabase Auth after a sign-in: each gives access to one user's own rows.
    """
    people = [*zip(NAMES, users, strict=False), (NEWCOMER, str(uuid.uuid4()))]
    return {
        "url": supabase.url,
        "key": supabase.publishable_key,
        "users": [
            {
                "name": name,
                "user_id": user,
                "token": supabase.user_token(user, valid_s=TOKEN_VALID_S),
                "is_new": name == NEWCOMER,
            }
            for name, user in people
        ],
    }


def _example_users(supabase: LocalSupabase) -> list[str]:
    """Ids of one user per name, evenly spread from the most ratings to the fewest."""
    by_ratings = "select user_id::text from public.ratings group by user_id order by count(*) desc, user_id"
    with supabase.connect() as connection:
        users = [user for (user,) in connection.execute(by_ratings)]
    return users[:: max(1, len(users) // len(NAMES))][: len(NAMES)]


def _published(home: Path, database: str) -> bool:
    with LocalSupabase(home / "supabase", database) as supabase, supabase.connect() as connection:
        if connection.execute("select to_regclass('public.mf_runs')").fetchone() == (None,):
            return False
        return connection.execute("select from public.mf_runs where status = 'published'").fetchone() is not None
