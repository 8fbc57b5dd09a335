"""Checkpoint file of an unfinished training, and the progress callback."""

import glob
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mf.errors import DataError
from mf.files import written_aside
from mf.solvers import EpochReport
from mf.solvers.base import Callback
from mf.tensors import load_tensors


class CheckpointFile:
    """A checkpoint file, replaced atomically: a kill leaves the previous one.

    That holds on a mounted bucket too, where a rename is a copy: an object appears whole or not at all.

    Args:
        path: the file; it need not exist.
        share: largest share of the time for saving, above 0 and at most 1. After a slow save, such as a large state's
            to a mounted bucket, the next ones are skipped.

    Attributes:
        epochs: number of finished epochs in the state that ``load`` returned last.
    """

    def __init__(self, path: Path, share: float = 1.0) -> None:
        self.path, self.share = path, share
        self.epochs = 0
        self._due = 0.0

    def load(self) -> dict[str, Any] | None:
        """The state saved last; ``None`` if the file does not exist.

        Raises:
            DataError: the file is not a checkpoint.
        """
        if not self.path.exists():
            return None
        try:
            state = load_tensors(self.path)
            if missing := {"settings", "solver_state", "reports"} - set(state):
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        except Exception as error:  # torch.load raises many types on garbage
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{self.path} is not a checkpoint: {reason}; delete it to start from scratch, or choose another file"
            ) from None
        self.epochs = len(state["reports"])
        return dict(state)

    def due(self) -> bool:
        """Whether saving has taken no more than its share of the time."""
        return time.monotonic() >= self._due

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the file, unless saving has taken more than its share of the time."""
        started = time.monotonic()
        if started < self._due:
            return
        with written_aside(self.path) as aside, aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            # A mounted bucket uploads the file here, and reports a failure.
            os.fsync(file.fileno())
        ended = time.monotonic()
        self._due = ended + (ended - started) * (1 / self.share - 1)

    def remove(self) -> None:
        """Deletes the file, and unfinished files of killed processes."""
        self.path.unlink(missing_ok=True)
        for part in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.part"):
            part.unlink(missing_ok=True)


def say_at_once(line: str) -> None:
    """Print a line without waiting for a full buffer."""
    print(line, flush=True)


def reporter(checkpoint: CheckpointFile | None, say: Callable[[str], None] = say_at_once) -> Callback:
    """A callback that gives ``say`` one line per epoch; on resuming, one line for all finished epochs."""

    def report(epoch: EpochReport) -> None:
        done = checkpoint.epochs if checkpoint else 0
        if checkpoint and epoch.epoch == done:
            say(_resuming(checkpoint.path, done, epoch.epochs))
        elif epoch.epoch > done:
            say(epoch.line())

    return report


def _resuming(path: Path, done: int, epochs: int) -> str:
    if done == epochs:
        return f"resuming from {path}: all {epochs} epochs are done"
    return f"resuming from {path} at epoch {done + 1}/{epochs}"
