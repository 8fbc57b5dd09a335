"""Work on a stream by one thread a core: the results come in the stream's order, and few are ahead of their turn."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa

Item = TypeVar("Item")
Result = TypeVar("Result")

# Each holds an item of the stream and its result in memory; more would hardly be faster.
MOST_WORKERS = 8


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``map(function, items)`` by threads, for functions that spend their time in Arrow and NumPy. One item for each
    worker and one beside are taken ahead at most. What ``function`` or ``items`` raises comes through."""
    workers = min(MOST_WORKERS, pa.cpu_count())
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
