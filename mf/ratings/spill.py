"""Rows that wait in a temporary file and come back by user, in parts that the memory holds."""

import tempfile
import weakref
from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from mf.parallel import in_order
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER

Rows = npt.NDArray[np.void]
Int32s = npt.NDArray[np.int32]

# Users and movies as numbers; rated_at as ``mf.ratings.schema.times`` has it.
ROW = np.dtype([(USER, np.int32), (MOVIE, np.int32), (RATING, np.float32)])
TIMED_ROW = np.dtype([*ROW.descr, (RATED_AT, np.int64)])
PART = 1 << 20  # rows that are sorted at once, more only where one user has more
MOST_PARTS = 256  # so that the number of a part is one byte, which NumPy sorts by radix
IN_MEMORY = 32 << 20  # bytes; what is smaller needs no file


class Spill:
    """Takes rows in any order.

    Attributes:
        dtype: ``ROW`` or ``TIMED_ROW``.
        count: rows so far.
    """

    def __init__(self, dtype: np.dtype[np.void]) -> None:
        self.dtype, self.count = dtype, 0
        self._of_user = np.zeros(0, np.int64)  # rows, by the user's number
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - it outlives this function
        weakref.finalize(self, self._file.close)

    def append(self, rows: Rows) -> None:
        counts = np.bincount(rows[USER], minlength=len(self._of_user))
        counts[: len(self._of_user)] += self._of_user
        self._of_user = counts
        self.count += len(rows)
        self._file.write(rows.view(np.uint8).data)

    def by_user(self, user_rank: Int32s, movie_rank: Int32s) -> Iterator[Rows]:
        """All rows, users and movies by rank, in parts: each has users of its own, in the order of their ranks, and
        these users' rows as they were appended.

        Args:
            user_rank, movie_rank: by number, each rank once.
        """
        of_rank = np.empty_like(self._of_user)
        of_rank[user_rank] = self._of_user
        part_of_rank = (of_rank.cumsum() - of_rank) // max(PART, -(-self.count // MOST_PARTS))
        sizes = np.bincount(part_of_rank, weights=of_rank).astype(np.int64)
        place = sizes.cumsum() - sizes
        arrange = partial(_arranged, user_rank, movie_rank, part_of_rank.astype(np.uint8), len(sizes))
        with tempfile.SpooledTemporaryFile(IN_MEMORY) as file:
            for rows, counts in in_order(arrange, self._chunks()):
                end = counts.cumsum()
                for part in np.flatnonzero(counts):
                    file.seek(int(place[part]) * self.dtype.itemsize)
                    file.write(rows[end[part] - counts[part] : end[part]].view(np.uint8).data)
                place += counts
            self._file.close()
            file.seek(0)
            for size in sizes[sizes > 0]:
                yield np.frombuffer(file.read(int(size) * self.dtype.itemsize), self.dtype)

    def _chunks(self) -> Iterator[Rows]:
        self._file.seek(0)
        while data := self._file.read(PART * self.dtype.itemsize):
            yield np.frombuffer(data, self.dtype)


def _arranged(
    user_rank: Int32s, movie_rank: Int32s, part_of_rank: npt.NDArray[np.uint8], parts: int, rows: Rows
) -> tuple[Rows, npt.NDArray[np.int64]]:
    """The rows by rank and by part, and how many are of each part."""
    users = user_rank[rows[USER]]
    part = part_of_rank[users]
    order = part.argsort(kind="stable")
    rows = rows.take(order)
    rows[USER], rows[MOVIE] = users[order], movie_rank[rows[MOVIE]]
    return rows, np.bincount(part, minlength=parts)


def sorted_once(rows: Rows, movies: int) -> Rows:
    """The rows sorted by user and movie. Of a pair that occurs twice the latest is kept: by ``rated_at`` when there is
    one, and among equals the last.

    Args:
        movies: a number above that of any movie.
    """
    users = rows[USER].astype(np.int64)
    pairs = (users - users.min()) * movies + rows[MOVIE]
    if (pairs[1:] > pairs[:-1]).all():
        return rows
    order = _stable_order(pairs)
    pairs = pairs[order]
    is_last = np.append(pairs[1:] != pairs[:-1], True)
    if rows.dtype == TIMED_ROW and not is_last.all():
        is_doubled = ~is_last | np.append(False, ~is_last[:-1])
        doubled = order[is_doubled]
        order[is_doubled] = doubled[np.lexsort((rows[RATED_AT][doubled], pairs[is_doubled]))]
    once: Rows = rows.take(order[is_last])
    return once


def _stable_order(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The stable order of keys that are not negative."""
    bits = len(keys).bit_length()
    if int(keys.max()).bit_length() + bits > 63 or (keys[1:] >= keys[:-1]).all():
        return keys.argsort(kind="stable")
    # Keys that hold their place are sorted six times as fast as the places are.
    return np.sort(keys << bits | np.arange(len(keys))) & ((1 << bits) - 1)
