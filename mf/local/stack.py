"""An embedded Supabase: PostgreSQL, PostgREST, sign-in and the gateway, started and stopped together."""

import contextlib
from pathlib import Path
from typing import Any, Self

import psycopg

from mf.errors import SupabaseError
from mf.local import auth, project
from mf.local.gateway import Gateway
from mf.local.keys import VALID_S, Keys, jwt
from mf.local.postgres import Postgres, checked_name
from mf.local.postgrest import PostgREST


class LocalSupabase:
    """A Supabase project on 127.0.0.1; a context manager.

    No process is left running after the block, however the program ends. The data stay in ``home``.

    Args:
        home: folder for this alone; it holds several databases, and one program uses it at a time.
        database: the project's database, created if it does not exist; a-z, 0-9 and _.
        max_rows: maximum rows per API response; Supabase's default is 1000.
        legacy_grants: grant new tables and functions to the API's roles, as projects created before 2026-10-30 do.
        postgres: the running cluster of another instance, to open a second database in it; default: start one.
        keys: of the API; default: new ones, in memory only.
        port: of the API; 0: chosen by the system.

    Attributes:
        secret_key, publishable_key: ``sb_secret_…`` of the service role, ``sb_publishable_…`` of the role anon.
        service_role_key, anon_key: the legacy JWTs of the same roles.
        gateway: the API's gateway, with a log of its requests.
        postgres: the cluster.

    Raises:
        ConfigError: the database's name is not allowed.
        SupabaseError: the home is in use, or a server does not start.
    """

    gateway_class: type[Gateway] = Gateway

    def __init__(
        self,
        home: Path,
        database: str = "sample",
        *,
        max_rows: int = 1000,
        legacy_grants: bool = False,
        postgres: Postgres | None = None,
        keys: Keys | None = None,
        port: int = 0,
    ) -> None:
        self.home, self.database = Path(home), checked_name(database)
        self.keys, self._port = keys or Keys(), port
        self._max_rows, self._legacy_grants, self._given = max_rows, legacy_grants, postgres

    def __enter__(self) -> Self:
        keys = self.keys
        self.secret_key, self.publishable_key = keys.secret_key, keys.publishable_key
        self.service_role_key, self.anon_key = keys.service_role_key, keys.anon_key
        with contextlib.ExitStack() as stack:
            self.postgres = self._given or stack.enter_context(Postgres(self.home))
            self.postgres.create(self.database)
            with self.connect() as connection:
                connection.execute(project.default_privileges(self._legacy_grants).encode())
                connection.execute(auth.TABLES)
            self._rest = stack.enter_context(
                PostgREST(self.postgres, self.database, jwt_secret=keys.jwt_secret, max_rows=self._max_rows)
            )
            users = auth.Auth(self.connect, keys.jwt_secret)
            try:
                gateway = self.gateway_class(self._rest.port, keys.tokens(), users, self._port)
            except OSError as error:
                raise SupabaseError(f"port {self._port} of 127.0.0.1: {error.strerror}; choose another port") from None
            self.gateway = stack.enter_context(contextlib.closing(gateway))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """The value for ``SUPABASE_URL``."""
        return f"http://127.0.0.1:{self.gateway.port}"

    @property
    def db_url(self) -> str:
        """The value for ``SUPABASE_DB_URL``: the connection of the superuser ``postgres``, with its password."""
        return self.postgres.url(self.database)

    def user_token(self, user_id: str, valid_s: int = VALID_S) -> str:
        """The JWT of a signed-in user: role ``authenticated``, ``auth.uid()`` = ``user_id`` (a UUID).

        It is sent as the bearer token with the publishable key, and is valid for ``valid_s`` seconds.
        """
        return jwt(self.keys.jwt_secret, "authenticated", valid_s=valid_s, sub=user_id, aud="authenticated")

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """An autocommit connection of the superuser to the database; a ``with`` block closes it."""
        return self.postgres.connect(self.database)

    def migrate(self, sql: str) -> None:
        """Run ``sql`` in one transaction and wait until the API serves the new schema.

        Raises:
            SupabaseError: PostgreSQL refused it, with its message and code; nothing was changed.
        """
        try:
            with self.connect() as connection, connection.transaction():
                connection.execute(sql.encode())
        except psycopg.Error as error:
            line = sql.count("\n", 0, int(error.diag.statement_position or 1) - 1) + 1
            what = error.diag.message_primary or str(error).splitlines()[0]
            raise SupabaseError(f"line {line} of the migration was refused: {what} ({error.sqlstate})") from None
        self._rest.reload(self.service_role_key)


def databases(home: Path) -> list[str]:
    """The databases in ``home``, sorted; empty if the folder has never been used. It must not be in use (for a running
    one call ``LocalSupabase.postgres.databases()``)."""
    if not (Path(home) / "pgdata").exists():
        return []
    with Postgres(home) as postgres:
        return postgres.databases()


def recreate_database(home: Path, database: str) -> None:
    """Drop ``database`` of ``home`` and create it again, empty. The home must not be in use."""
    checked_name(database)
    with Postgres(home) as postgres:
        postgres.drop(database)
        postgres.create(database)
