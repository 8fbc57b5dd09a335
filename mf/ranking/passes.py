"""Progress of a fit of the ranking model, pass by pass."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class PassReport:
    """One finished pass over the ratings or the vectors."""

    what: str  # "teacher 128/512 directions"
    seconds: float  # since the fit began

    def line(self) -> str:
        """The line that is printed for the pass."""
        return f"ranking  {self.what}  {self.seconds:.1f} s"


class Passes:
    """Reports each pass of a fit to ``callback``."""

    def __init__(self, callback: Callable[[PassReport], None] | None) -> None:
        self._callback, self._start = callback, time.monotonic()

    def done(self, what: str) -> None:
        if self._callback:
            self._callback(PassReport(what, time.monotonic() - self._start))
