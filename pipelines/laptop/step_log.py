"""Filters the output of ``kfp.local``: steps' lines and their progress on the terminal, everything in a file."""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

STEP_STARTED = re.compile(r"Executing task \S*?'([\w-]+)'")
# Progress in a step's own line: "epoch 3/12", "teacher 64/320 directions", "export users: 1,000 of 6,040 rows".
COUNTED = re.compile(r"([\d,]+)(?:/| of )([\d,]+)")
SILENCE_S = 10.0  # without a line for this long, a line says that the step is still running
BAR_S = 0.5  # between two moves of the bar
BAR_WIDTH = 20
KFP_LINE = re.compile(r"\[KFP Executor [^]]*\]: ")


class StepLog:
    """Replacement for ``sys.stdout`` during a run.

    Writes every line to a file, and the steps' own lines to ``terminal`` as well, prefixed with the step's name. While
    a step runs, a terminal shows a bar with the step's time; any other output gets a line for every ``SILENCE_S``
    seconds in which the step itself prints none.

    Args:
        file: everything is written there.
        terminal: the terminal, or a pipe or file in its place.
        clock: gives the time in seconds.

    Attributes:
        step: the step that was started last.
        error: text of the failed step's ``error: …`` line, if it printed one.
    """

    def __init__(self, file: Path, terminal: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file.open("w")
        self._terminal, self._clock = terminal, clock
        self.step, self.error = "", ""
        self._line, self._running, self._in_json = "", False, False
        self._bars = terminal.isatty()
        self._started = self._said = clock()
        self._share: float | None = None  # of the step's present work
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._ticker = threading.Thread(target=self._tick_until_closed, daemon=True)
        self._ticker.start()

    def write(self, text: str) -> int:
        self._file.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._show(line)
        return len(text)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._closed.set()
        self._ticker.join()
        self._running = False
        self._clear()
        self._file.close()

    def tick(self) -> None:
        """Moves the bar or, without a terminal, says that a silent step is still running."""
        with self._lock:
            if not self._running:
                return
            seconds = self._clock() - self._started
            if self._bars:
                self._terminal.write(f"\r\x1b[K{self.step:<9} {_bar(self._share, seconds)}")
                self._terminal.flush()
            elif self._clock() - self._said >= SILENCE_S:
                self._say(f"still running, {seconds:.0f} s")

    def _tick_until_closed(self) -> None:
        while not self._closed.wait(BAR_S):
            self.tick()

    def _say(self, line: str) -> None:
        self._clear()
        # Not print(), which kfp.local replaces while a step runs.
        self._terminal.write(f"{self.step:<9} {line}\n")
        self._terminal.flush()
        self._said = self._clock()

    def _clear(self) -> None:
        if self._bars:
            self._terminal.write("\r\x1b[K")
            self._terminal.flush()

    def isatty(self) -> bool:
        return False

    def _show(self, line: str) -> None:
        with self._lock:
            self._show_line(line)

    def _show_line(self, line: str) -> None:
        if match := STEP_STARTED.search(line):
            self.step, self._running, self._share = match[1], True, None
            self._started = self._said = self._clock()
        elif "finished with status" in line:
            self._running = False
        elif KFP_LINE.search(line):
            self._in_json = line.endswith("executor_input:")
        elif self._in_json:
            # KFP prints the step's input as indented JSON, up to a line with only a brace.
            self._in_json = line.rstrip() != "    }"
        elif line.startswith("    error: "):
            self.error = line.strip().removeprefix("error: ")
        elif line.startswith("    ") and line.strip() and self._running:
            self._say(line[4:])
            self._share = _share(line)


def _share(line: str) -> float | None:
    """The share of the work that a line says is done: 0.25 for ``epoch 3/12``; None without one."""
    if not (found := COUNTED.search(line)):
        return None
    done, total = (int(number.replace(",", "") or 0) for number in found.groups())
    return done / total if total > 0 and done <= total else None


def _bar(share: float | None, seconds: float) -> str:
    """A bar with a percentage where the share is known, else one that moves with the time."""
    if share is None:
        place = int(seconds / BAR_S) % BAR_WIDTH
        return f"[{' ' * place}={' ' * (BAR_WIDTH - 1 - place)}]      {seconds:.0f} s"
    full = round(share * BAR_WIDTH)
    return f"[{'=' * full}{' ' * (BAR_WIDTH - full)}] {share:4.0%} {seconds:.0f} s"
