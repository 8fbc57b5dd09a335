"""Thread pool for independent work."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """One thread per core on a CPU, none on a GPU.

    The work items must write disjoint rows, so that the result does not depend on the number of threads. PyTorch
    releases Python's lock while it computes.

    Args:
        device: where the work runs.
        threads: number of threads on a CPU; default: one per core.
    """

    def __init__(self, device: torch.device, threads: int | None = None) -> None:
        threads = (threads or os.cpu_count() or 1) if device.type == "cpu" else 1
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """``work`` of each item, in the items' order."""
        return list(self.pool.map(work, items) if self.pool else map(work, items))
