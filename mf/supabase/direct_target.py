"""Publishing and reading the published run over the direct database connection.

An export is one transaction: COPY of users and movies, then the publish; old runs are removed after it.
"""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.copy import QueuedLibpqWriter
from psycopg.types.json import Jsonb

from mf.errors import SupabaseError
from mf.model_directory import Embeddings, PublishedModel
from mf.progress import Progress
from mf.supabase.binary_copy import COPY_BEGIN, COPY_END, copy_records
from mf.supabase.config import ExportConfig
from mf.supabase.database import Database
from mf.supabase.recommend import READ_RUN, Entity, incomplete
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

    def embeddings(self, run: PublishedRun) -> tuple[Embeddings, Embeddings]:
        with snapshot(self.database, f"read run {run.header.run_id}") as cursor:
            options = json.loads(select(cursor, "select public.mf_schema()::text as options")["options"][0].as_py())
            return _read(cursor, "user", run, run.users, options), _read(cursor, "movie", run, run.movies, options)


_EMBEDDINGS = "select {id} as id, e.bias, e.embedding::float4[] as vector from {table} e where e.run_id = {run}"


def _read(cursor: Any, entity: Entity, run: PublishedRun, n: int, options: MigrationOptions) -> Embeddings:
    kind = "int8" if options[f"{entity}_id_type"] == "bigint" else "text"
    parts: dict[str, str | sql.Composable] = {
        "id": sql.SQL(f"e.{entity}_id::{kind}"),
        "table": sql.Identifier("public", f"mf_{entity}_embeddings"),
        "run": run.header.run_id,
    }
    rows = select(cursor, _EMBEDDINGS, **parts)
    if len(rows) != n:
        raise incomplete(run.header.run_id)
    ids, biases, vectors = (rows[name].combine_chunks() for name in ("id", "bias", "vector"))
    return Embeddings(ids, biases.to_numpy(), vectors.flatten().to_numpy().reshape(n, run.header.factors))


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
        # No time limit for building an index.
        self.set(statement_timeout="0" if function == "mf_index" else SETTINGS["statement_timeout"])
        with self._explained(doing):
            row = self._connection.execute(statement, values).fetchone()
        return row[0] if row else None

    def load(self, model: PublishedModel, options: MigrationOptions, config: ExportConfig) -> None:
        run_id = model.header.run_id
        with self._explained(f"lock run {run_id}"):
            # An export of the same run through the API waits from here on, and then finds it published.
            self._connection.execute("select from public.mf_runs where run_id = %s for update", [run_id])
        entities: tuple[tuple[Entity, Embeddings], ...] = (("movie", model.movies), ("user", model.users))
        for entity, rows in entities:
            with self._explained(f"write the {entity}s of run {run_id}"):
                self._copy(entity, run_id, rows, options[f"{entity}_id_type"])

    def _copy(self, entity: Entity, run_id: str, rows: Embeddings, kind: str) -> None:
        names = {"table": sql.Identifier("public", f"mf_{entity}_embeddings"), "id": sql.Identifier(f"{entity}_id")}
        # Rows that an interrupted export through the API has left.
        self._connection.execute(sql.SQL("delete from {table} where run_id = %s").format(**names), [run_id])
        statement = "copy {table} (run_id, {id}, bias, embedding) from stdin (format binary)"
        cursor = self._connection.cursor()
        # The writer sends in a thread of its own, so that the server does not wait while rows are encoded.
        copying = cursor.copy(sql.SQL(statement).format(**names), writer=QueuedLibpqWriter(cursor))
        with Progress(f"export {entity}s", len(rows)) as progress, copying as copy:
            copy.write(COPY_BEGIN)
            for records in copy_records(run_id, rows, kind):
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
