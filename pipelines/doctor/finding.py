"""The result of a check, and running a group of checks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mf.errors import one_line


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        state: ok; missing: something that a run needs is not there; unknown: the check could not decide.
        message: the facts.
        fix: a command to run, or what else to do.
    """

    state: Literal["ok", "missing", "unknown"]
    message: str
    fix: str = ""

    def line(self, name: str) -> str:
        """The finding as one line of output."""
        text = f"{name}: {self.message}" + (f": {self.fix}" if self.fix else "")
        return f"{self.state:<8} {one_line(text)}"


def ok(message: str) -> Finding:
    return Finding("ok", message)


def missing(message: str, fix: str) -> Finding:
    return Finding("missing", message, fix)


def unknown(message: str, fix: str = "") -> Finding:
    return Finding("unknown", message, fix)


class HaltError(Exception):
    """Something is missing that this check and all later ones of its group need; ``str()`` says what."""


# The name to print, and the function that checks.
Check = tuple[str, Callable[[], Finding]]


def run_checks(checks: Sequence[Check]) -> bool:
    """Runs a group of checks and prints one line per check; true when nothing is missing.

    The checks that a ``HaltError`` skips share one line.
    """
    complete = True
    for position, (name, check) in enumerate(checks):
        try:
            finding = check()
        except HaltError as halt:
            print(unknown(str(halt)).line(", ".join(name for name, _ in checks[position:])), flush=True)
            break
        print(finding.line(name), flush=True)
        complete &= finding.state != "missing"
    return complete
