"""The PostgreSQL server of a home: one cluster, with one database per source."""

import contextlib
import fcntl
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from mf.errors import ConfigError, SupabaseError
from mf.local import project
from mf.local.place import Place, place
from mf.local.watchdog import Watchdog, end, end_all

START_TIMEOUT_S = 30.0
PORTS = range(20_000, 30_000)
_given_ports: set[int] = set()  # not to be given twice: a server takes a moment to bind its port
# fsync off: the page cache survives any kill of processes, also kill -9, and these data need not survive a power
# failure. The other safeguards stay on: a killed server recovers from its log, and no committed row is lost.
SETTINGS = {
    "fsync": "off",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_wal_size": "1GB",
    "timezone": "UTC",
}


class Postgres:
    """The running cluster of ``home``, with superuser ``postgres``; a context manager.

    Attributes:
        watchdog: starts processes that end with this program.
        port: on 127.0.0.1, chosen at each start.

    Raises:
        SupabaseError: the home is in use by another process, or PostgreSQL does not start.
    """

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()

    def __enter__(self) -> "Postgres":
        with contextlib.ExitStack() as stack:
            stack.enter_context(_locked(self.home))
            where = place(self.home)
            _end_orphans(where.data)
            self.watchdog = Watchdog()
            stack.callback(self.watchdog.close)
            # The password file is moved into the data folder last: without it the next start creates a new cluster.
            pending, final = where.data.with_name("postgres.password"), where.data / "postgres.password"
            new = not final.exists()
            if new:
                _initdb(where, pending, self.watchdog)
            self._passwords = {"postgres": (pending if new else final).read_text()}
            process = self._start(where)
            stack.callback(end, process, signal.SIGINT)  # a fast shutdown
            if new:
                self._bootstrap()
                pending.rename(final)
            self._renew_authenticator()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def url(self, database: str, user: str = "postgres") -> str:
        """The connection URL, with password, for ``postgres`` or ``authenticator``."""
        # Override the user's PGSSLMODE, which is meant for other servers.
        return f"postgresql://{user}:{self._passwords[user]}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[Any, ...]]:
        """An autocommit connection of the superuser."""
        return psycopg.connect(self.url(database), autocommit=True)

    def databases(self) -> list[str]:
        """The names of the databases created here, sorted."""
        with self.connect() as connection:
            rows = connection.execute(
                "select datname from pg_database where not datistemplate and datname <> 'postgres' order by 1"
            )
            return [name for (name,) in rows]

    def create(self, database: str) -> None:
        """Create an empty Supabase project, unless it exists."""
        if checked_name(database) in self.databases():
            return
        with self.connect() as connection:
            name = sql.Identifier(database)
            connection.execute(sql.SQL("create database {}").format(name))
            path = sql.SQL('alter database {} set search_path = "$user", public, extensions')
            connection.execute(path.format(name))

    def drop(self, database: str) -> None:
        """Drop a database with its content, if it exists."""
        with self.connect() as connection:
            name = sql.Identifier(checked_name(database))
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(name))

    def _start(self, where: Place) -> "subprocess.Popen[bytes]":
        self.port = free_port()
        settings = [f"--{name}={value}" for name, value in {**SETTINGS, "port": str(self.port)}.items()]
        log = self.home / "postgres.log"
        with log.open("wb") as out:
            process = self.watchdog.spawn(
                [str(where.programs / "bin" / "postgres"), "-D", str(where.data), *settings],
                signal.SIGINT, env={}, stdout=out, stderr=out, **where.run_as,
            )  # fmt: skip
        wait_until(self._answers, "PostgreSQL", process, log)
        return process

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _bootstrap(self) -> None:
        with self.connect("template1") as connection, connection.transaction():
            connection.execute(project.ROLES)
            connection.execute(project.TEMPLATE)

    def _renew_authenticator(self) -> None:
        self._passwords["authenticator"] = secrets.token_urlsafe(24)
        with self.connect() as connection:
            set_password = sql.SQL("alter role authenticator password {}")
            connection.execute(set_password.format(self._passwords["authenticator"]))


def checked_name(database: str) -> str:
    """``database``, if it is an allowed name.

    Raises:
        ConfigError: it is not.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", database) or database in ("postgres", "template0", "template1"):
        raise ConfigError(f"database {database!r}: expected a lower-case letter, then at most 62 of a-z, 0-9 and _")
    return database


def free_port() -> int:
    """A free port of 127.0.0.1, below the range of outgoing connections, which could otherwise take it first.

    Raises:
        SupabaseError: there is none.
    """
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given_ports:
                _given_ports.add(port)
                return port
    raise SupabaseError(f"all ports of 127.0.0.1 from {PORTS[0]} to {PORTS[-1]} are taken: end programs that hold them")


def wait_until(ready: Callable[[], bool], what: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until a server is ready.

    Raises:
        SupabaseError: it ended, or is not ready in time; with the line of its log that tells why.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
            continue
        outcome = "ended at once" if process.poll() is not None else f"was not ready within {START_TIMEOUT_S:.0f} s"
        end(process, signal.SIGTERM)
        lines = log.read_text(errors="replace").splitlines() or ["nothing"]
        why = next((line for line in lines if "FATAL" in line), lines[-1])
        raise SupabaseError(f"{what} {outcome}; {log} says: {why}")


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    try:
        home.mkdir(parents=True, exist_ok=True)
        opened = (home / "lock").open("a+")
    except OSError as error:
        raise SupabaseError(f"{home}: cannot write to this folder ({error.strerror}): choose another home") from None
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise SupabaseError(f"{home} is in use by process {holder}: end it, or use another home") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _end_orphans(data: Path) -> None:
    """End the servers of a killed program: as this process holds the lock, its servers are orphans."""
    orphans = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "postgres" and process.cwd() == str(data.resolve()):
                orphans.append(process)
    end_all([(process, signal.SIGINT) for process in orphans])
    # Left by a crash; its pid may now be another process's, and PostgreSQL would then refuse to start.
    (data / "postmaster.pid").unlink(missing_ok=True)


def _initdb(where: Place, password_file: Path, watchdog: Watchdog) -> None:
    """Create a cluster, in place of what an interrupted start may have left."""
    shutil.rmtree(where.data)
    where.data.mkdir(mode=0o700)
    password_file.unlink(missing_ok=True)
    password_file.touch(mode=0o600)
    password_file.write_text(secrets.token_urlsafe(24))
    if where.run_as:
        for path in (where.data, password_file):
            os.chown(path, where.run_as["user"], where.run_as["group"])
    options = ["--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync", "--auth=scram-sha-256"]
    process = watchdog.spawn(
        [str(where.programs / "bin" / "initdb"), "-D", str(where.data), *options, f"--pwfile={password_file}"],
        signal.SIGTERM, env={}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **where.run_as,
    )  # fmt: skip
    errors = process.communicate()[1].decode(errors="replace").splitlines()
    if process.returncode:
        why = next((line for line in errors if "No space left" in line or "Disk quota" in line), "")
        advice = ": free some room on this disk" if why else ""
        raise SupabaseError(f"{where.data}: initdb failed: {why or (errors or ['no message'])[-1]}{advice}")
