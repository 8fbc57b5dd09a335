"""Every source of ratings ends here: one table, each (user, movie) once, and an account of what was left out."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mf.files import written_aside
from mf.parallel import in_order
from mf.progress import Progress
from mf.ratings.rejects import Rejects
from mf.ratings.schema import (
    MOVIE,
    RATED_AT,
    RATING,
    USER,
    Provenance,
    instants,
    ratings_schema,
    times,
    write_parts,
)
from mf.ratings.spill import ROW, TIMED_ROW, Rows, Spill, sorted_once

# Rows a chunk of string ids: a string array holds at most 2 GiB of text.
CHUNK = 1 << 20
BATCH = 1 << 20  # rows that are put into the temporary file at once


class Collector:
    """Gathers the good and the bad rows of a source and writes both when the source has ended.

    The rows wait in a temporary file, in 12 bytes each or with times 20, whatever their ids are. In memory are the
    distinct ids and some of the rows.

    Args:
        source: the source as its reader knows it; opens every error.
        max_reject_fraction: the share of bad rows, 0 to 1, above which ``finish`` refuses.
    """

    def __init__(self, source: str, max_reject_fraction: float) -> None:
        self._batches: list[pa.Table] = []
        self._waiting = self._good = 0
        self._users, self._movies = _Ids(), _Ids()
        self._spill = Spill(ROW)
        self._rejects = Rejects(source, max_reject_fraction)

    def add(self, batch: pa.Table) -> None:
        """Takes good rows, in source order: user_id and movie_id (int64 or string, as they are or dictionary-encoded),
        rating (float32) and, for all batches or for none, rated_at (timestamp us, UTC); no nulls but in rated_at."""
        if not len(batch):
            return
        if not self._good and RATED_AT in batch.column_names:
            self._spill = Spill(TIMED_ROW)
        self._batches.append(batch)
        self._good += len(batch)
        self._waiting += len(batch)
        if self._waiting >= BATCH:
            self._put_by()

    def reject(self, where: str, reason: str, row: str) -> None:
        """Takes one bad row: where it stands (``line 8123``), what is wrong with it, and the row as it was."""
        self._rejects.add(where, reason, row)

    def finish(self, output: Path, rejects: Path, columns: dict[str, str]) -> Provenance:
        """Writes the ratings to ``output`` (Parquet, sorted by user and movie, see ``ratings_schema``) and the bad rows
        to ``rejects`` (CSV: where, reason, row). Of a (user, movie) pair that occurs twice the latest rating is kept:
        by ``rated_at`` when there is one, and among equals the last of the source. Ids are int64 when every batch's
        are, else strings.

        Raises:
            DataError: there is no row, no good row, or too many bad ones; nothing is written then.
        """
        self._rejects.check(self._good)
        self._put_by()

        def provenance_of(kept: int) -> Provenance:
            bad = self._rejects
            return Provenance(bad.source, self._good + bad.count, bad.count, self._good - kept, kept, columns=columns)

        with written_aside(rejects) as aside, Progress(f"write {output}", self._good) as progress:
            self._rejects.write(aside)
            schema, parts = self._parts()
            return write_parts(_watched(parts, progress), schema, output, provenance_of)

    def _put_by(self) -> None:
        """Moves the batches to the temporary file."""
        if not self._batches:
            return
        rows = np.empty(self._waiting, self._spill.dtype)
        rows[USER] = self._users.codes([batch[USER] for batch in self._batches])
        rows[MOVIE] = self._movies.codes([batch[MOVIE] for batch in self._batches])
        rest = pa.concat_tables([batch.drop_columns([USER, MOVIE]) for batch in self._batches])
        rows[RATING] = rest[RATING].to_numpy()
        if rows.dtype == TIMED_ROW:
            rows[RATED_AT] = times(rest)
        self._spill.append(rows)
        self._batches.clear()
        self._waiting = 0

    def _parts(self) -> tuple[pa.Schema, Iterator[pa.Table]]:
        """The table that is to be written, in parts."""
        user_ids, user_rank = self._users.ranked()
        movie_ids, movie_rank = self._movies.ranked()
        schema = ratings_schema(user_ids.type, movie_ids.type, timestamps=self._spill.dtype == TIMED_ROW)
        return schema, in_order(partial(_table, user_ids, movie_ids), self._spill.by_user(user_rank, movie_rank))


def _watched(parts: Iterable[pa.Table], progress: Progress) -> Iterator[pa.Table]:
    for part in parts:
        yield part
        progress.advance(len(part))


def _table(user_ids: pa.Array, movie_ids: pa.Array, rows: Rows) -> pa.Table:
    """Rows of ranks as ratings, sorted and each pair once."""
    rows = sorted_once(rows, len(movie_ids))
    columns = {
        USER: _decoded(user_ids, rows[USER]),
        MOVIE: _decoded(movie_ids, rows[MOVIE]),
        RATING: pa.array(np.ascontiguousarray(rows[RATING])),
    }
    if rows.dtype == TIMED_ROW:
        columns[RATED_AT] = instants(np.ascontiguousarray(rows[RATED_AT]))
    return pa.table(columns)


class _Ids:
    """The distinct ids of one side, int64, or strings as soon as one is a string; an id's code is its place."""

    def __init__(self) -> None:
        self._ids = pa.array([], pa.int64())

    def codes(self, columns: Iterable[pa.ChunkedArray]) -> npt.NDArray[np.int32]:
        """The code of every row's id."""
        encoded = [_encoded(column) for column in columns]
        chunks = [chunk for column in encoded for chunk in column.chunks]
        if len(self._ids):
            # No row of theirs, but the first codes.
            chunks.insert(0, pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), self._ids))
        if len({chunk.dictionary.type for chunk in chunks}) > 1:
            chunks = [pa.DictionaryArray.from_arrays(c.indices, c.dictionary.cast(pa.string())) for c in chunks]
        chunks = pa.chunked_array(chunks).unify_dictionaries().chunks
        self._ids = chunks[0].dictionary
        return np.concatenate([chunk.indices.to_numpy() for chunk in chunks])

    def ranked(self) -> tuple[pa.Array, npt.NDArray[np.int32]]:
        """The ids, sorted, and by code the rank of each among them (int32)."""
        order = pc.array_sort_indices(self._ids).to_numpy()
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        return self._ids.take(pa.array(order)), rank


def _encoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dictionary-encoded."""
    if pa.types.is_dictionary(column.type):
        return column
    if not pa.types.is_integer(column.type) or not len(column):
        return column.dictionary_encode()
    numbers = column.to_numpy()
    low, high = int(numbers.min()), int(numbers.max())
    if high - low > 4 * len(numbers):
        return column.dictionary_encode()
    # A table of the range takes a fifth of the time of a hash table.
    places = numbers - low
    occurs = np.zeros(high - low + 1, np.bool_)
    occurs[places] = True
    codes = occurs.cumsum(dtype=np.int32) - np.int32(1)
    return pa.chunked_array([pa.DictionaryArray.from_arrays(codes[places], occurs.nonzero()[0] + low)])


def ranked(column: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    """For every id (int64 or string) its rank among those of the column, int32."""
    ids = _Ids()
    codes = ids.codes([column])
    return ids.ranked()[1][codes]


def _decoded(ids: pa.Array, rows: npt.NDArray[np.int32]) -> pa.ChunkedArray:
    return pa.chunked_array([ids.take(pa.array(rows[i : i + CHUNK])) for i in range(0, len(rows), CHUNK)])
