"""Errors that the user can fix."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mf.leaks import hidden
from mf.terminal import printable


class MfError(Exception):
    """Base of all errors of this library.

    ``str()`` is one sentence: what was found, what was expected, where, and what to do. Command lines print it as
    ``error: …`` and exit with ``exit_status``, without a stack trace."""

    exit_status = 2


class ConfigError(MfError):
    """Invalid flags, parameters or settings.

    Attributes:
        faults: one sentence per invalid value.
    """

    def __init__(self, *faults: str) -> None:
        count = f"{len(faults)} values are not valid: " if len(faults) > 1 else ""
        super().__init__(count + "; ".join(faults))
        self.faults = faults


class DataError(MfError):
    """Unreadable ratings, or an incomplete model directory."""


class TrainingError(MfError):
    """A training that diverged: a value is not finite, or mu lies outside the rating range."""


class KilledError(MfError):
    """A process of the training that a signal ended: no mistake of the user's."""

    exit_status = 1


class SupabaseError(MfError):
    """A failed request to Supabase: key, grant, table, function or network.

    Attributes:
        code: SQLSTATE of the database or PostgREST's error code; empty without one.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Turns a failed import in the block into an ``MfError`` that says which extra of the package to install."""
    try:
        yield
    except ImportError as error:
        package = f"mf[{extra}]"
        raise MfError(f"{what} needs the Python module {error.name}: pip install '{package}'") from None


@contextmanager
def reported() -> Iterator[None]:
    """Prints an ``MfError`` or ``OSError`` (no permission, no space) of the block as ``error: …`` on stderr, one line
    without secrets, and exits with the error's status, as a rule 2."""
    try:
        yield
    except BrokenPipeError:
        sys.exit(1)  # the reader of the output, such as head, has enough
    except Exception as error:
        # psycopg is not imported by every command.
        if not isinstance(error, MfError | OSError) and not type(error).__module__.startswith("psycopg"):
            raise
        print("error:", one_line(error), file=sys.stderr, flush=True)
        sys.exit(getattr(error, "exit_status", 2))


# Advice by the error number of an ``OSError``.
ADVICE = {
    errno.ENOSPC: "the disk is full: free some room, or set TMPDIR (temporary files) or the output to another disk",
    errno.EDQUOT: "the quota of the disk is used up: free some room",
    errno.EFBIG: "the file is larger than a limit allows: raise it (ulimit -f)",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.EROFS: "the disk is read-only: name another place",
}


def one_line(error: BaseException | str) -> str:
    """An error or a text on one line, without secrets and control characters; blanks within a line stay."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno in ADVICE:
        text = f"{error.filename or error.strerror}: {ADVICE[error.errno]}"
    # File names and server responses may contain line breaks.
    return printable(hidden(" ".join(filter(None, map(str.strip, text.splitlines())))))
