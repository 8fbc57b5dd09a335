"""External sort: rows in a temporary file, partitioned by user; the latest rating of each pair."""

import tempfile
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mf.files import naming
from mf.parallel import in_order
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER

RowArray = npt.NDArray[np.void]
Int32s = npt.NDArray[np.int32]

# Users and movies as codes; rated_at as ``mf.ratings.schema.times`` gives it.
ROW = np.dtype([(USER, np.int32), (MOVIE, np.int32), (RATING, np.float32)])
TIMED_ROW = np.dtype([*ROW.descr, (RATED_AT, np.int64)])
PART = 1 << 18  # rows per part, more only where one user has more
MOST_PARTS = 256  # so that a part's number is one byte, which NumPy sorts by radix
IN_MEMORY = 32 << 20  # bytes; fewer need no file


class Spill:
    """Rows in any order, in a temporary file.

    Attributes:
        dtype: ``ROW`` or ``TIMED_ROW``.
        count: rows so far.
    """

    def __init__(self, dtype: np.dtype[np.void]) -> None:
        self.dtype, self.count = dtype, 0
        self._of_user = np.zeros(0, np.int64)  # rows per user code
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - it outlives this function
        weakref.finalize(self, self._file.close)

    def append(self, rows: RowArray) -> None:
        counts = np.bincount(rows[USER], minlength=len(self._of_user))
        counts[: len(self._of_user)] += self._of_user
        self._of_user = counts
        self.count += len(rows)
        with naming(Path(tempfile.gettempdir())):
            self._file.write(rows.view(np.uint8).data)

    def count_of(self, column: str, chosen: npt.NDArray[np.bool_]) -> int:
        """The number of rows whose code in ``column`` is among those ``chosen``."""
        return sum(int(np.count_nonzero(chosen[rows[column]])) for rows in self._chunks())

    def without(self, users: npt.NDArray[np.bool_], movies: npt.NDArray[np.bool_]) -> "Spill":
        """The rows with none of these users and movies, by code."""
        rest = Spill(self.dtype)
        for rows in self._chunks():
            rest.append(rows[~(users[rows[USER]] | movies[rows[MOVIE]])])
        return rest

    def by_user(self, user_rank: Int32s, movie_rank: Int32s) -> Iterator[RowArray]:
        """All rows, with ranks in place of codes, in parts. No two parts have a user in common, parts ascend by user,
        and within a part rows keep the order in which they were appended.

        Args:
            user_rank, movie_rank: rank by code.
        """
        of_user = np.zeros(len(user_rank), np.int64)
        of_user[: len(self._of_user)] = self._of_user
        of_rank = np.bincount(user_rank, weights=of_user).astype(np.int64)
        part_of_rank = (of_rank.cumsum() - of_rank) // max(PART, -(-self.count // MOST_PARTS))
        sizes = np.bincount(part_of_rank, weights=of_rank).astype(np.int64)
        place = sizes.cumsum() - sizes
        partition = partial(_partition, user_rank, movie_rank, part_of_rank.astype(np.uint8), len(sizes))
        with tempfile.SpooledTemporaryFile(IN_MEMORY) as file:
            for rows, counts in in_order(partition, self._chunks()):
                end = counts.cumsum()
                for part in np.flatnonzero(counts):
                    file.seek(int(place[part]) * self.dtype.itemsize)
                    with naming(Path(tempfile.gettempdir())):
                        file.write(rows[end[part] - counts[part] : end[part]].view(np.uint8).data)
                place += counts
            self._file.close()
            file.seek(0)
            for size in sizes[sizes > 0]:
                yield np.frombuffer(file.read(int(size) * self.dtype.itemsize), self.dtype)

    def _chunks(self) -> Iterator[RowArray]:
        self._file.seek(0)
        while data := self._file.read(PART * self.dtype.itemsize):
            yield np.frombuffer(data, self.dtype)


def _partition(
    user_rank: Int32s, movie_rank: Int32s, part_of_rank: npt.NDArray[np.uint8], parts: int, rows: RowArray
) -> tuple[RowArray, npt.NDArray[np.int64]]:
    """The rows with ranks, grouped by part, and the number of rows per part."""
    users = user_rank[rows[USER]]
    part = part_of_rank[users]
    order = part.argsort(kind="stable")
    rows = rows.take(order)
    rows[USER], rows[MOVIE] = users[order], movie_rank[rows[MOVIE]]
    return rows, np.bincount(part, minlength=parts)


def sorted_once(rows: RowArray, movies: int) -> RowArray:
    """The rows sorted by user and movie, with the latest row of each pair: by ``rated_at`` when there is one, and among
    equals the last.

    Args:
        movies: a number above any movie's.
    """
    users = rows[USER].astype(np.int64)
    pairs = (users - users.min()) * movies + rows[MOVIE]
    if (pairs[1:] > pairs[:-1]).all():
        return rows
    order = _stable_order(pairs)
    pairs = pairs[order]
    is_last = np.append(pairs[1:] != pairs[:-1], True)
    if rows.dtype == TIMED_ROW and not is_last.all():
        is_repeated = ~is_last | np.append(False, ~is_last[:-1])
        repeated = order[is_repeated]
        order[is_repeated] = repeated[np.lexsort((rows[RATED_AT][repeated], pairs[is_repeated]))]
    once: RowArray = rows.take(order[is_last])
    return once


def _stable_order(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Stable argsort of keys that are not negative."""
    bits = len(keys).bit_length()
    if int(keys.max()).bit_length() + bits > 63 or (keys[1:] >= keys[:-1]).all():
        return keys.argsort(kind="stable")
    # Sorting keys with their position in the low bits is six times as fast as argsort.
    return np.sort(keys << bits | np.arange(len(keys))) & ((1 << bits) - 1)
