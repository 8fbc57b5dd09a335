"""Publishing and reading the published run over the direct database connection.

An export is one transaction: COPY of users and movies, then the publish; old runs are removed after it.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
from psycopg import sql
from psycopg.copy import QueuedLibpqWriter
from psycopg.types.json import Jsonb

from mf.errors import SupabaseError
from mf.model_directory import PublishedModel
from mf.progress import Progress
from mf.supabase.binary_copy import COPY_BEGIN, COPY_END, copy_records
from mf.supabase.config import ExportConfig
from mf.supabase.database import Database
from mf.supabase.index_progress import index_progress
from mf.supabase.run_tables import READ_RUN, RunTable, TableRows, incomplete, rows_of
from mf.supabase.snapshot import select, snapshot
from mf.supabase.target import HINTS, MigrationOptions, PublishedRun, Target

# The lock on the runs is held from the first statement to the commit, so a server that has lost its client must release
# it: in a COPY it sees the end of the connection, in any other statement it checks the connection, and keepalives
# detect a machine that vanished.
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
_OWNER = "let SUPABASE_DB_URL name the user who applied the migration; Supabase's is postgres"
_HINTS = HINTS | {
    "42501": _OWNER,
    "0A000": f"row level security applies to this user: {_OWNER}",
    "42883": _MIGRATE,
    "42P01": _MIGRATE,
    "55P03": "another export is running, and this one changed nothing: run it again when the other one has finished",
}


@dataclass(frozen=True)
class DirectTarget(Target):
    """A Supabase project reached over the database connection; an interrupted export leaves nothing behind."""

    database: Database

    @contextmanager
    def session(self) -> Iterator["_DirectSession"]:
        connection = None
        try:
            connection = psycopg.connect(self.database.conninfo.get_secret_value(), prepare_threshold=None)
        except psycopg.Error as error:
            message = self.database.explain(error, "connect to the database")
        if connection is None:
            # Raised outside of the handler: the driver's frames hold the password.
            raise SupabaseError(message)
        with closing(connection):
            session = _DirectSession(self.database, connection)
            session.set(**SETTINGS)
            yield session

    def published_run(self) -> PublishedRun | None:
        with snapshot(self.database, READ_RUN) as cursor:
            if select(cursor, "select to_regclass('public.mf_runs')::text as name")["name"].to_pylist() == [None]:
                return None
            rows = select(cursor, "select to_jsonb(r)::text as run from public.mf_runs r where r.status = 'published'")
        return PublishedRun.of(json.loads(rows["run"][0].as_py())) if len(rows) else None

    def read(self, table: RunTable, run_id: str, n: int) -> TableRows:
        with snapshot(self.database, f"read run {run_id}") as cursor:
            options = json.loads(select(cursor, "select public.mf_schema()::text as options")["options"][0].as_py())
            kind = "int8" if options[f"{table.entity}_id_type"] == "bigint" else "text"
            columns = [f"e.{name}{'' if name == 'bias' else '::float4[]'} as {name}" for name in table.columns]
            parts: dict[str, str | sql.Composable] = {
                "columns": sql.SQL(", ".join([f"e.{table.key}::{kind} as id", *columns])),
                "table": sql.Identifier("public", table.name),
                "run": run_id,
            }
            rows = select(cursor, "select {columns} from {table} e where e.run_id = {run}", **parts)
            query = "select (to_jsonb(r) #>> {path})::int8 as n from public.mf_runs r where r.run_id = {run}"
            now = select(cursor, query, path=sql.Literal(table.counted), run=run_id)
        # Not n: users may have been forgotten since.
        if not len(now) or len(rows) != now["n"][0].as_py():
            raise incomplete(run_id)
        return TableRows(
            table, rows["id"].combine_chunks(), tuple(_floats(rows[name].combine_chunks()) for name in table.columns)
        )


def _floats(column: pa.Array) -> npt.NDArray[np.float32]:
    if not len(column):
        return np.empty((0, 0), np.float32)
    if pa.types.is_floating(column.type):
        return np.asarray(column.to_numpy(), dtype=np.float32)
    return np.asarray(column.flatten().to_numpy().reshape(len(column), -1), dtype=np.float32)


def _show_notice(notice: psycopg.errors.Diagnostic) -> None:
    """Print what pgvector says of a graph that no longer fits into ``maintenance_work_mem``."""
    if "maintenance_work_mem" in (notice.message_primary or ""):
        print(f"{notice.message_primary}: {notice.message_hint}", file=sys.stderr, flush=True)


class _DirectSession:
    """Calls and COPY in one transaction until ``commit``."""

    def __init__(self, database: Database, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._database, self._connection = database, connection

    def call(self, function: str, doing: str, **arguments: Any) -> Any:
        named = sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in arguments
        )
        values = {name: Jsonb(value) if isinstance(value, dict) else value for name, value in arguments.items()}
        statement = sql.SQL("select public.{}({})").format(sql.Identifier(function), named)
        if function == "mf_index":
            # A build of a million movies takes a quarter of an hour: no time limit, and progress.
            self.set(statement_timeout="0")
            (pid,) = self._row("select pg_backend_pid()", doing)
            self._connection.add_notice_handler(_show_notice)
            with index_progress(self._second, pid):
                return self._row(statement, doing, values)[0]
        self.set(statement_timeout=SETTINGS["statement_timeout"])
        return self._row(statement, doing, values)[0]

    def _row(self, statement: sql.Composed | LiteralString, doing: str, values: dict[str, Any] | None = None) -> Any:
        with self._explained(doing):
            return self._connection.execute(statement, values).fetchone()

    def _second(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._database.conninfo.get_secret_value(), prepare_threshold=None)

    def load(self, model: PublishedModel, options: MigrationOptions, config: ExportConfig) -> None:
        run_id = model.header.run_id
        with self._explained(f"lock run {run_id}"):
            # An export of the same run through the API waits from here on, and then finds it published.
            self._connection.execute("select from public.mf_runs where run_id = %s for update", [run_id])
        for rows in rows_of(model, options):
            with self._explained(f"write the {rows.table.label} of run {run_id}"):
                self._copy(run_id, rows, options[f"{rows.table.entity}_id_type"])

    def _copy(self, run_id: str, rows: TableRows, kind: str) -> None:
        table = rows.table
        names = {
            "table": sql.Identifier("public", table.name),
            "columns": sql.SQL(", ").join(map(sql.Identifier, ("run_id", table.key, *table.columns))),
        }
        # Rows that an interrupted export through the API has left.
        self._connection.execute(sql.SQL("delete from {table} where run_id = %s").format(**names), [run_id])
        statement = sql.SQL("copy {table} ({columns}) from stdin (format binary)").format(**names)
        cursor = self._connection.cursor()
        # The writer sends in a thread of its own, so that the server does not wait while rows are encoded.
        copying = cursor.copy(statement, writer=QueuedLibpqWriter(cursor))
        with Progress(f"export {table.label}", len(rows)) as progress, copying as copy:
            copy.write(COPY_BEGIN)
            for records in copy_records(run_id, rows.ids, kind, rows.values):
                copy.write(records.tobytes())
                progress.advance(len(records))
            copy.write(COPY_END)

    def set(self, **settings: str) -> None:
        """Change settings of the connection."""
        statement = "select set_config(name, setting, false) from jsonb_each_text(%s) given (name, setting)"
        with self._explained("set up the connection"):
            self._connection.execute(statement, [Jsonb(settings)])

    def commit(self, doing: str) -> None:
        with self._explained(doing):
            self._connection.commit()

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise SupabaseError(self._database.explain(error, doing, _HINTS)) from None
