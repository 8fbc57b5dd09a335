"""Keyset pagination over the REST API: several key ranges at a time."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from supabase import Client

from mf.errors import DataError
from mf.supabase.client import call_read
from mf.supabase.tables.description import Table
from mf.supabase.tables.page import Key, Page, read_page

# Pages per range, at least and at most: many, since finding a range's end takes a request; fewer towards the end of the
# table, so that the workers end together.
PAGES, MOST_PAGES = 8, 32

Bounds = tuple[Key | None, Key | None]  # from the first, and before the second
Result = TypeVar("Result")


class _StoppedError(Exception):
    """Another range failed; this one is not needed any more."""


@dataclass
class Pages:
    """The pages of a table.

    Args:
        client: of the project to read from.
        table: the table.
        selected: the columns to read, those of the key among them.
        key: the columns of a unique key; each page is fast when an index has them in this order.
        conditions: further filters, in PostgREST's syntax.
        page_size: rows per request; the server may give fewer.
    """

    client: Client
    table: Table
    selected: Sequence[str]
    key: Sequence[str]
    conditions: Sequence[str] = ()
    page_size: int = 1000

    def __post_init__(self) -> None:
        self._stopped = threading.Event()

    def read(self, convert: Callable[[Page], Result], workers: int, expected: int | None) -> Iterator[Result]:
        """Apply ``convert`` to every page, in the order of the key, with ``workers`` threads, one key range each.

        Every key belongs to one range, so that a row that exists throughout is read once, whatever is written
        meanwhile.

        Args:
            expected: about how many rows there are.
        """
        if workers == 1:
            yield from map(convert, self.between(None, None))
            return
        self.page_size = max(1, len(self._page([], self.key)))  # the server's own limit
        ranges = self._ranges(workers, expected or 0)
        waiting: deque[Future[list[Result]]] = deque()
        pool = ThreadPoolExecutor(workers)
        try:
            while True:
                # Two ranges per worker, so that no worker waits for the range whose results are due.
                while len(waiting) < 2 * workers and (bounds := next(ranges, None)):
                    waiting.append(pool.submit(self._converted, convert, bounds))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)

    def between(self, start: Key | None, end: Key | None) -> Iterator[Page]:
        """The pages of the rows from ``start`` (inclusive) to ``end`` (exclusive); None: without a bound. Each request
        begins with the last row of the page before and includes the row of ``end``, so that a second row with the same
        key is noticed.

        The end is the row of ``end``, or an empty page of keys *above* the last one. A short page does not mean the
        end, since the server cuts pages (db-max-rows) without saying so.
        """
        last, operator = start, "gte"
        before: list[Key] = []
        while not self._stopped.is_set():
            bounds = [bound(self.key, operator, last)] if last is not None else []
            page = self._page(bounds + ([bound(self.key, "lte", end)] if end is not None else []), self.selected)
            if not page:
                return
            page = page.without(first=bool(before) and page.key(self.key, 0) == before[-1])
            before = self._checked(before, page) if page else before
            is_last = bool(page) and before[-1] == end
            if len(page) > is_last:
                yield page.without(last=is_last)
            if is_last:
                return
            operator = "gte" if page else "gt"
            last = before[-1]
        raise _StoppedError

    def _checked(self, before: list[Key], page: Page) -> list[Key]:
        """Check the keys of a page; returns those to check the next page with."""
        columns = [page.columns[name] for name in self.key]
        if all(pa.types.is_integer(column.type) and not column.null_count for column in columns):
            follows = not before or before[-1] < page.key(self.key, 0)
            if follows and _ascend([column.to_numpy() for column in columns]):
                return [page.key(self.key, -1)]
        keys = list(zip(*(column.to_pylist() for column in columns), strict=True))
        check_keys(self.table, self.key, before, keys)
        return keys

    def _converted(self, convert: Callable[[Page], Result], bounds: Bounds) -> list[Result]:
        return [convert(page) for page in self.between(*bounds)]

    def _ranges(self, workers: int, left: int) -> Iterator[Bounds]:
        """Divide all keys into ascending ranges of a few pages; about so many rows are ``left``."""
        start: Key | None = None
        while True:
            pages = max(PAGES, min(MOST_PAGES, left // (2 * workers * self.page_size)))
            rows = pages * max(1, self.page_size - 1)
            left -= rows
            bounds = [bound(self.key, "gte", start)] if start is not None else []
            page = self._page(bounds, self.key, skip=rows)
            end = page.key(self.key, 0) if page else None
            if end is None:
                yield start, None
                return
            check_keys(self.table, self.key, [start] if start is not None else [], [end])
            yield start, end
            start = end

    def _page(self, bounds: Sequence[str], selected: Sequence[str], skip: int = 0) -> Page:
        """Request a page of rows in the order of the key; with ``skip``, only the row after so many."""
        request = self.client.table(self.table.name).select(",".join(map(quoted, selected)))
        for name in self.key:
            request = request.order(quoted(name))
        for condition in (*bounds, *self.conditions):
            request = request.or_(condition)
        request = request.range(skip, skip) if skip else request.limit(self.page_size)
        read = partial(read_page, table=self.table, selected=selected)
        return call_read(request, read, f"read {self.table}", self.table.hints)


def _ascend(columns: Sequence[npt.NDArray[np.int64]]) -> bool:
    """Whether the rows ascend strictly, compared by the first column, then the second, and so on."""
    rises, ties = np.zeros(len(columns[0]) - 1, bool), np.ones(len(columns[0]) - 1, bool)
    for values in columns:
        rises |= ties & (values[1:] > values[:-1])
        ties &= values[1:] == values[:-1]
    return bool(rises.all())


def check_keys(table: Table, key: Sequence[str], before: list[Key], keys: list[Key]) -> None:
    """Check that a page's keys ascend from those ``before``; text, which a collation orders, only that no key repeats.

    Raises:
        DataError: a key is null, or the key is not unique.
    """
    if None in chain.from_iterable(keys):
        raise DataError(f"{table}: a key ({', '.join(key)}) is null: fill it, or name others with --key_columns")
    if all(table.columns[name]["type"] == "integer" for name in key):
        wrong = next((b for a, b in pairwise([*before[-1:], *keys]) if a >= b), None)
    elif len(set(keys)) == len(keys) and set(keys).isdisjoint(before):
        wrong = None
    else:
        wrong = next(b for i, b in enumerate(keys) if b in before or b in keys[:i])
    if wrong is not None:
        where = ", ".join(f"{name}={value}" for name, value in zip(key, wrong, strict=True))
        raise DataError(
            f"{table}: the key {where} came twice or out of order: ({', '.join(key)}) is not unique; name "
            "columns that are unique together with --key_columns"
        )


def bound(key: Sequence[str], operator: str, last: Key) -> str:
    """The filter for the keys on one side of ``last``, with ``operator`` gt, gte, lt or lte, in PostgREST's syntax. The
    first condition follows from the others; without it the database would not limit its index scan."""
    names, values = [quoted(name) for name in key], [quoted(str(value)) for value in last]
    beyond = operator[:2]
    steps = []
    for i in range(len(key)):
        equal = [f"{name}.eq.{value}" for name, value in zip(names[:i], values[:i], strict=True)]
        differs = f"{names[i]}.{operator if i == len(key) - 1 else beyond}.{values[i]}"
        steps.append(f"and({','.join([*equal, differs])})")
    return f"and({names[0]}.{beyond}e.{values[0]},or({','.join(steps)}))"


def quoted(text: str) -> str:
    """Quote a name or value for PostgREST: https://docs.postgrest.org/en/v12/references/api/url_grammar.html."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
