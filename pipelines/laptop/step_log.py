"""What a run through ``kfp.local`` prints, without the runner's own chatter."""

import re
from pathlib import Path
from typing import TextIO

STARTS = re.compile(r"Executing task \S*?'([\w-]+)'")
RUNNER = re.compile(r"\[KFP Executor [^]]*\]: ")


class StepLog:
    """Stands in for ``sys.stdout``: every line goes to a file, the steps' own lines go to ``terminal`` too, behind the
    step's name.

    Attributes:
        step: the last one that was started.
        error: what the step that failed said of it, when it said so in one line.
    """

    def __init__(self, file: Path, terminal: TextIO) -> None:
        self._file = file.open("w")
        self._terminal = terminal
        self.step, self.error = "", ""
        self._line, self._running, self._in_json = "", False, False

    def write(self, text: str) -> int:
        self._file.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._show(line)
        return len(text)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def isatty(self) -> bool:
        return False

    def _show(self, line: str) -> None:
        if started := STARTS.search(line):
            self.step, self._running = started[1], True
        elif "finished with status" in line:
            self._running = False
        elif RUNNER.search(line):
            self._in_json = line.endswith("executor_input:")
        elif self._in_json:
            # The runner prints its input over many lines; the closing brace alone on a line ends it.
            self._in_json = line.rstrip() != "    }"
        elif line.startswith("    error: "):
            self.error = line.strip().removeprefix("error: ")
        elif line.startswith("    ") and line.strip() and self._running:
            # Not print(): kfp.local puts its own in that one's place while a step runs.
            self._terminal.write(f"{self.step:<9} {line[4:]}\n")
            self._terminal.flush()
