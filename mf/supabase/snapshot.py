"""Reading over the direct connection: Arrow tables, all of one moment."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa
from psycopg import sql

from mf.errors import SupabaseError
from mf.supabase.database import Database

# Settings of the transaction. A role's limits are made for short queries, and this one lasts as long as it lasts; names
# are those of the schemas that they are written with; what is text is written in one way.
SETTINGS = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "search_path": "",
    "datestyle": "ISO",
    "timezone": "UTC",
}


@contextmanager
def snapshot(database: Database, doing: str, hints: Mapping[str, str] | None = None) -> Iterator[Any]:
    """A cursor in a transaction that sees one snapshot and writes nothing.

    Args:
        database: to read from.
        doing: what the caller does, for the error: ``read table public.ratings``.
        hints: what to do, by SQLSTATE.

    Raises:
        SupabaseError: no connection, or whatever the database says in the block.
    """
    try:
        with adbc.connect(database.conninfo.get_secret_value()) as connection, connection.cursor() as cursor:
            cursor.execute("set transaction isolation level repeatable read, read only")
            for name, value in SETTINGS.items():
                cursor.execute(f"set local {name} = '{value}'")
            yield cursor
            return
    except adbc.Error as error:
        message = database.explain(error, doing, hints)
    # Raised outside of the handler: the driver's frames hold the address.
    raise SupabaseError(message)


def select(cursor: Any, query: str, **values: str | int | sql.Composable) -> pa.Table:
    """What a query gives, with ``values`` in the place of ``{name}``: parts of a query as they are, others quoted."""
    parts = {name: value if isinstance(value, sql.Composable) else sql.Literal(value) for name, value in values.items()}
    cursor.execute(sql.SQL(query).format(**parts).as_string())
    return cursor.fetch_arrow_table()
