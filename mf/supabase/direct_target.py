"""An export over the direct connection: COPY of both sides and the publish, in one transaction; then old runs go."""

import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from psycopg.copy import QueuedLibpqWriter
from psycopg.types.json import Jsonb

from mf.errors import SupabaseError
from mf.model_directory import Embeddings, PublishedModel, read_model
from mf.progress import Progress
from mf.supabase.config import ExportConfig
from mf.supabase.database import Database
from mf.supabase.rest_target import HINTS, Made, Published, check_migration, publish_model

CHUNK_ROWS = 8192
# Signature, flags and length of an extension, and the end: https://www.postgresql.org/docs/current/sql-copy.html
COPY_BEGIN = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
COPY_END = struct.pack(">h", -1)
# The lock on the runs is held from the first statement to the commit. A server that lost its client lets go of it: in a
# COPY it sees the end of the connection, in any other statement it looks, and a machine that vanished is asked.
SETTINGS = {
    "statement_timeout": "30min",
    "lock_timeout": "60s",
    "idle_in_transaction_session_timeout": "5min",
    "client_connection_check_interval": "2s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
_MIGRATE = "is the migration applied? `python -m mf schema` prints it"
_OWNER = "let SUPABASE_DB_URL name the user who applied the migration, Supabase's is postgres"
_HINTS = HINTS | {
    "42501": _OWNER,
    "0A000": f"row level security holds for this user: {_OWNER}",
    "42883": _MIGRATE,
    "42P01": _MIGRATE,
    "55P03": "another export is at work, and this one changed nothing: run it again when that one has ended",
}


def export_directly(database: Database, model_dir: Path, config: ExportConfig) -> Published:
    """As ``mf.supabase.rest_target.export``, in one transaction: broken off at any point it leaves nothing behind.

    Raises:
        DataError: the model directory is not what it should be; nothing was sent.
        SupabaseError: the database cannot be reached, the migration is missing or does not fit, another export is at
            work, or the database refused; readers see what they saw before.
    """
    return publish_directly(database, read_model(model_dir), config)


def publish_directly(database: Database, model: PublishedModel, config: ExportConfig) -> Published:
    """As ``export_directly``, for a model that is read already."""
    with _connected(database) as way:
        return publish_model(way, model, config)


def check_migration_directly(
    database: Database, user_ids: pa.ChunkedArray, movie_ids: pa.ChunkedArray, config: ExportConfig
) -> None:
    """As ``mf.supabase.rest_target.check_migration``."""
    with _connected(database) as way:
        check_migration(way, user_ids, movie_ids, config)


@contextmanager
def _connected(database: Database) -> Iterator["_Direct"]:
    """A connection, whose transaction is rolled back unless it is committed."""
    connection = None
    try:
        connection = psycopg.connect(database.conninfo.get_secret_value(), prepare_threshold=None)
    except psycopg.Error as error:
        message = database.explain(error, "connect to the database")
    if connection is None:
        # Raised outside of the handler: the driver's frames hold the password.
        raise SupabaseError(message)
    with closing(connection):
        way = _Direct(database, connection)
        way.set(**SETTINGS)
        yield way


class _Direct:
    """The calls and the load, in a transaction until ``commit``."""

    def __init__(self, database: Database, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._database, self._connection = database, connection

    def call(self, function: str, doing: str, **arguments: Any) -> Any:
        named = sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in arguments
        )
        values = {name: Jsonb(value) if isinstance(value, dict) else value for name, value in arguments.items()}
        statement = sql.SQL("select public.{}({})").format(sql.Identifier(function), named)
        # An index takes the time that it takes.
        self.set(statement_timeout="0" if function == "mf_index" else SETTINGS["statement_timeout"])
        with self._telling(doing):
            row = self._connection.execute(statement, values).fetchone()
        return row[0] if row else None

    def load(self, model: PublishedModel, made: Made, config: ExportConfig) -> None:
        run_id = model.header.run_id
        with self._telling(f"take hold of run {run_id}"):
            # Who loads the same run through the API waits now, and finds it published.
            self._connection.execute("select from public.mf_runs where run_id = %s for update", [run_id])
        for side, rows in (("movie", model.movies), ("user", model.users)):
            with self._telling(f"write the {side}s of run {run_id}"):
                self._copy(side, run_id, rows, made)

    def _copy(self, side: str, run_id: str, rows: Embeddings, made: Made) -> None:
        names = {"table": sql.Identifier("public", f"mf_{side}_embeddings"), "id": sql.Identifier(f"{side}_id")}
        # What an export through the API that broke off has left.
        self._connection.execute(sql.SQL("delete from {table} where run_id = %s").format(**names), [run_id])
        statement = "copy {table} (run_id, {id}, bias, embedding) from stdin (format binary)"
        cursor = self._connection.cursor()
        # A thread of its own sends, so that the server need not wait for the next rows to be put together.
        copying = cursor.copy(sql.SQL(statement).format(**names), writer=QueuedLibpqWriter(cursor))
        with Progress(f"export {side}s", len(rows)) as progress, copying as copy:
            copy.write(COPY_BEGIN)
            for records in copy_records(run_id, rows, made[f"{side}_id_type"]):
                copy.write(records.tobytes())
                progress.advance(len(records))
            copy.write(COPY_END)

    def set(self, **settings: str) -> None:
        """Settings of the connection."""
        statement = "select set_config(name, setting, false) from jsonb_each_text(%s) given (name, setting)"
        with self._telling("set up the connection"):
            self._connection.execute(statement, [Jsonb(settings)])

    def commit(self, doing: str) -> None:
        with self._telling(doing):
            self._connection.commit()

    @contextmanager
    def _telling(self, doing: str) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise SupabaseError(self._database.explain(error, doing, _HINTS)) from None


def copy_records(run_id: str, rows: Embeddings, kind: str) -> Iterator[npt.NDArray[np.void]]:
    """``rows`` as PostgreSQL's binary COPY takes (run_id, id, bias, embedding); at most ``CHUNK_ROWS`` at a time, in a
    buffer that is filled anew.

    Each value stands behind its length; a vector is pgvector's: number of values, 0, values.

    Args:
        kind: the type that ids have in the database.
    """
    factors = rows.vectors.shape[1]
    for positions, ids in _ids(rows.ids, kind):
        constant = {
            "fields": (">i2", 4),
            "run_length": (">i4", len(run_id.encode())),
            "run": (f"S{len(run_id.encode())}", run_id.encode()),
            "id_length": (">i4", ids.itemsize),
            "id": (ids.dtype, None),
            "bias_length": (">i4", 4),
            "bias": (">f4", None),
            "vector_length": (">i4", 4 + 4 * factors),
            "dimensions": (">i2", factors),
            "unused": (">i2", 0),
        }
        layout = [(name, form) for name, (form, _) in constant.items()] + [("vector", ">f4", (factors,))]
        records = np.zeros(min(CHUNK_ROWS, len(ids)), layout)
        for name, (_, value) in constant.items():
            if value is not None:
                records[name] = value
        for start in range(0, len(ids), CHUNK_ROWS):
            part = positions[start : start + CHUNK_ROWS]
            chunk = records[: len(part)]
            chunk["id"], chunk["bias"], chunk["vector"] = (
                ids[start : start + CHUNK_ROWS], rows.bias[part], rows.vectors[part],
            )  # fmt: skip
            yield chunk


def _ids(ids: pa.Array, kind: str) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.void]]]:
    """``ids`` in PostgreSQL's binary form, in groups of one width, each with its rows' positions."""
    everywhere = np.arange(len(ids))
    if kind == "bigint":
        yield everywhere, ids.to_numpy().astype(">i8").view("V8")
    elif kind == "uuid":
        digits = "".join(ids.to_pylist()).replace("-", "")
        yield everywhere, np.frombuffer(bytes.fromhex(digits), "V16")
    else:
        texts = ids.cast(pa.large_string()).cast(pa.large_binary())
        widths = pc.binary_length(texts).to_numpy()
        for width in np.unique(widths):
            there = np.flatnonzero(widths == width)
            yield there, np.frombuffer(b"".join(texts.take(pa.array(there)).to_pylist()), f"V{width}")
