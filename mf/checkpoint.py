"""The state of an unfinished training, in a file."""

import glob
import os
import time
from pathlib import Path
from typing import Any

import torch

from mf.errors import DataError
from mf.files import written_aside
from mf.solvers import EpochReport
from mf.solvers.base import Callback


class CheckpointFile:
    """One file that always holds the state after a whole epoch; a reader, or a kill, never meets half of one. So it is
    on a mounted bucket too, where a rename is a copy: an object appears whole or not at all.

    Args:
        path: the file; it need not exist.
        share: how much of the time saving may take, above 0 and at most 1: after a save that took long, as that of a
            large state to a mounted bucket, the next ones are left out.

    Attributes:
        epochs: how many are behind the state that ``load`` gave last.
    """

    def __init__(self, path: Path, share: float = 1.0) -> None:
        self.path, self.share = path, share
        self.epochs = 0
        self._due = 0.0

    def load(self) -> dict[str, Any] | None:
        """What ``save`` wrote last; ``None`` when the file is not there.

        Raises:
            DataError: the file is not a checkpoint.
        """
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
            if not {"training", "fitting", "reports"} <= set(state):
                raise ValueError("it holds other things")
        except Exception as error:  # torch.load answers garbage with whatever its parser trips over
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{self.path} is not a checkpoint: {reason}; delete it to start anew, or name another file"
            ) from None
        self.epochs = len(state["reports"])
        return dict(state)

    def save(self, state: dict[str, Any]) -> None:
        started = time.monotonic()
        if started < self._due:
            return
        with written_aside(self.path) as aside, aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            # To a mounted bucket the file is sent here, and a failure to do so told.
            os.fsync(file.fileno())
        ended = time.monotonic()
        self._due = ended + (ended - started) * (1 / self.share - 1)

    def remove(self) -> None:
        """The training has come to its end. What a killed process had begun to write goes too."""
        self.path.unlink(missing_ok=True)
        for part in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.part"):
            part.unlink(missing_ok=True)


def reporter(checkpoint: CheckpointFile | None) -> Callback:
    """Prints a line an epoch; for those of a training that is gone on with, which are reported anew, one in all."""

    def report(epoch: EpochReport) -> None:
        done = checkpoint.epochs if checkpoint else 0
        if checkpoint and epoch.epoch == done:
            print(f"going on from {checkpoint.path}, after epoch {done}/{epoch.epochs}", flush=True)
        elif epoch.epoch > done:
            print(epoch.line(), flush=True)

    return report
