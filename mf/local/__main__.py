"""``python -m mf.local --home DIR [--database NAME]``: run an embedded Supabase until Ctrl-C."""

import argparse
import contextlib
import signal
import sys
import threading
from pathlib import Path

from mf.errors import MfError
from mf.local import LocalSupabase


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mf.local", description="Run an embedded Supabase until Ctrl-C.")
    parser.add_argument("--home", type=Path, required=True, help="folder for its data")
    parser.add_argument("--database", default="sample", help="name of the database (default: sample)")
    flags = parser.parse_args()
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
    sys.exit(main())
