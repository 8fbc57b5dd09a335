"""Every source of ratings ends here: one table, each (user, movie) once, and an account of what was left out."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mf.files import written_aside
from mf.ratings.rejects import Rejects
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER, Provenance, times, write_ratings

# Rows a chunk of string ids: a string array holds at most 2 GiB of text.
CHUNK = 1 << 20


class Collector:
    """Gathers the good and the bad rows of a source and writes both when the source has ended.

    Args:
        source: the source as its reader knows it; opens every error.
        max_reject_fraction: the share of bad rows, 0 to 1, above which ``finish`` refuses.
    """

    def __init__(self, source: str, max_reject_fraction: float) -> None:
        self._batches: list[pa.Table] = []
        self._good = 0
        self._rejects = Rejects(source, max_reject_fraction)

    def add(self, batch: pa.Table) -> None:
        """Takes good rows, in source order: user_id and movie_id (int64 or string), rating (float32) and, for all
        batches or for none, rated_at (timestamp us, UTC); no nulls."""
        if not len(batch):
            return
        self._good += len(batch)
        for name in (USER, MOVIE):
            encoded = batch[name].combine_chunks().dictionary_encode()
            batch = batch.set_column(batch.column_names.index(name), name, encoded)
        self._batches.append(batch)

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
        table = self._table()
        provenance = Provenance(
            source=self._rejects.source,
            rows_read=self._good + self._rejects.count,
            rows_rejected=self._rejects.count,
            rows_replaced=self._good - len(table),
            rows_kept=len(table),
            columns=columns,
        )
        with written_aside(rejects) as aside:
            self._rejects.write(aside)
            return write_ratings(table, output, provenance)

    def _table(self) -> pa.Table:
        user_ids, users = ranked([batch[USER].chunk(0) for batch in self._batches])
        movie_ids, movies = ranked([batch[MOVIE].chunk(0) for batch in self._batches])
        rest = pa.concat_tables([batch.drop_columns([USER, MOVIE]) for batch in self._batches])
        self._batches.clear()
        pair = users.astype(np.int64) * len(movie_ids) + movies
        order = np.argsort(pair, kind="stable")
        is_last = _is_last(pair[order])
        # Sorting by time as well takes ten times as long, and matters only when a pair occurs twice.
        if RATED_AT in rest.column_names and not is_last.all():
            order = np.lexsort((times(rest), pair))
        order = order[is_last]
        ids = {USER: _decoded(user_ids, users[order]), MOVIE: _decoded(movie_ids, movies[order])}
        rest = rest.take(order)
        return pa.table(ids | {name: rest[name] for name in (RATING, RATED_AT) if name in rest.column_names})


def ranked(columns: list[pa.DictionaryArray]) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """The distinct ids of dictionary-encoded columns (int64, or strings as soon as one column holds strings), sorted,
    and for every row the rank of its id among them (int32)."""
    if len({column.dictionary.type for column in columns}) > 1:
        columns = [
            pa.DictionaryArray.from_arrays(column.indices, column.dictionary.cast(pa.string())) for column in columns
        ]
    chunks = pa.chunked_array(columns).unify_dictionaries().chunks
    ids = chunks[0].dictionary
    order = pc.array_sort_indices(ids).to_numpy()
    rank = np.empty(len(ids), np.int32)
    rank[order] = np.arange(len(ids), dtype=np.int32)
    return ids.take(pa.array(order)), rank[np.concatenate([chunk.indices.to_numpy() for chunk in chunks])]


def _is_last(pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of sorted pairs are not followed by their like."""
    return np.append(pairs[1:] != pairs[:-1], True)


def _decoded(ids: pa.Array, rows: npt.NDArray[np.int32]) -> pa.ChunkedArray:
    return pa.chunked_array([ids.take(pa.array(rows[i : i + CHUNK])) for i in range(0, len(rows), CHUNK)])
