"""Threads for work that is independent."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class Workers:
    """Does independent pieces of work on as many threads as the machine has cores on a CPU, one after another on a GPU.

    Pieces write disjoint rows, so that the outcome does not depend on how many threads there are. PyTorch lets go of
    Python's lock while it computes.
    """

    def __init__(self, device: torch.device, threads: int | None = None) -> None:
        threads = (threads or os.cpu_count() or 1) if device.type == "cpu" else 1
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def map(self, work: Callable[[Item], Outcome], items: Iterable[Item]) -> list[Outcome]:
        return list(self.pool.map(work, items) if self.pool else map(work, items))
