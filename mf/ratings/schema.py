"""Schema of ratings; reading and writing them as Parquet, with provenance and content hash."""

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mf.errors import DataError
from mf.files import written_aside
from mf.ratings.names import COUNT as COUNT
from mf.ratings.names import MOVIE as MOVIE
from mf.ratings.names import RATED_AT as RATED_AT
from mf.ratings.names import RATING as RATING
from mf.ratings.names import USER as USER
from mf.ratings.names import IdType as IdType
from mf.terminal import printable

TIMESTAMP = pa.timestamp("us", tz="UTC")
METADATA_KEY = b"mf"
ROW_GROUP = 1 << 21  # rows per Parquet row group, at most
LEAST_ROW_GROUP = 1 << 20  # rows of small parts that are written as one row group
UNKNOWN_TIME = int(np.iinfo(np.int64).min)  # an unknown time as a number; earlier than any time

_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


@dataclass(frozen=True)
class Provenance:
    """Source and row counts of ratings; in the Parquet file's schema metadata under ``mf``."""

    source: str  # a path, a gs:// address or "table public.ratings"; never a URL with a secret
    rows_read: int  # data rows of the source, good or bad
    rows_rejected: int  # bad rows; each is listed in rejects.csv
    rows_replaced: int  # ratings replaced by a later one of the same (user, movie) pair
    rows_kept: int  # rows_read - rows_rejected - rows_replaced - rows_ignored
    content_hash: str = ""  # of the kept rows in the order of the file; filled in by write_ratings
    columns: dict[str, str] = field(default_factory=dict)  # which source column was read as what
    text_ids: dict[str, str] = field(default_factory=dict)  # of text ids of a file, the first
    values: str = ""  # range and most frequent values of the kept ratings
    rows_ignored: int = 0  # rows whose rating is one of ``ignore_ratings``
    ignore_ratings: list[float] = field(default_factory=list)  # ratings that are left out
    split: dict[str, float] = field(default_factory=dict)  # of a part of split=hash: seed and test_size
    warning: str = ""  # of times that probably mean something else

    def summary(self) -> str:
        """One line for the log, and a second one for a warning."""
        texts = "".join(f"; {role.replace('_', ' ')}s are text ({why})" for role, why in self.text_ids.items())
        values = f"; {self.values}" if self.values else ""
        repeats = "replaced by a later rating of the same pair" if self.has_ratings else "repeats of a pair"
        if self.columns and not self.has_ratings:
            count = f" ({self.columns[COUNT]} as at least once)" if COUNT in self.columns else ""
            values = f"; without ratings: only the columns {', '.join(self.columns.values())} are read{count}"
        ignored = ""
        if self.ignore_ratings:
            ignored = f"{self.rows_ignored:,} ignored (rating {', '.join(f'{one:g}' for one in self.ignore_ratings)}), "
        line = printable(
            f"{self.source}: {self.rows_read:,} rows read, {self.rows_rejected:,} rejected, "
            f"{ignored}{self.rows_replaced:,} {repeats}, {self.rows_kept:,} kept{values}{texts}"
        )
        return f"{line}\n{printable(f'warning: {self.warning}')}" if self.warning else line

    @property
    def has_ratings(self) -> bool:
        """Whether a rating column was read; without one the rows are clicks, plays or purchases."""
        return not self.columns or RATING in self.columns


@dataclass(frozen=True)
class TrainedOn:
    """The ratings that a model was trained on; stored with the model and with its published run."""

    source: str  # as in ``Provenance``
    columns: dict[str, str]  # as in ``Provenance``
    content_hash: str  # of the training part, combined with that of the model it was warm-started from
    until: str | None  # time of the newest rating used in training, ISO 8601; None if unknown
    # Of what a ranking model is trained on, as a rule the training and the validation part; empty in an older record.
    seen_hash: str = ""
    split: dict[str, float] = field(default_factory=dict)  # as in ``Provenance``

    @classmethod
    def of(
        cls,
        provenance: Provenance,
        train: "pa.Table | Path",
        validation: "pa.Table | Path",
        lists_from_validation: bool = True,
    ) -> "TrainedOn":
        """The record of a training on ``train``, validated on ``validation``, of the ratings of ``provenance``."""
        newest = max(filter(None, map(_newest, (train, validation))), default=None)
        until = newest.isoformat() if newest else None
        of_train = content_hash(train)
        parts = [of_train, content_hash(validation)] if lists_from_validation else [of_train]
        seen = hashlib.sha256(" and ".join(parts).encode()).hexdigest()[:16]
        return cls(provenance.source, provenance.columns, of_train, until, seen, provenance.split)

    def after(self, earlier: "TrainedOn | None") -> "TrainedOn":
        """The same record for a warm start from a model trained on ``earlier`` (None: unknown)."""
        both = (self.until, earlier.until) if earlier else (None,)
        until = None if None in both else max(filter(None, both), key=datetime.fromisoformat)
        hashes = f"{self.content_hash} after {earlier.content_hash if earlier else 'what nobody knows'}"
        split = self.split if earlier and earlier.split == self.split else {}
        return replace(self, content_hash=hashlib.sha256(hashes.encode()).hexdigest()[:16], until=until, split=split)

    @classmethod
    def read(cls, record: Any) -> "TrainedOn | None":
        """The record from its JSON object; None where it is missing or something else."""
        try:
            read = cls(**record)
            if read.until is not None:
                datetime.fromisoformat(read.until)
            if read.split and not {"seed", "test_size"} <= read.split.keys():
                return None
        except (TypeError, ValueError, AttributeError):
            return None
        texts = (read.source, read.content_hash, read.seen_hash)
        return read if isinstance(read.columns, dict) and all(isinstance(text, str) for text in texts) else None

    def held_out_too(self, other: "TrainedOn") -> bool:
        """Whether a model of these ratings has seen no test rating of ``other``: both are of the same split=hash."""
        ours, theirs = self.split, other.split
        return bool(ours and theirs) and ours["seed"] == theirs["seed"] and ours["test_size"] >= theirs["test_size"]

    def is_same_source(self, other: "TrainedOn") -> bool:
        """Whether both are of the same file or table and of the same columns, whatever rows it had."""
        return (self.source, self.columns) == (other.source, other.columns)


def ratings_schema(user: pa.DataType, movie: pa.DataType, *, timestamps: bool, ratings: bool = True) -> pa.Schema:
    """``user_id`` and ``movie_id`` (int64 or string) and, when the source has them, ``rating`` float32 and ``rated_at``
    (microseconds, UTC; null where it is unknown)."""
    optional = [(RATING, pa.float32())] * ratings + [(RATED_AT, TIMESTAMP)] * timestamps
    return pa.schema([(USER, user), (MOVIE, movie), *optional])


def has_ratings(table: pa.Table) -> bool:
    """Whether ``table`` (a ``ratings_schema`` table) has ratings; without them its rows are clicks."""
    return RATING in table.column_names


def same_ratings(where: str, rating: float, rows: int) -> DataError:
    """The error for ratings that are all the same."""
    return DataError(
        f"{where}: found no other rating than {rating:g}, in {rows:,} rows, expected at least two different ratings; "
        "where a row is a click, a play or a purchase, use rating_column=none"
    )


def check_ratings_differ(ratings: pa.Table, where: str) -> None:
    """Checks that not all ratings of a table are the same; a single rating passes, and a table without ratings.

    Raises:
        DataError: they are.
    """
    if has_ratings(ratings) and len(ratings) > 1:
        ends = pc.min_max(ratings[RATING]).as_py()
        if ends["min"] == ends["max"]:
            raise same_ratings(where, ends["min"], len(ratings))


def write_ratings(table: pa.Table, path: Path, provenance: Provenance) -> Provenance:
    """Write ``table`` (a ``ratings_schema`` table, sorted by user and movie) to ``path`` as zstd Parquet, atomically.
    Returns the provenance with the content hash."""
    return write_parts([table], table.schema, path, lambda _: provenance)


def write_parts(
    parts: Iterable[pa.Table], schema: pa.Schema, path: Path, provenance_of: Callable[[int], Provenance]
) -> Provenance:
    """As ``write_ratings``, for a table in parts; ``provenance_of`` gives the provenance for its number of rows."""
    with RatingsWriter(path, schema) as writer:
        for part in parts:
            writer.write(part)
        return writer.finish(provenance_of(writer.rows))


class RatingsWriter:
    """A file of ratings, written in parts and atomically; ``finish`` it in the ``with`` block.

    Attributes:
        rows: rows so far.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._path, self._schema = path, schema
        self._content = _ContentHash(schema)
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> "RatingsWriter":
        with ExitStack() as stack:
            aside = stack.enter_context(written_aside(self._path))
            # With Arrow's own copy of the schema in the file, metadata added at the end would not be read.
            writer = pq.ParquetWriter(aside, self._schema, compression="zstd", store_schema=False)
            self._writer = stack.enter_context(writer)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, part: pa.Table) -> None:
        """Add rows."""
        self.rows += len(part)
        self._waiting.append(part)
        if sum(map(len, self._waiting)) >= LEAST_ROW_GROUP:
            self._flush()

    def finish(self, provenance: Provenance) -> Provenance:
        """Add the provenance; returns it with the content hash."""
        self._flush()
        provenance = replace(provenance, content_hash=self._content.digits())
        self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(asdict(provenance))})
        return provenance

    def _flush(self) -> None:
        if self._waiting:
            part = pa.concat_tables(self._waiting)
            self._writer.write_table(part, row_group_size=ROW_GROUP)
            self._content.update(part)
            self._waiting.clear()


def read_ratings(path: Path, *, encoded: bool = False) -> tuple[pa.Table, Provenance]:
    """Read a file of ``write_ratings``.

    Args:
        encoded: ids as dictionary columns, 4 bytes per row, with one row group of plain ids in memory at a time.

    Raises:
        DataError: the file is missing, not Parquet, or not a table of ratings.
    """
    provenance = read_provenance(path)
    if encoded:
        with pq.ParquetFile(path) as file:
            groups = [encoded_ids(file.read_row_group(group)) for group in range(file.num_row_groups)]
            return pa.concat_tables(groups or [encoded_ids(file.schema_arrow.empty_table())]), provenance
    return pq.read_table(path, partitioning=None).replace_schema_metadata(None), provenance


def encoded_ids(ratings: pa.Table) -> pa.Table:
    """The same ratings with ids as dictionary columns."""
    columns = {name: ratings[name] for name in ratings.column_names}
    return pa.table({name: c.dictionary_encode() if name in (USER, MOVIE) else c for name, c in columns.items()})


def read_provenance(path: Path) -> Provenance:
    """The provenance in a file of ``write_ratings``, without reading the ratings.

    Raises:
        DataError: as ``read_ratings``.
    """
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not a Parquet file of ratings ({str(error).splitlines()[0]})") from None
    provenance = (schema.metadata or {}).get(METADATA_KEY)
    if schema.names[:2] != [USER, MOVIE] or {*schema.names[2:]} - {RATING, RATED_AT} or provenance is None:
        raise DataError(
            f"{path}: expected a file of ratings as ingest writes it ({USER}, {MOVIE}, {RATING} and their source), "
            f"found the columns {', '.join(schema.names)}"
        )
    return Provenance(**json.loads(provenance))


def in_memory(ratings: pa.Table | Path) -> pa.Table:
    """A table of ratings; a file is read, with encoded ids."""
    return ratings if isinstance(ratings, pa.Table) else read_ratings(ratings, encoded=True)[0]


def content_hash(ratings: pa.Table | Path) -> str:
    """16 hexadecimal digits of the rows' values and their order; the same however the columns are chunked or
    encoded. A file of ``write_ratings`` has its own."""
    if isinstance(ratings, Path):
        return read_provenance(ratings).content_hash
    content = _ContentHash(ratings.schema)
    content.update(ratings)
    return content.digits()


def _newest(ratings: pa.Table | Path) -> datetime | None:
    """The time of the newest rating, where one is known."""
    if isinstance(ratings, Path):
        with pq.ParquetFile(ratings, pre_buffer=False) as file:
            batches = file.iter_batches(columns=[RATED_AT]) if RATED_AT in file.schema_arrow.names else ()
            found = [pc.max(batch[RATED_AT]).as_py() for batch in batches]
    else:
        found = [pc.max(ratings[RATED_AT]).as_py()] if RATED_AT in ratings.column_names else []
    return max(filter(None, found), default=None)


class _ContentHash:
    """The ``content_hash`` of a table in parts: the digest of one digest per column."""

    def __init__(self, schema: pa.Schema) -> None:
        types = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in schema.types]
        self._types = ",".join(map(str, types))
        self._columns = [hashlib.sha256() for _ in schema]

    def update(self, part: pa.Table) -> None:
        for digest, column in zip(self._columns, part.columns, strict=True):
            for chunk in filter(len, column.chunks):
                digest.update(_bytes(chunk))

    def digits(self) -> str:
        columns = b"".join(digest.digest() for digest in self._columns)
        return hashlib.sha256(self._types.encode() + columns).hexdigest()[:16]


def _bytes(values: pa.Array) -> Any:
    """A buffer that identifies at least one value; the buffers of two arrays join to that of both together."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_string(values.type):
        # Each text ends with a byte that UTF-8 never has.
        ended = pc.binary_join_element_wise(values.cast(pa.binary()), pa.scalar(b"", pa.binary()), b"\xff")
        return ended.buffers()[2]
    if pa.types.is_timestamp(values.type):
        values = _micros(values)
    return values.to_numpy()


def times(ratings: pa.Table) -> npt.NDArray[np.int64]:
    """``rated_at`` in microseconds, int64, for sorting: an unknown time is older than any."""
    micros: npt.NDArray[np.int64] = _micros(ratings[RATED_AT]).to_numpy()
    return micros


def instants(micros: npt.NDArray[np.int64]) -> pa.TimestampArray:
    """The ``rated_at`` whose ``times`` are ``micros``."""
    return pa.array(micros, mask=micros == UNKNOWN_TIME).cast(TIMESTAMP)


def _micros(rated_at: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return rated_at.cast(pa.int64()).fill_null(UNKNOWN_TIME)


def id_type(ids: pa.Array | pa.ChunkedArray) -> IdType:
    """The database type for these ids: ``bigint`` for integers, ``uuid`` when all are UUIDs in canonical form (so that
    PostgreSQL gives back the same letters), else ``text``."""
    if pa.types.is_integer(ids.type):
        return "bigint"
    # pc.all of no values is true.
    if len(ids) and pc.all(pc.match_substring_regex(ids, _UUID)).as_py():
        return "uuid"
    return "text"
