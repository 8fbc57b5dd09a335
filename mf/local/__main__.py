"""``python -m mf.local --home DIR [--database NAME]``: run an embedded Supabase until Ctrl-C."""

import contextlib
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from mf.errors import MfError, reported
from mf.flags import Parser
from mf.local import LocalSupabase

HOME = Path(".mf") / "supabase"


def main(argv: Sequence[str], prog: str = "python -m mf.local") -> int:
    parser = Parser(prog, "Run an embedded Supabase until Ctrl-C.")
    parser.add_argument("--home", type=Path, default=HOME, help=f"folder for its data (default: {HOME})")
    parser.add_argument("--database", default="sample", help="name of the database (default: sample)")
    with reported():
        flags = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        # Ctrl-C is the normal way to stop it.
        with contextlib.suppress(KeyboardInterrupt), LocalSupabase(flags.home, flags.database) as supabase:
            print(f"SUPABASE_URL={supabase.url}")
            print(f"SUPABASE_KEY={supabase.secret_key}")
            print(f"SUPABASE_PUBLISHABLE_KEY={supabase.publishable_key}")
            print(f"SUPABASE_DB_URL={supabase.db_url}", flush=True)
            print("Ctrl-C stops it; the data are kept.", file=sys.stderr)
            threading.Event().wait()
    except MfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
