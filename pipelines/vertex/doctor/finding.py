"""What a check found, and the run of a group of checks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        state: ok; missing: something is needed and is not there; unknown: it could not be found out.
        said: what was found.
        todo: what to run or to do.
    """

    state: Literal["ok", "missing", "unknown"]
    said: str
    todo: str = ""

    def line(self, name: str) -> str:
        """One line for a person."""
        said = f"{name}: {self.said}" + (f": {self.todo}" if self.todo else "")
        # What a server said may hold line ends.
        return f"{self.state:<8} {' '.join(said.split())}"


def ok(said: str) -> Finding:
    return Finding("ok", said)


def missing(said: str, todo: str) -> Finding:
    return Finding("missing", said, todo)


def unknown(said: str, todo: str = "") -> Finding:
    return Finding("unknown", said, todo)


class HaltError(Exception):
    """What this check and all behind it in its group need is not there; ``str()`` says what."""


# A name for the line, and what looks.
Check = tuple[str, Callable[[], Finding]]


def run(checks: Sequence[Check]) -> bool:
    """Prints a line a check as it goes; what a ``HaltError`` leaves out shares one. True when nothing is missing."""
    whole = True
    for position, (name, look) in enumerate(checks):
        try:
            finding = look()
        except HaltError as halt:
            print(unknown(str(halt)).line(", ".join(rest for rest, _ in checks[position:])), flush=True)
            break
        print(finding.line(name), flush=True)
        whole &= finding.state != "missing"
    return whole
