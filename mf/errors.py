"""What goes wrong in a way that the person at the keyboard can mend."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class MfError(Exception):
    """The base of every error of this library. ``str()`` is one sentence: what was found, what was expected, where, and
    what to do. Command lines print it as ``error: …`` and exit with 2; it never needs a stack trace."""


class ConfigError(MfError):
    """Flags, parameters or settings that are not valid.

    Attributes:
        faults: one sentence for each of them.
    """

    def __init__(self, *faults: str) -> None:
        count = f"{len(faults)} values are not valid: " if len(faults) > 1 else ""
        super().__init__(count + "; ".join(faults))
        self.faults = faults


class DataError(MfError):
    """Ratings that cannot be read, or a model directory that does not hold what it should."""


class TrainingError(MfError):
    """A training that cannot go on (a value that is not finite)."""


class SupabaseError(MfError):
    """Supabase, or the way to it, refused: a key, a grant, a table, a function, the network.

    Attributes:
        code: the database's SQLSTATE or PostgREST's own; empty where the API did not give one.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def reported() -> Iterator[None]:
    """Turns an ``MfError`` of the block, or a file system's refusal (no permission, no space), into one line on stderr,
    ``error: …``, and exit status 2."""
    try:
        yield
    except (MfError, OSError) as error:
        # A file's name, or what a server said, may hold line ends.
        print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
        sys.exit(2)
