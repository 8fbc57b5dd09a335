"""PostgREST server of one database, configured as Supabase does."""

import http.client
import secrets
import signal
import time

from psycopg import sql

from mf.errors import SupabaseError
from mf.local.postgres import Postgres, free_port, wait_until
from mf.local.tools import default_cache, postgrest_binary
from mf.local.watchdog import end

RELOAD_TIMEOUT_S = 15.0


class PostgREST:
    """The running server; a context manager.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self, postgres: Postgres, database: str, *, jwt_secret: str, max_rows: int) -> None:
        self._postgres, self._database = postgres, database
        self._jwt_secret, self._max_rows = jwt_secret, max_rows

    def __enter__(self) -> "PostgREST":
        binary = postgrest_binary(default_cache())
        log = self._postgres.home / f"postgrest.{self._database}.log"
        self.port, admin_port = free_port(), free_port()
        with log.open("wb") as out:
            self._process = self._postgres.watchdog.spawn(
                [str(binary)], signal.SIGTERM, env=self._environment(admin_port), stdout=out, stderr=out
            )
        wait_until(lambda: _ok(admin_port, "/ready"), "PostgREST", self._process, log)
        return self

    def __exit__(self, *error: object) -> None:
        end(self._process, signal.SIGTERM)

    def reload(self, token: str) -> None:
        """Reload the schema and wait until it is in use. ``token`` is a service_role JWT.

        Raises:
            SupabaseError: it is not after ``RELOAD_TIMEOUT_S``.
        """
        # A function that is new to the server: when it can be called, the new schema is in use.
        name = f"mf_local_reloaded_{secrets.token_hex(8)}"
        probe = sql.Identifier("public", name)
        with self._postgres.connect(self._database) as connection:
            connection.execute(sql.SQL("create function {}() returns int language sql as 'select 1'").format(probe))
            connection.execute(sql.SQL("grant execute on function {}() to service_role").format(probe))
            try:
                connection.execute("notify pgrst, 'reload schema'")
                self._await(f"/rpc/{name}", token)
            finally:
                connection.execute(sql.SQL("drop function {}()").format(probe))

    def _await(self, path: str, token: str) -> None:
        deadline = time.monotonic() + RELOAD_TIMEOUT_S
        while not _ok(self.port, path, token):
            if time.monotonic() > deadline:
                raise SupabaseError(f"PostgREST did not reload the schema within {RELOAD_TIMEOUT_S:.0f} s")
            time.sleep(0.02)

    def _environment(self, admin_port: int) -> dict[str, str]:
        return {
            "LANG": "C.UTF-8",
            "PGRST_DB_URI": self._postgres.url(self._database, "authenticator"),
            "PGRST_DB_SCHEMAS": "public",
            "PGRST_DB_EXTRA_SEARCH_PATH": "public,extensions",
            "PGRST_DB_ANON_ROLE": "anon",
            "PGRST_DB_MAX_ROWS": str(self._max_rows),
            "PGRST_JWT_SECRET": self._jwt_secret,
            "PGRST_SERVER_HOST": "127.0.0.1",
            "PGRST_SERVER_PORT": str(self.port),
            "PGRST_ADMIN_SERVER_PORT": str(admin_port),
            "PGRST_LOG_LEVEL": "error",
        }


def _ok(port: int, path: str, token: str | None = None) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        return connection.getresponse().status == 200
    except (http.client.HTTPException, OSError):
        return False
    finally:
        connection.close()
