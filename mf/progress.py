"""Progress bar on a terminal, log lines elsewhere."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

from mf.terminal import printable

LOG_EVERY_S = 10.0


class Progress:
    """``with Progress("export users", total=610, unit="rows") as p: p.advance(100)``.

    On a terminal it shows a tqdm bar until the end; elsewhere it prints a line to stderr every ``LOG_EVERY_S`` seconds,
    and none for work that ends sooner.

    Args:
        what: name of the work.
        total: number of units; ``None`` if unknown.
        unit: name of the unit, plural.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "rows") -> None:
        what = printable(what)
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self._start = self._last = time.monotonic()
        self._bar = tqdm(total=total, desc=what, unit=f" {unit}", unit_scale=True, leave=False, disable=None)

    def advance(self, n: int) -> None:
        """Counts ``n`` more finished units."""
        self.done += n
        self._bar.update(n)
        now = time.monotonic()
        if self._bar.disable and now - self._last >= LOG_EVERY_S:
            self._last = now
            of = f" of {self.total:,}" if self.total else ""
            rate = self.done / (now - self._start)
            print(f"{self.what}: {self.done:,}{of} {self.unit}, {rate:,.0f} per second", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
