"""Ordered parallel map over a stream, with bounded read-ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa

Item = TypeVar("Item")
Result = TypeVar("Result")

# Each worker holds an item and its result in memory; more workers are hardly faster.
MOST_WORKERS = 8


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``map(function, items)`` on one thread per core, for functions that spend their time in Arrow and NumPy.

    Reads at most one item per worker and one more ahead. Exceptions of ``function`` and ``items`` are passed on."""
    workers = min(MOST_WORKERS, pa.cpu_count())
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
