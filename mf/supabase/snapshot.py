"""Read-only snapshot transactions over the direct connection, with results as Arrow tables."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa
from psycopg import sql

from mf.errors import SupabaseError
from mf.supabase.database import Database

# Settings of the transaction: no time limits, which a role has for short queries; all names qualified with a schema;
# one text format for dates and times.
SETTINGS = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "search_path": "",
    "datestyle": "ISO",
    "timezone": "UTC",
}


@contextmanager
def snapshot(database: Database, doing: str, hints: Mapping[str, str] | None = None) -> Iterator[Any]:
    """A cursor in a read-only transaction with repeatable reads.

    Args:
        database: database to read from.
        doing: what the caller is doing, for the error message: ``read table public.ratings``.
        hints: advice by SQLSTATE.

    Raises:
        SupabaseError: the connection failed, or a database error in the block.
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
    # Raised outside of the handler: the driver's frames hold the URL.
    raise SupabaseError(message)


def select(cursor: Any, query: str, **values: str | int | sql.Composable) -> pa.Table:
    """The result of ``query`` with each ``{name}`` replaced by its value: SQL parts as they are, others as literals."""
    parts = {name: value if isinstance(value, sql.Composable) else sql.Literal(value) for name, value in values.items()}
    cursor.execute(sql.SQL(query).format(**parts).as_string())
    return cursor.fetch_arrow_table()
