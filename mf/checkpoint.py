"""Checkpoint file of an unfinished training, and the progress callback."""

import glob
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mf.errors import DataError
from mf.files import written_aside
from mf.solvers import EpochReport
from mf.solvers.base import Callback
from mf.solvers.sorting import on_gpu
from mf.tensors import load_tensors


class CheckpointFile:
    """A checkpoint file, replaced atomically: a kill leaves the previous one.

    That holds on a mounted bucket too, where a rename is a copy: an object appears whole or not at all.
    A state on a GPU is copied to the host and written by a thread while the training goes on; on a CPU a thread would
    take the time from the training.

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
        self._written: Future[None] | None = None  # the save by a thread

    def load(self) -> dict[str, Any] | None:
        """The state saved last; ``None`` if the file does not exist.

        Raises:
            DataError: the file is not a checkpoint.
        """
        self.wait()
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
        """Whether no save is under way, and saving has taken no more than its share of the time."""
        return self._due_at(time.monotonic())

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the file, unless saving is not ``due``.

        Raises:
            OSError: this save, or the last one by a thread, failed.
        """
        started = time.monotonic()
        if not self._due_at(started):
            return
        self.wait()
        if not any(map(on_gpu, _tensors(state))):
            self._write(state, started)
            return
        thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written = thread.submit(self._write, _host_copy(state), started)
        thread.shutdown(wait=False)

    def wait(self) -> None:
        """Waits until the last save is done.

        Raises:
            OSError: it failed.
        """
        written, self._written = self._written, None
        if written:
            written.result()

    def _due_at(self, now: float) -> bool:
        return (self._written is None or self._written.done()) and now >= self._due

    def _write(self, state: dict[str, Any], started: float) -> None:
        with written_aside(self.path) as aside, aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            # A mounted bucket uploads the file here, and reports a failure.
            os.fsync(file.fileno())
        ended = time.monotonic()
        self._due = ended + (ended - started) * (1 / self.share - 1)

    def remove(self) -> None:
        """Deletes the file, and unfinished files of killed processes."""
        self.wait()
        self.path.unlink(missing_ok=True)
        for part in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.part"):
            part.unlink(missing_ok=True)


def _tensors(state: Any) -> Iterator[Tensor]:
    """All tensors of lists, tuples and dicts."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for part in state.values() if isinstance(state, dict) else state:
            yield from _tensors(part)


def _host_copy(state: Any) -> Any:
    """A copy of lists, tuples and dicts of tensors, which are in pinned memory where they come from a GPU: that copy is
    several times as fast. What is in it twice is copied once."""
    copies: dict[int, Any] = {}

    def copy(x: Any) -> Any:
        if id(x) not in copies:
            if isinstance(x, Tensor):
                host = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
                copies[id(x)] = host.copy_(x, non_blocking=True)
            elif isinstance(x, dict):
                copies[id(x)] = {key: copy(part) for key, part in x.items()}
            else:
                copies[id(x)] = type(x)(map(copy, x)) if isinstance(x, list | tuple) else x
        return copies[id(x)]

    copied = copy(state)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return copied


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
