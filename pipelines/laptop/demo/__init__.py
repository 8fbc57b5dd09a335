"""A page to play with: the sample's recommendations in a browser, on the embedded Supabase."""

import json
import threading
import uuid
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
from pipelines.laptop import sources

FOLDER = Path(__file__).parent
SCHEMA = SchemaConfig(user_id_type="uuid", movie_id_type="bigint", ratings_table="ratings", public_read="movies")
NAMES = ("Ada", "Ben", "Chloe", "Deniz", "Emre")  # of some users of the sample, from the busiest on
NEWCOMER = "Somebody new"
SIGNED_IN_S = 3600  # as Supabase Auth has it

STAGED = """
create temporary table staged (user_id uuid, movie_id bigint, rating real, seconds bigint) on commit drop
"""


def demo(home: Path) -> None:
    """Serves the page until Ctrl-C. When no run of the sample is published yet, one is trained and published first.

    Args:
        home: folder of the local databases and of what the steps write.

    Raises:
        MfError: something that it needs cannot be had, a step of the training failed, or its run was not published.
    """
    bundle = supabase_js(default_cache())  # what needs the network comes before what takes time
    source = sources.sample(home)
    if not _published(home, source.database):
        print("no run of the sample is published yet: one is trained first\n", flush=True)
        laptop.run(source, {}, home)
        if not _published(home, source.database):
            raise SupabaseError("the run that was trained is not published: what is above says why")
    with laptop.stopping(), LocalSupabase(home / "supabase", source.database) as supabase:
        prepare(supabase, Path(source.parameters["ratings_csv"]).parent)
        supabase.gateway.pages.update(pages(supabase, bundle))
        print(f"\nthe demo  {supabase.url}/\n          Ctrl-C ends it; the data stay", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


def prepare(supabase: LocalSupabase, folder: Path) -> None:
    """Makes the database what the page asks: the app's tables with the sample in ``folder``, and the migration that
    knows of them.

    Raises:
        SupabaseError: the database holds runs of users whose ids are no UUIDs.
    """
    supabase.migrate((FOLDER / "tables.sql").read_text())
    with supabase.connect() as connection, connection.transaction(), connection.cursor() as cursor:
        with cursor.copy("copy public.movies (movie_id, title) from stdin (format csv, header)") as copy:
            copy.write((folder / "movies.csv").read_bytes())
        cursor.execute(STAGED)
        with cursor.copy("copy staged from stdin (format csv, header)") as copy:
            copy.write((folder / "ratings.csv").read_bytes())
        cursor.execute("insert into public.ratings select user_id, movie_id, rating, to_timestamp(seconds) from staged")
    supabase.migrate(migration(SCHEMA))


def pages(supabase: LocalSupabase, bundle: Path) -> dict[str, Page]:
    """What the gateway serves beside the API, by path. A file is read anew each time, for who changes one; the tokens
    are new each time, for who loads the page again when they have expired.

    Args:
        supabase: as ``prepare`` left it.
        bundle: supabase-js for the browser.
    """
    users = _some_users(supabase)
    return {
        "/": Page("text/html; charset=utf-8", (FOLDER / "index.html").read_bytes),
        "/style.css": Page("text/css; charset=utf-8", (FOLDER / "style.css").read_bytes),
        "/app.js": Page("text/javascript; charset=utf-8", (FOLDER / "app.js").read_bytes),
        "/supabase.js": Page("text/javascript; charset=utf-8", bundle.read_bytes),
        "/config.json": Page("application/json", lambda: json.dumps(config(supabase, users)).encode()),
    }


def config(supabase: LocalSupabase, users: Sequence[str]) -> dict[str, Any]:
    """What the page is told: the project, its publishable key, and who may sign in, each with the token that Supabase
    Auth would give after a sign-in. Such a token opens one user's own rows, and no more."""
    people = [*zip(NAMES, users, strict=False), (NEWCOMER, str(uuid.uuid4()))]
    return {
        "url": supabase.url,
        "key": supabase.publishable_key,
        "users": [
            {
                "name": name,
                "user_id": user,
                "token": supabase.user_token(user, valid_s=SIGNED_IN_S),
                "is_new": name == NEWCOMER,
            }
            for name, user in people
        ],
    }


def _some_users(supabase: LocalSupabase) -> list[str]:
    """As many as there are names, from the one with the most ratings on, evenly spread."""
    by_ratings = "select user_id::text from public.ratings group by user_id order by count(*) desc, user_id"
    with supabase.connect() as connection:
        users = [user for (user,) in connection.execute(by_ratings)]
    return users[:: max(1, len(users) // len(NAMES))][: len(NAMES)]


def _published(home: Path, database: str) -> bool:
    with LocalSupabase(home / "supabase", database) as supabase, supabase.connect() as connection:
        if connection.execute("select to_regclass('public.mf_runs')").fetchone() == (None,):
            return False
        return connection.execute("select from public.mf_runs where status = 'published'").fetchone() is not None
