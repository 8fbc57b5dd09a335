"""Ratings in batches of rows, from a table or a Parquet file."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mf.errors import DataError
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER, read_provenance, read_ratings, times

ROWS = 1 << 20  # per batch


class Batches:
    """Ratings that are read in batches of at most ``ROWS`` rows, as often as needed.

    Args:
        ratings: a table of ratings, or a file of ``write_ratings``, of which one batch is in memory.

    Raises:
        DataError: the file is missing, not Parquet, or not a table of ratings.
    """

    def __init__(self, ratings: "pa.Table | Path | Batches") -> None:
        self._source: pa.Table | Path
        self.schema: pa.Schema
        if isinstance(ratings, Batches):
            self._source, self.schema, self._rows = ratings._source, ratings.schema, len(ratings)
        elif isinstance(ratings, pa.Table):
            self._source, self.schema, self._rows = ratings, ratings.schema, len(ratings)
        else:
            read_provenance(ratings)
            about = pq.read_metadata(ratings)
            schema = about.schema.to_arrow_schema().remove_metadata()
            self._source, self.schema, self._rows = ratings, schema, about.num_rows

    def __len__(self) -> int:
        return int(self._rows)

    @property
    def has_ratings(self) -> bool:
        """Whether there are ratings; without them the rows are clicks."""
        return RATING in self.schema.names

    @property
    def has_times(self) -> bool:
        return RATED_AT in self.schema.names

    def read(self, *columns: str) -> Iterator[pa.Table]:
        """The rows in order; default: all columns."""
        names = list(columns) or self.schema.names
        if isinstance(self._source, pa.Table):
            table = self._source.select(names)
            yield from (table.slice(start, ROWS) for start in range(0, len(table), ROWS))
            return
        # Without pre_buffer=False the whole file is read ahead into memory.
        with pq.ParquetFile(self._source, pre_buffer=False) as file:
            for batch in file.iter_batches(ROWS, columns=names):
                yield pa.table(batch).select(names).replace_schema_metadata(None)

    def clicks(self) -> "Batches":
        """The same rows without ratings."""
        rows = Batches(self)
        if rows.has_ratings:
            rows.schema = rows.schema.remove(rows.schema.get_field_index(RATING))
        return rows

    def table(self) -> pa.Table:
        """All rows in memory."""
        table = self._source if isinstance(self._source, pa.Table) else read_ratings(self._source)[0]
        return table.select(self.schema.names)

    def of_users(self, ids: pa.Array) -> pa.Table:
        """The rows of some users, whose ids have the column's type."""
        found = (batch.filter(pc.is_in(batch[USER], value_set=ids)) for batch in self.read())
        return pa.concat_tables([self.schema.empty_table(), *found])

    def times(self) -> Iterator[npt.NDArray[np.int64]]:
        """``mf.ratings.schema.times`` of each batch."""
        return (times(batch) for batch in self.read(RATED_AT))

    def checked(self, *columns: str) -> Iterator[pa.Table]:
        """As ``read``; of a file, checks that the ratings are sorted, each pair once.

        Raises:
            DataError: they are not.
        """
        if isinstance(self._source, pa.Table):
            yield from self.read(*columns)
            return
        last, row = self.schema.empty_table(), 0
        for batch in self.read(*columns):
            if not is_sorted(pa.concat_tables([last.select(batch.column_names), batch])):
                raise DataError(
                    f"{self._source}, rows {row:,} to {row + len(batch):,}: expected ratings sorted by user and movie, "
                    "each pair once, as ingest writes them"
                )
            last, row = batch.slice(len(batch) - 1), row + len(batch)
            yield batch


def whole_users(batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Other batches of the same rows, sorted by user, with all ratings of a user in one batch."""
    waiting: pa.Table | None = None
    for batch in batches:
        if waiting is not None:
            batch = pa.concat_tables([waiting, batch])
        # The last user's ratings may go on in the next batch.
        last = pc.index(batch[USER], batch[USER][-1]).as_py()
        if last:
            yield batch.slice(0, last)
        waiting = batch.slice(last)
    if waiting is not None:
        yield waiting


def is_sorted(ratings: pa.Table) -> bool:
    """Whether ratings are sorted by user and movie, each pair once."""
    users, movies = ratings[USER], ratings[MOVIE]
    same_user = pc.equal(users[:-1], users[1:])
    rising = pc.or_(pc.less(users[:-1], users[1:]), pc.and_(same_user, pc.less(movies[:-1], movies[1:])))
    return bool(pc.all(rising, min_count=0).as_py())
