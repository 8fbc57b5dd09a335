"""Collect rows of any source: deduplicate, sort, count, write Parquet and rejects."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mf.errors import DataError
from mf.files import written_aside
from mf.parallel import in_order
from mf.progress import Progress
from mf.ratings.config import shown
from mf.ratings.doubts import Times, not_rated
from mf.ratings.rejects import Rejects
from mf.ratings.schema import (
    MOVIE,
    RATED_AT,
    RATING,
    USER,
    Provenance,
    has_ratings,
    instants,
    ratings_schema,
    same_ratings,
    times,
    write_parts,
)
from mf.ratings.spill import ROW, TIMED_ROW, RowArray, Spill, sorted_once
from mf.ratings.values import EPOCHS, integer_ids

CHUNK = 1 << 20  # rows per chunk of ids, at most
MOST_TEXT = (1 << 31) - 1  # bytes of text in a string array, whose offsets have 32 bits
MOST_VALUES = 10_000  # distinct ratings to count
EARLY = 100_000  # rows of a source of unknown length before it is refused early
MOST_ODD = 10_000  # rows with an id that is not an integer before a source may turn out to be one of text ids
BATCH = 1 << 19  # rows per write to the temporary file


class Collector:
    """The sink of every source: gathers good and bad rows, writes Parquet and rejects when the source has ended.

    The rows wait in a temporary file, 12 bytes per row or, with times, 20, whatever their ids are. In memory are the
    distinct ids and a part of the rows.

    Args:
        source: the source as the user knows it; begins every error.
        max_reject_fraction: the share of bad rows, 0 to 1, above which ``finish`` refuses.
        ignore_ratings: the ratings that the source leaves out.
        text_ids: the roles whose ids are text, though all may look like integers.

    Attributes:
        untyped: the roles whose ids are read from text, with a type that ``finish`` decides. Set by the source before
            its first row; a role is taken out when its ids are text beyond doubt.
    """

    def __init__(
        self,
        source: str,
        max_reject_fraction: float,
        ignore_ratings: Sequence[float] = (),
        text_ids: Collection[str] = (),
    ) -> None:
        self.text_ids = text_ids
        self._ignore_ratings, self._ignored = ignore_ratings, 0
        self._batches: list[pa.Table] = []
        self._has_ratings = True
        self._waiting = self._good = 0
        self._users, self._movies = _Ids(), _Ids()
        self._spill = Spill(ROW)
        self._rejects = Rejects(source, max_reject_fraction)
        self._time_forms: dict[str, str] = {}
        self._times = Times()
        self._max_reject_fraction = max_reject_fraction
        self._first_odd: dict[str, str] = {}
        self._odd = {USER: 0, MOVIE: 0}
        self.untyped: set[str] = set()

    @property
    def source(self) -> str:
        return self._rejects.source

    @property
    def rows_read(self) -> int:
        """Good, ignored and bad rows so far."""
        return self._good + self._ignored + self._rejects.count

    def add(self, ratings: pa.Table, time_forms: Mapping[str, str] | None = None, ignored: int = 0) -> None:
        """Add good rows, in source order.

        Args:
            ratings: user_id and movie_id (int64 or string, plain or dictionary-encoded) and, in all calls or in none,
                rating (float32) and rated_at (timestamp us, UTC); nulls in rated_at only.
            time_forms: ``Checked.time_forms`` of these rows: where each form first occurs, ``line 7: 20150102``.
            ignored: number of rows left out for their rating.

        Raises:
            DataError: the source has times of two forms that exclude each other.
        """
        self._check_time_forms(time_forms or {})
        self._ignored += ignored
        if not len(ratings):
            return
        if not self._good:
            self._has_ratings = has_ratings(ratings)
            if RATED_AT in ratings.column_names:
                self._spill = Spill(TIMED_ROW)
        self._batches.append(ratings)
        self._good += len(ratings)
        self._waiting += len(ratings)
        if self._waiting >= BATCH:
            self._flush()

    def reject(self, where: str, reason: str, row: str) -> None:
        """Add one bad row: its place (``line 8123``), what is wrong with it, and the row as the source has it."""
        self._rejects.add(where, reason, row)

    def check(self, rows_left: int | None) -> None:
        """Refuse the source as soon as its bad rows are too many, whatever follows.

        Args:
            rows_left: the most rows that may follow; None if unknown: then half of 100,000 rows being bad is too many.

        Raises:
            DataError: as ``finish``.
        """
        bad, read = self._rejects.count, self.rows_read
        if rows_left is None:
            is_over = read >= EARLY and 2 * bad >= read and bad > self._max_reject_fraction * read
        else:
            is_over = bad > self._max_reject_fraction * (read + rows_left)
        if is_over:
            self._rejects.check(self._good + self._ignored)

    def odd(self, where: str, row: str, ids: Mapping[str, str]) -> None:
        """Report a row given to ``add`` that has ids, by role of ``untyped``, that are not integers. It is a bad row if
        nearly all others have integers."""
        self._rejects.add_odd(where, row, ids)
        for role, text in ids.items():
            self._first_odd.setdefault(role, f"{where}: {shown(text)}")
            self._odd[role] += 1
            if self._odd[role] >= MOST_ODD and 2 * self._odd[role] >= self._good:
                self.untyped.discard(role)

    def text(self, role: str, where: str, id: str) -> None:
        """Make the ids of a role of ``untyped`` text."""
        self._first_odd.setdefault(role, f"{where}: {shown(id)}")
        self.untyped.discard(role)

    def finish(self, output: Path, rejects: Path, columns: dict[str, str], *, for_training: bool = False) -> Provenance:
        """Write the ratings to ``output`` (Parquet, sorted by user and movie, see ``ratings_schema``) and the bad rows
        to ``rejects`` (CSV: where, reason, row). A (user, movie) pair that occurs twice keeps its latest rating: by
        ``rated_at`` when there is one, and among equals the last of the source. Ids are int64 when they are in every
        batch, else strings. In a role of ``untyped`` they are int64 as well where at most ``max_reject_fraction`` of
        the rows, and fewer than half, have an id that is not an integer; those are bad rows.

        Args:
            for_training: refuse ratings that are all the same.

        Raises:
            DataError: there is no row, no good row, or too many bad ones; or as ``for_training`` says. Nothing is
                written then.
        """
        self._flush()
        text_ids = self._settle_ids()
        self._rejects.check(self._good + self._ignored)
        if not self._good:
            ignored = ", ".join(f"{one:g}" for one in self._ignore_ratings)
            raise DataError(f"{self.source}: each rating is one of --ignore_ratings {ignored}: nothing is left")

        def provenance_of(kept: int) -> Provenance:
            bad = self._rejects
            if for_training and kept > 1 and (only := values.only()) is not None:
                raise same_ratings(bad.source, only, kept)
            counts = self.rows_read, bad.count, self._good - kept, kept
            return Provenance(
                bad.source,
                *counts,
                columns=columns,
                text_ids=text_ids,
                values=values.text(),
                rows_ignored=self._ignored,
                ignore_ratings=list(self._ignore_ratings),
                warning=self._times.warning(self._time_forms.get(EPOCHS)),
            )

        values = _Values()
        with written_aside(rejects) as aside, Progress(f"write {output}", self._good) as progress:
            self._rejects.write(aside)
            schema, parts = self._parts()
            return write_parts(_counted(parts, progress, values), schema, output, provenance_of)

    def _settle_ids(self) -> dict[str, str]:
        """Decide the type of ids read as text; returns the first id that is no integer of those that are text."""
        columns = {USER: self._users, MOVIE: self._movies}
        drop = {role: np.zeros(len(ids), np.bool_) for role, ids in columns.items()}
        integers = set()
        for role, ids in columns.items():
            if role not in self.untyped or (is_odd := ids.odd()) is None:
                continue
            count = self._spill.count_of(role, is_odd) if is_odd.any() else 0
            if count <= self._max_reject_fraction * self._good and 2 * count < self._good:
                integers.add(role)
                drop[role] = is_odd
        if any(is_odd.any() for is_odd in drop.values()):
            self._spill = self._spill.without(drop[USER], drop[MOVIE])
            self._good = self._spill.count
        for role in integers:
            columns[role].to_integers()
        self._rejects.settle(integers)
        return {role: why for role, why in sorted(self._first_odd.items(), reverse=True) if role not in integers}

    def _check_time_forms(self, time_forms: Mapping[str, str]) -> None:
        # A number of eight digits may be a date or epoch seconds of 1970; the other numbers of the source would decide.
        self._time_forms = {**time_forms, **self._time_forms}
        if len(self._time_forms) > 1:
            found = " and ".join(f"{form} ({where})" for form, where in sorted(self._time_forms.items()))
            raise DataError(
                f"{self.source}: the column of times has both {found}, expected one of them: correct it, name another "
                "column with --timestamp_column, or read the ratings without times with --timestamp_column none"
            )

    def _flush(self) -> None:
        """Move the batches to the temporary file."""
        if not self._batches:
            return
        rows = np.empty(self._waiting, self._spill.dtype)
        rows[USER] = self._users.codes([batch[USER] for batch in self._batches])
        rows[MOVIE] = self._movies.codes([batch[MOVIE] for batch in self._batches])
        rest = pa.concat_tables([batch.drop_columns([USER, MOVIE]) for batch in self._batches])
        rows[RATING] = rest[RATING].to_numpy() if self._has_ratings else 0
        if rows.dtype == TIMED_ROW:
            rows[RATED_AT] = times(rest)
            self._times.add(rows[RATED_AT])
        self._spill.append(rows)
        self._batches.clear()
        self._waiting = 0

    def _parts(self) -> tuple[pa.Schema, Iterator[pa.Table]]:
        """The schema and the parts of the table to write."""
        user_ids, user_rank = self._users.ranked()
        movie_ids, movie_rank = self._movies.ranked()
        timestamps = self._spill.dtype == TIMED_ROW
        schema = ratings_schema(user_ids.type, movie_ids.type, timestamps=timestamps, ratings=self._has_ratings)
        decode = partial(_table, user_ids, movie_ids, self._has_ratings)
        return schema, in_order(decode, self._spill.by_user(user_rank, movie_rank))


class _Values:
    """Range and most frequent values of the ratings."""

    def __init__(self) -> None:
        self._counts: Counter[float] | None = Counter()  # None: too many distinct values
        self._low, self._high = np.inf, -np.inf

    def add(self, ratings: pa.ChunkedArray) -> None:
        ends = pc.min_max(ratings).as_py()
        self._low, self._high = min(self._low, ends["min"]), max(self._high, ends["max"])
        if self._counts is not None:
            counts = ratings.value_counts()
            self._counts.update(dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))
            if len(self._counts) > MOST_VALUES:
                self._counts = None

    def only(self) -> float | None:
        """The rating that all have; None where they differ, or there are none."""
        return float(self._low) if self._low == self._high else None

    def text(self) -> str:
        if self._low > self._high:
            return ""
        if not self._counts:
            return f"ratings {np.float32(self._low):g} to {np.float32(self._high):g}"
        total = self._counts.total()

        def share(value: float) -> str:
            return f"{value:g} ({self._counts[value] / total:.0%})"  # type: ignore[index]

        most = ", ".join(share(value) for value, _ in self._counts.most_common(3))
        text = f"ratings {share(self._low)} to {share(self._high)}, most often {most}"
        if doubtful := not_rated(self._counts):
            ratings = " or ".join(f"{rating:g}" for rating in doubtful)
            text += f" (if {ratings} means not rated, leave it out with ignore_ratings)"
        return text


def _counted(parts: Iterable[pa.Table], progress: Progress, values: _Values) -> Iterator[pa.Table]:
    for part in parts:
        if has_ratings(part):
            values.add(part[RATING])
        yield part
        progress.advance(len(part))


def _table(user_ids: pa.Array, movie_ids: pa.Array, with_ratings: bool, rows: RowArray) -> pa.Table:
    """Rows with ranks in place of ids as ratings, sorted, each pair once."""
    rows = sorted_once(rows, len(movie_ids))
    columns = {
        USER: _decoded(user_ids, rows[USER]),
        MOVIE: _decoded(movie_ids, rows[MOVIE]),
    }
    if with_ratings:
        columns[RATING] = pa.array(np.ascontiguousarray(rows[RATING]))
    if rows.dtype == TIMED_ROW:
        columns[RATED_AT] = instants(np.ascontiguousarray(rows[RATED_AT]))
    return pa.table(columns)


class _Ids:
    """Distinct ids of users or of movies: int64, all strings once one is a string. An id's code is its position."""

    def __init__(self) -> None:
        self._ids = pa.array([], pa.int64())

    def __len__(self) -> int:
        return len(self._ids)

    def odd(self) -> npt.NDArray[np.bool_] | None:
        """Which ids, by code, are not integers; None if all are."""
        if pa.types.is_integer(self._ids.type):
            return None
        is_odd: npt.NDArray[np.bool_] = integer_ids(self._ids).is_null().to_numpy(zero_copy_only=False)
        return is_odd

    def to_integers(self) -> None:
        """Make the ids int64; no row may have one of ``odd`` any more."""
        self._ids = integer_ids(self._ids)

    def codes(self, columns: Iterable[pa.ChunkedArray]) -> npt.NDArray[np.int32]:
        """The code of every row's id."""
        encoded = [_encoded(column) for column in columns]
        chunks = [chunk for column in encoded for chunk in column.chunks]
        if len(self._ids):
            # An array without rows, so that the earlier ids keep their codes.
            chunks.insert(0, pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), self._ids))
        if len({chunk.dictionary.type for chunk in chunks}) > 1:
            chunks = [pa.DictionaryArray.from_arrays(c.indices, c.dictionary.cast(pa.string())) for c in chunks]
        self._check_room([chunk.dictionary for chunk in chunks])
        chunks = pa.chunked_array(chunks).unify_dictionaries().chunks
        self._ids = chunks[0].dictionary
        return np.concatenate([chunk.indices.to_numpy() for chunk in chunks])

    def _check_room(self, parts: list[pa.Array]) -> None:
        """Refuse more text than one array of distinct ids holds, beyond which Arrow crashes."""
        if pa.types.is_integer(parts[0].type if parts else pa.int64()) or sum(p.nbytes for p in parts) <= MOST_TEXT:
            return
        known = self._ids.cast(parts[0].type)
        new = [part.filter(pc.invert(pc.is_in(part, value_set=known))) for part in parts]
        if known.nbytes + sum(part.nbytes for part in new) > MOST_TEXT:
            raise DataError(
                f"found more than {MOST_TEXT:,} bytes of different text ids of users or of movies, expected no more "
                "(53 million UUIDs): use shorter ids, or integers"
            )

    def ranked(self) -> tuple[pa.Array, npt.NDArray[np.int32]]:
        """The sorted ids, and the rank of each id by its code (int32)."""
        order = pc.array_sort_indices(self._ids).to_numpy()  # nulls are last
        ids = self._ids.take(pa.array(order))
        rank = np.empty(len(order), np.int32)
        if pa.types.is_integer(ids.type) and len(ids):
            # 7 and 7.0 are one id with two codes.
            numbers = ids.fill_null(0).to_numpy()
            is_new = np.append(True, numbers[1:] != numbers[:-1])
            rank[order] = is_new.cumsum(dtype=np.int32) - np.int32(1)
            return ids.filter(pa.array(is_new)), rank
        rank[order] = np.arange(len(order), dtype=np.int32)
        return ids, rank


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
    # A table of the range takes a fifth of a hash table's time.
    places = numbers - low
    occurs = np.zeros(high - low + 1, np.bool_)
    occurs[places] = True
    codes = occurs.cumsum(dtype=np.int32) - np.int32(1)
    return pa.chunked_array([pa.DictionaryArray.from_arrays(codes[places], occurs.nonzero()[0] + low)])


def ranked(column: pa.ChunkedArray) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """The sorted distinct ids (int64 or string) of a column, and the rank of every row's id among them, int32."""
    ids = _Ids()
    codes = ids.codes([column])
    distinct, rank = ids.ranked()
    return distinct, rank[codes]


def by_pair(ratings: pa.Table) -> pa.Table:
    """Ratings sorted by user and movie."""
    (user_ids, users), (movie_ids, movies) = ranked(ratings[USER]), ranked(ratings[MOVIE])
    # A stable sort by one number is free for rows in order, as ingest writes them; a sort by two numbers is not.
    order = np.argsort(users * (movies.max(initial=0) + np.int64(1)) + movies, kind="stable")
    # Ids are taken as numbers, since ``take`` fails on columns of more than 2 GiB of text.
    rest = ratings.drop_columns([USER, MOVIE]).take(pa.array(order))
    ids = {USER: _decoded(user_ids, users[order]), MOVIE: _decoded(movie_ids, movies[order])}
    return pa.table([ids[name] if name in ids else rest[name] for name in ratings.column_names], ratings.column_names)


def _decoded(ids: pa.Array, rows: npt.NDArray[np.int32]) -> pa.ChunkedArray:
    chunk = CHUNK
    if not pa.types.is_integer(ids.type) and len(ids):
        # A string array holds at most 2 GiB of text.
        chunk = min(CHUNK, MOST_TEXT // max(1, pc.max(pc.binary_length(ids)).as_py()))
    chunks = [ids.take(pa.array(rows[i : i + chunk])) for i in range(0, len(rows), chunk)]
    return pa.chunked_array(chunks, ids.type)
