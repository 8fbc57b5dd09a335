"""Threads for independent pieces of work, and sums in a fixed order."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from mf.parallel import cores

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

ROWS = 8192  # rows per piece of dense work: what two of 64 floats each take stays in a core's cache


def pieces(n: int, step: int | None = None) -> list[slice]:
    """Slices of ``step`` rows (default: ``ROWS``) that cover 0 … n - 1."""
    step = step or ROWS
    return [slice(start, min(n, start + step)) for start in range(0, n, step)]


class Workers:
    """Does pieces of work on one thread per core on a CPU, one after another on a GPU.

    Pieces do not depend on the number of threads and their results come back in order, so that the outcome has the same
    bits for any number. Pieces must write disjoint rows. PyTorch releases Python's lock while it computes; it uses one
    thread per piece, and within a ``with`` block one in the caller's own thread too.

    Args:
        device: where the work runs.
        threads: default: one per core that this process may use.
    """

    def __init__(self, device: torch.device, threads: int | None = None) -> None:
        self.device = device
        count = (threads or cores()) if device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) if count > 1 else None

    def map(self, work: Callable[[Item], Outcome], items: Iterable[Item]) -> list[Outcome]:
        """[work(item) for each item]."""
        return list(self._pool.map(work, items) if self._pool else map(work, items))

    def sum(self, work: Callable[[Item], Tensor], items: Iterable[Item]) -> Tensor:
        """float64, the sum of ``work(item)``, added in the order of the items."""
        first, *rest = self.map(work, items)
        total = first.double()
        for part in rest:
            total += part
        return total

    def __enter__(self) -> "Workers":
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._threads)
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
