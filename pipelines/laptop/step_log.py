"""Filters the output of ``kfp.local``: steps' lines on the terminal, everything in a file."""

import re
from pathlib import Path
from typing import TextIO

STEP_STARTED = re.compile(r"Executing task \S*?'([\w-]+)'")
KFP_LINE = re.compile(r"\[KFP Executor [^]]*\]: ")


class StepLog:
    """Replacement for ``sys.stdout`` during a run.

    Writes every line to a file, and the steps' own lines to ``terminal`` as well, prefixed with the step's name.

    Attributes:
        step: the step that was started last.
        error: text of the failed step's ``error: …`` line, if it printed one.
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
        if match := STEP_STARTED.search(line):
            self.step, self._running = match[1], True
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
            # Not print(), which kfp.local replaces while a step runs.
            self._terminal.write(f"{self.step:<9} {line[4:]}\n")
            self._terminal.flush()
