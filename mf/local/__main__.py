"""``python -m mf local``: run an embedded Supabase until Ctrl-C."""

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from mf.errors import ConfigError, MfError, reported
from mf.flags import Parser
from mf.local import LocalSupabase
from mf.local.keys import Keys
from mf.local.postgres import checked_name
from mf.local.seed import seed

HOME = Path(".mf") / "supabase"
PORT = 54321  # of the Supabase CLI


def main(argv: Sequence[str], prog: str = "python -m mf.local") -> int:
    parser = Parser(prog, "Run an embedded Supabase until Ctrl-C, with PostgreSQL, the API and sign-in.")
    parser.add_argument("--home", type=Path, default=HOME, help=f"folder for its data (default: {HOME})")
    parser.add_argument(
        "--database", help="name of the database (default: app with --ratings_csv, else sample, which make run fills)"
    )
    parser.add_argument("--port", type=int, help=f"port of the API (default: {PORT}, or a free one if it is taken)")
    parser.add_argument("--ratings_csv", type=Path, help="file of ratings to fill the database with, once")
    parser.add_argument(
        "--sql", type=Path, action="append", default=[], help="file of SQL to run at the start; repeatable"
    )
    with reported():
        flags = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        port = flags.port if flags.port is not None else (PORT if _is_free(PORT) else 0)
        # Ctrl-C is the normal way to stop it.
        with (
            contextlib.suppress(KeyboardInterrupt),
            _project(flags.home, flags.database or ("app" if flags.ratings_csv else "sample"), port) as supabase,
        ):
            if flags.ratings_csv:
                print(seed(supabase, flags.ratings_csv), file=sys.stderr)
            for file in flags.sql:
                supabase.migrate(_text(file))
            print(f"SUPABASE_URL={supabase.url}")
            print(f"SUPABASE_KEY={supabase.secret_key}")
            print(f"SUPABASE_PUBLISHABLE_KEY={supabase.publishable_key}")
            print(f"SUPABASE_DB_URL={supabase.db_url}", flush=True)
            print("Ctrl-C stops it; the data and the keys are kept.", file=sys.stderr)
            threading.Event().wait()
    except MfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _project(home: Path, database: str, port: int) -> LocalSupabase:
    checked_name(database)  # before the keys are written
    return LocalSupabase(home, database, port=port, keys=Keys.kept(home / "keys.json"))


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot read this file of SQL: {error}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
