"""The cores of this process, and an ordered parallel map over a stream with bounded read-ahead."""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Each worker holds an item and its result in memory; more workers are hardly faster.
MOST_WORKERS = 8
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of this process's container, on Linux


def cores() -> int:
    """Cores that this process may use, by its affinity and its container's quota; not every system can tell. torchrun's
    processes share them."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        available = min(available, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # another system, or no quota ("max")
        pass
    return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``map(function, items)`` on ``cores()`` threads, for functions that spend their time in Arrow and NumPy.

    Reads at most one item per worker and one more ahead. Exceptions of ``function`` and ``items`` are passed on."""
    workers = min(MOST_WORKERS, cores())
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
