"""What a table of ratings is, and how it lies on disk as Parquet."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mf.errors import DataError
from mf.files import written_aside

USER, MOVIE, RATING, RATED_AT = "user_id", "movie_id", "rating", "rated_at"
TIMESTAMP = pa.timestamp("us", tz="UTC")
METADATA_KEY = b"mf"
ROW_GROUP = 1 << 21  # rows of the Parquet file that are laid down together, at most
UNKNOWN_TIME = int(np.iinfo(np.int64).min)  # where a time must be a number; no time is so early

IdType = Literal["bigint", "text", "uuid"]
_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


@dataclass(frozen=True)
class Provenance:
    """Where ratings came from and what became of them; kept in the Parquet file's schema metadata under ``mf``."""

    source: str  # a path, a gs:// address or "table public.ratings"; never a URL with a secret
    rows_read: int  # data rows of the source, good or bad
    rows_rejected: int  # rows that could not be used; each stands in rejects.csv
    rows_replaced: int  # ratings of a (user, movie) pair that gave way to a later one
    rows_kept: int  # rows_read - rows_rejected - rows_replaced
    content_hash: str = ""  # of the kept rows in the order of the file; filled in by write_ratings
    columns: dict[str, str] = field(default_factory=dict)  # which source column was read as what

    def summary(self) -> str:
        """One line for a person."""
        return (
            f"{self.source}: {self.rows_read:,} rows read, {self.rows_rejected:,} rejected, "
            f"{self.rows_replaced:,} replaced by a later rating of the same pair, {self.rows_kept:,} kept"
        )


@dataclass(frozen=True)
class TrainedOn:
    """Which ratings a model has learned from; noted with the model, and with the run that is published of it."""

    source: str  # as in ``Provenance``
    columns: dict[str, str]  # as in ``Provenance``
    content_hash: str  # of the training part, and of what a model that it started from was trained on
    until: str | None  # time of the newest rating that it has seen, ISO 8601; None where that is not known

    @classmethod
    def of(cls, provenance: Provenance, train: pa.Table, validation: pa.Table) -> "TrainedOn":
        """What a training on ``train``, steered by ``validation``, sees of the ratings of ``provenance``."""
        times = [pc.max(part[RATED_AT]).as_py() for part in (train, validation) if RATED_AT in part.column_names]
        newest = max(filter(None, times), default=None)
        until = newest.isoformat() if newest else None
        return cls(provenance.source, provenance.columns, content_hash(train), until)

    def after(self, earlier: "TrainedOn | None") -> "TrainedOn":
        """The same for a training that started from a model, which was trained on ``earlier``; None: nobody knows."""
        seen = (self.until, earlier.until) if earlier else (None,)
        until = None if None in seen else max(filter(None, seen), key=datetime.fromisoformat)
        both = f"{self.content_hash} after {earlier.content_hash if earlier else 'what nobody knows'}"
        return replace(self, content_hash=hashlib.sha256(both.encode()).hexdigest()[:16], until=until)

    @classmethod
    def read(cls, noted: Any) -> "TrainedOn | None":
        """What was noted, as JSON has it; None where nothing was, or something else."""
        try:
            return cls(**noted)
        except TypeError:
            return None

    def is_same_source(self, other: "TrainedOn") -> bool:
        """Whether both are of one file or table and of the same columns of it, whatever rows it has had since."""
        return (self.source, self.columns) == (other.source, other.columns)


def ratings_schema(user: pa.DataType, movie: pa.DataType, *, timestamps: bool) -> pa.Schema:
    """``user_id`` and ``movie_id`` (int64 or string), ``rating`` float32 and, when the source has one, ``rated_at``
    (microseconds, UTC; null where it is unknown)."""
    columns = [(USER, user), (MOVIE, movie), (RATING, pa.float32())]
    return pa.schema(columns + ([(RATED_AT, TIMESTAMP)] if timestamps else []))


def write_ratings(table: pa.Table, path: Path, provenance: Provenance) -> Provenance:
    """Writes ``table`` (a ``ratings_schema`` table, sorted by user and movie) to ``path`` as zstd Parquet, aside and
    then renamed. Returns the provenance with the content hash filled in."""
    return write_parts([table], table.schema, path, lambda _: provenance)


def write_parts(
    parts: Iterable[pa.Table], schema: pa.Schema, path: Path, provenance_of: Callable[[int], Provenance]
) -> Provenance:
    """As ``write_ratings``, for a table that comes in parts and whose provenance depends on how many rows it has."""
    rows, content = 0, _ContentHash(schema)
    # Arrow's own copy of the schema is written first; with it in the file, nothing that is noted later would be read.
    options = {"compression": "zstd", "store_schema": False}
    with written_aside(path) as aside, pq.ParquetWriter(aside, schema, **options) as writer:
        for part in parts:
            writer.write_table(part, row_group_size=ROW_GROUP)
            content.update(part)
            rows += len(part)
        provenance = replace(provenance_of(rows), content_hash=content.digits())
        writer.add_key_value_metadata({METADATA_KEY: json.dumps(asdict(provenance))})
    return provenance


def read_ratings(path: Path) -> tuple[pa.Table, Provenance]:
    """Reads what ``write_ratings`` wrote.

    Raises:
        DataError: the file is missing, is no Parquet file, or is not a table of ratings.
    """
    provenance = read_provenance(path)
    return pq.read_table(path, partitioning=None).replace_schema_metadata(None), provenance


def read_provenance(path: Path) -> Provenance:
    """What ``write_ratings`` noted of where the ratings came from, without reading them.

    Raises:
        DataError: as ``read_ratings``.
    """
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not a Parquet file of ratings ({str(error).splitlines()[0]})") from None
    noted = (schema.metadata or {}).get(METADATA_KEY)
    if schema.names[:3] != [USER, MOVIE, RATING] or noted is None:
        raise DataError(
            f"{path}: expected a file of ratings as ingest writes it ({USER}, {MOVIE}, {RATING} and their source), "
            f"found the columns {', '.join(schema.names)}"
        )
    return Provenance(**json.loads(noted))


def content_hash(table: pa.Table) -> str:
    """16 hexadecimal digits that depend on the rows' values and their order, and not on how their memory is cut."""
    content = _ContentHash(table.schema)
    content.update(table)
    return content.digits()


class _ContentHash:
    """The ``content_hash`` of a table that comes in parts: a digest of each column's bytes, and one of those."""

    def __init__(self, schema: pa.Schema) -> None:
        self._types = ",".join(map(str, schema.types))
        self._columns = [hashlib.sha256() for _ in schema]

    def update(self, part: pa.Table) -> None:
        for digest, column in zip(self._columns, part.columns, strict=True):
            for chunk in filter(len, column.chunks):
                digest.update(_bytes(chunk))

    def digits(self) -> str:
        columns = b"".join(digest.digest() for digest in self._columns)
        return hashlib.sha256(self._types.encode() + columns).hexdigest()[:16]


def _bytes(values: pa.Array) -> Any:
    """A buffer that no other values of this type have, at least one; those of two arrays make that of both together."""
    if pa.types.is_string(values.type):
        # A byte that UTF-8 never has ends each text.
        ended = pc.binary_join_element_wise(values.cast(pa.binary()), pa.scalar(b"", pa.binary()), b"\xff")
        return ended.buffers()[2]
    if pa.types.is_timestamp(values.type):
        values = _micros(values)
    return values.to_numpy()


def times(ratings: pa.Table) -> npt.NDArray[np.int64]:
    """``rated_at`` in microseconds, int64, for putting ratings in order: an unknown time is older than any."""
    micros: npt.NDArray[np.int64] = _micros(ratings[RATED_AT]).to_numpy()
    return micros


def instants(micros: npt.NDArray[np.int64]) -> pa.TimestampArray:
    """The ``rated_at`` whose ``times`` are ``micros``."""
    return pa.array(micros, mask=micros == UNKNOWN_TIME).cast(TIMESTAMP)


def _micros(rated_at: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return rated_at.cast(pa.int64()).fill_null(UNKNOWN_TIME)


def id_type(ids: pa.Array | pa.ChunkedArray) -> IdType:
    """The database type that holds these ids as they are: ``bigint`` for integers, ``uuid`` when every one is a UUID in
    its canonical form (so that PostgreSQL gives back the same letters), else ``text``."""
    if pa.types.is_integer(ids.type):
        return "bigint"
    # pc.all of nothing is true; ids of nothing are text.
    if len(ids) and pc.all(pc.match_substring_regex(ids, _UUID)).as_py():
        return "uuid"
    return "text"
