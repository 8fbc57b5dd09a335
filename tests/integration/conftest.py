"""One embedded Supabase per test session; a new, empty database wherever a test needs one."""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from browser import browser as browser  # a fixture, too
from faults import FaultySupabase
from pydantic import SecretStr
from supabase import Client

from mf.local import delete_home
from mf.supabase.client import connect
from mf.supabase.config import SchemaConfig
from mf.supabase.credentials import Credentials
from mf.supabase.schema import migration

numbers = itertools.count(1)


@pytest.fixture(scope="session")
def stack() -> Iterator[FaultySupabase]:
    """Supabase's legacy default grants are on: a migration that forgets to revoke leaves its tables open."""
    home = Path(tempfile.mkdtemp(prefix="mf-test-"))
    home.chmod(0o755)  # so that root's PostgreSQL, which runs as another user, lies in it too
    try:
        with FaultySupabase(home, legacy_grants=True) as supabase:
            yield supabase
    finally:
        delete_home(home)


@pytest.fixture(scope="module")
def fresh_stack(stack: FaultySupabase) -> Iterator[Callable[..., FaultySupabase]]:
    """``fresh_stack()`` opens a new, empty database with an API, keys and a gateway of its own; takes ``max_rows`` and
    ``legacy_grants`` (on unless told otherwise). All are closed and dropped at the end of the module."""
    with ExitStack() as opened:

        def open_one(*, legacy_grants: bool = True, max_rows: int = 1000) -> FaultySupabase:
            name = f"test_{next(numbers)}"
            options = {"legacy_grants": legacy_grants, "max_rows": max_rows}
            opened.callback(stack.postgres.drop, name)
            return opened.enter_context(FaultySupabase(stack.home, name, postgres=stack.postgres, **options))

        yield open_one


@pytest.fixture(scope="module")
def migrated(fresh_stack: Callable[..., FaultySupabase]) -> FaultySupabase:
    """A database with what ``python -m mf schema`` prints."""
    database = fresh_stack()
    database.migrate(migration(SchemaConfig()))
    return database


@pytest.fixture
def database(migrated: FaultySupabase) -> Iterator[FaultySupabase]:
    """The same without a run, a fault or a request of an earlier test."""
    with migrated.connect() as connection:
        connection.execute("truncate public.mf_runs cascade")
    migrated.gateway.faults.clear()
    migrated.gateway.requests.clear()
    yield migrated
    migrated.gateway.faults.clear()


@pytest.fixture
def client(database: FaultySupabase) -> Iterator[Client]:
    """Of the service role."""
    with connect(Credentials(database.url, SecretStr(database.secret_key))) as client:
        yield client


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the embedded Supabase ``database``, to run them on other versions of PostgreSQL too."""
    for item in items:
        if "stack" in getattr(item, "fixturenames", ()):
            item.add_marker("database")
