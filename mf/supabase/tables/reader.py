"""Ratings from a Supabase table: over a direct connection where there is one, else through the REST API."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import SecretStr

from mf.ingest import ReadTable
from mf.ratings.config import IngestConfig
from mf.supabase.client import connect
from mf.supabase.credentials import Credentials
from mf.supabase.database import Database
from mf.supabase.tables import direct, rest


@contextmanager
def reader(config: IngestConfig, url: str = "", key: SecretStr | None = None) -> Iterator[ReadTable | None]:
    """What ``ingest`` needs to read the table of ``config``; ``None`` when that names a file, which needs no key.

    With ``SUPABASE_DB_URL`` the database itself is read, and no key is needed.

    Args:
        url, key: of the Supabase project; those of the environment when empty.

    Raises:
        ConfigError, SupabaseError: the credentials cannot be had, or are of two projects.
    """
    if not config.import_table:
        yield None
    elif database := Database.find():
        database.check_project(url)
        yield functools.partial(direct.read_table, database)
    else:
        credentials = Credentials.find(url, key)
        with connect(credentials) as client:
            yield functools.partial(rest.read_table, client, credentials)
