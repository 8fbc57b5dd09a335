"""Progress bar on a terminal, log lines elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

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
        if not self._bar.disable:
            Silence.end()  # the bar has moved
        if self._bar.disable and now - self._last >= LOG_EVERY_S:
            self._last = now
            of = f" of {self.total:,}" if self.total else ""
            rate = self.done / (now - self._start)
            print(f"{self.what}: {self.done:,}{of} {self.unit}, {rate:,.0f} per second", file=sys.stderr, flush=True)
            Silence.end()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


class Silence:
    """Prints to stderr that a command is still running, for every ``LOG_EVERY_S`` seconds in which nothing is shown.

    Args:
        clock: gives the time in seconds.
    """

    _watched: "Silence | None" = None

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._shown = clock()

    @classmethod
    def end(cls) -> None:
        """Something was shown: a line, or a bar that moved."""
        if watched := cls._watched:
            watched._shown = watched._clock()

    def tick(self) -> None:
        """Prints the line if it is due."""
        now = self._clock()
        if now - self._shown >= LOG_EVERY_S:
            print(f"still running, {now - self._began:.0f} s", file=sys.stderr, flush=True)
            self._shown = now

    @classmethod
    @contextmanager
    def watched(cls, clock: Callable[[], float] = time.monotonic, every_s: float = 1.0) -> Iterator["Silence"]:
        """Watches stdout and the bars of ``Progress`` during the block; ``every_s``: seconds between two looks."""
        silence, over, stdout = cls(clock), threading.Event(), sys.stdout
        cls._watched, sys.stdout = silence, _Noted(stdout)

        def look() -> None:
            while not over.wait(every_s):
                silence.tick()

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield silence
        finally:
            over.set()
            thread.join()
            cls._watched, sys.stdout = None, stdout


class _Noted:
    """A stream whose writes end a silence."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        Silence.end()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
