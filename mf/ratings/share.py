"""Reading one process's share of a ratings file: the row groups of its users, and no others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mf.errors import DataError
from mf.ratings.schema import USER
from mf.ratings.vocabulary import Vocabulary


@dataclass(frozen=True)
class ShareOfUsers:
    """Consecutive users of a file that is sorted by user.

    Attributes:
        table: their ratings.
        first: id of the first one; ``None``: no bound.
        end: id of the first user after them; ``None``: no bound.
    """

    table: pa.Table
    first: Any
    end: Any

    @classmethod
    def read(cls, path: Path, rank: int, world: int, columns: Sequence[str] | None = None) -> "ShareOfUsers":
        """The share of process ``rank`` of ``world``: about as many ratings as the others', of whole users.

        It begins with the first user whose ratings begin at or after row rank / world of all rows.

        Args:
            path: a file of ``write_ratings``.
            rank, world: number of the process, and number of processes.
            columns: those to read, the user's among them; default: all.

        Raises:
            DataError: the file is not sorted by user.
        """
        with pq.ParquetFile(path) as file:
            rows = _RowGroups(file, columns)
            (start, first), (stop, end) = (rows.next_user(rows.total * r // world) for r in (rank, rank + 1))
            table = rows.read(start, stop)
        if not is_sorted(table):
            raise DataError(f"{path}: expected ratings sorted by user, as ingest and split write them")
        return cls(table, first if rank else None, end)

    def of(self, path: Path) -> pa.Table:
        """The ratings in another file by users of the same range of ids."""
        with pq.ParquetFile(path) as file:
            rows = _RowGroups(file, self.table.column_names)
            table = rows.read_groups([g for g in range(len(rows.starts) - 1) if self._overlaps(rows.id_range(g))])
        for bound, inside in ((self.first, pc.greater_equal), (self.end, pc.less)):
            if bound is not None:
                table = table.filter(inside(table[USER], pa.scalar(bound, table[USER].type)))
        return table

    def _overlaps(self, ids: tuple[Any, Any] | None) -> bool:
        if ids is None:
            return True
        return (self.first is None or ids[1] >= self.first) and (self.end is None or ids[0] < self.end)


def is_sorted(ratings: pa.Table) -> bool:
    """Whether ratings are sorted by user id."""
    _, rows = Vocabulary.encode(ratings[USER])
    return bool((rows[1:] >= rows[:-1]).all())


class _RowGroups:
    """The row groups of a Parquet file of ratings.

    Attributes:
        starts: the first row of each row group, and the number of rows.
    """

    def __init__(self, file: pq.ParquetFile, columns: Sequence[str] | None) -> None:
        self.file, self.columns = file, None if columns is None else list(columns)
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        self.starts = np.cumsum([0, *sizes]).tolist()

    @property
    def total(self) -> int:
        return int(self.starts[-1])

    def next_user(self, row: int) -> tuple[int, Any]:
        """The first row from ``row`` on at which a user begins, and the user's id; ``None`` at the end of the file."""
        before = None
        group = int(np.searchsorted(self.starts, max(row - 1, 0), side="right")) - 1
        while group < len(self.starts) - 1:
            start = self.starts[group]
            users = self.file.read_row_group(group, [USER])[USER].combine_chunks()
            at = max(row - start, 0)
            if row > start and at <= len(users):
                before = users[at - 1]
            rest = users[at:]
            if before is None and len(rest):
                return start + at, rest[0].as_py()
            others = np.flatnonzero(pc.not_equal(rest, before).to_numpy(zero_copy_only=False)) if len(rest) else rest
            if len(others):
                found = at + int(others[0])
                return start + found, users[found].as_py()
            group += 1
        return self.total, None

    def read(self, start: int, stop: int) -> pa.Table:
        """The rows from ``start`` to ``stop``."""
        groups = [g for g in range(len(self.starts) - 1) if self.starts[g] < stop and self.starts[g + 1] > start]
        offset = self.starts[groups[0]] if groups else 0
        return self.read_groups(groups).slice(start - offset, max(0, stop - start))

    def read_groups(self, groups: list[int]) -> pa.Table:
        """The rows of some row groups."""
        return self.file.read_row_groups(groups, self.columns).replace_schema_metadata(None)

    def id_range(self, group: int) -> tuple[Any, Any] | None:
        """Smallest and largest user id of a row group, where the file tells."""
        statistics = self.file.metadata.row_group(group).column(0).statistics
        if statistics is None or not statistics.has_min_max:
            return None
        return statistics.min, statistics.max
