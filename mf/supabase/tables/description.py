"""What a table of ratings must be like, and which of its rows can be used, whichever way it is read."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mf.errors import ConfigError, DataError, SupabaseError
from mf.ratings.config import IngestConfig, utc
from mf.ratings.schema import MOVIE, RATED_AT, RATING, TIMESTAMP, UNKNOWN_TIME, USER, instants

SCHEMA = "public"  # the one that Supabase's API shows by default
KEY = "the key"
# What a column may be, as JSON sees it, to serve as what. A number that is no integer can be neither id nor key: a
# numeric's last digits are lost on the way.
TYPES = {
    USER: ("integer", "string"),
    MOVIE: ("integer", "string"),
    RATING: ("integer", "number"),
    RATED_AT: ("integer", "number", "string"),
    KEY: ("integer", "string", "boolean"),
}
# Types whose values PostgreSQL itself compares with a time.
TIMES = ("timestamp with time zone", "timestamp without time zone", "date")
# Epoch times above this are milliseconds; as seconds they would lie beyond the year 5138.
EPOCH_SECONDS_MAX = 1e11
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The first and the last time that Python has, in microseconds.
YEAR_1 = (datetime.min.replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
YEAR_10000 = (datetime.max.replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)

Row = Mapping[str, Any]


def table_name(asked: str) -> str:
    """The name, without its schema, of ``--import_table``.

    Raises:
        ConfigError: it is of another schema than public.
    """
    schema, _, name = asked.partition(".") if "." in asked else (SCHEMA, "", asked)
    if schema != SCHEMA:
        raise ConfigError(f"--import_table {schema}.{name}: expected a table of the schema {SCHEMA}; make a view there")
    return name


def grant(table: str, role: str) -> str:
    """What to do when ``role``, that of a secret key if unknown, may not read ``table``."""
    role = "service_role" if role == "unknown" else role
    name = table if re.fullmatch("[a-z_][a-z0-9_]*", table) else '"' + table.replace('"', '""') + '"'
    return f"run `grant select on {SCHEMA}.{name} to {role};` in the SQL editor"


def missing(found: Iterable[str]) -> str:
    """What to do when there is no such table, ``found`` being those that there are."""
    return f"check --import_table; the tables to be seen are {', '.join(sorted(found)[:20]) or 'none'}"


@dataclass(frozen=True)
class Table:
    """A table or view as the database describes it."""

    name: str
    role: str  # the database role that reads it
    columns: Mapping[str, Mapping[str, str]]  # by name, in the table's order: type (in JSON), format (in SQL)
    primary_key: Sequence[str]
    not_null: frozenset[str]

    def __str__(self) -> str:
        return f"table {SCHEMA}.{self.name}"

    def key(self, asked: str) -> list[str]:
        """The columns of ``asked``, separated by commas, else those of the primary key; nothing when it has none."""
        key = [name.strip() for name in asked.split(",")] if asked else list(self.primary_key)
        for name in key:
            if name not in self.columns:
                raise DataError(f"{self}: no column {name!r} for --key_columns, found {', '.join(self.columns)}")
        return key

    def find_columns(self, config: IngestConfig) -> dict[str, str]:
        """``config.find_columns`` of this table, whose types and filter fit.

        Raises:
            DataError: a column is missing or of a type that does not serve.
        """
        columns = config.find_columns(list(self.columns), str(self))
        for use, name in [*columns.items(), *((KEY, name) for name in self.key(config.key_columns))]:
            self._check_type(name, use)
        if config.rated_since or config.rated_before:
            self._check_filter(columns)
        return columns

    @property
    def hints(self) -> dict[str, str]:
        """What to do, by the error code of a request that reads the table."""
        return {"42501": grant(self.name, self.role)}

    def nothing(self, config: IngestConfig) -> SupabaseError:
        """What it means when no row came."""
        asked = " of the time asked for" if config.rated_since or config.rated_before else ""
        return SupabaseError(
            f"cannot read {self}: it shows no rows{asked}: either it is empty (fill it), or row level security hides "
            f"its rows from the role {self.role} (use the secret key; a view must belong to a role that sees them)"
        )

    def _check_type(self, column: str, use: str) -> None:
        if self.columns[column].get("type") not in TYPES[use]:
            raise DataError(
                f"{self}: column {column} is of type {self.columns[column].get('format')}, expected "
                f"{' or '.join(TYPES[use])} for {use}: name another column, or read a view that casts it"
            )

    def _check_filter(self, columns: Mapping[str, str]) -> None:
        if RATED_AT not in columns:
            raise DataError(
                f"{self} has no column of times for --rated_since and --rated_before: name it with --timestamp_column"
            )
        kind = self.columns[columns[RATED_AT]].get("format")
        if kind not in TIMES:
            raise DataError(
                f"{self}: column {columns[RATED_AT]} is of type {kind}, expected {', '.join(TIMES)} for --rated_since "
                "and --rated_before: read a view that casts it"
            )


def usable(raw: pa.Table) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """Turns what a table gave into ratings.

    Args:
        raw: user_id and movie_id (int64 or string), rating (float32 or float64) and perhaps rated_at (timestamp,
            int64, float64 or string), with nulls.

    Returns:
        The usable rows, with the types of ``ratings_schema``; and which rows of ``raw`` they are, bool [rows].
    """
    with np.errstate(over="ignore"):
        rating = pc.fill_null(raw[RATING], np.nan).to_numpy().astype(np.float32, copy=False)
    good = np.isfinite(rating)
    for role in (USER, MOVIE):
        if raw[role].null_count:
            good &= pc.is_valid(raw[role]).to_numpy()
        if pa.types.is_string(raw[role].type):
            good &= pc.fill_null(pc.not_equal(raw[role], ""), False).to_numpy()
    table = raw.set_column(raw.column_names.index(RATING), RATING, pa.array(rating))
    if RATED_AT in raw.column_names:
        times, readable = _times(raw[RATED_AT])
        good &= readable
        table = table.set_column(table.column_names.index(RATED_AT), RATED_AT, times)
    return (table if good.all() else table.filter(pa.array(good))), good


def reject(
    rows: Iterable[Row], columns: Mapping[str, str], key: Sequence[str], take: Callable[[str, str, str], None]
) -> None:
    """Tells ``take`` of every one of ``rows``, by column name, where it stands, why it is no rating, and what it is."""
    for row in rows:
        where = ", ".join(f"{name}={row[name]}" for name in key)
        reason = _reason({role: row[name] for role, name in columns.items()})
        take(f"row {where}", reason, json.dumps(row, ensure_ascii=False))


def as_float(number: float | str) -> float:
    """A number of the database, which may be one that no float holds: infinity then."""
    try:
        return float(number)
    except OverflowError:  # a numeric without a point comes as an integer of any length
        return math.inf if int(number) > 0 else -math.inf


def _reason(cells: Row) -> str:
    for role, what in ((USER, "user id"), (MOVIE, "movie id"), (RATING, "rating")):
        if cells[role] in (None, ""):
            return f"empty {what}"
    rating = as_float(cells[RATING])
    if not math.isfinite(rating):
        return f"rating {rating} is not finite"
    if abs(rating) > float(np.finfo(np.float32).max):
        return f"rating {rating} is larger than float32 can hold"
    return f"timestamp {json.dumps(cells[RATED_AT])} is neither epoch seconds, epoch milliseconds nor ISO 8601"


def _times(values: pa.ChunkedArray) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Times of any kind as timestamps in UTC, null where they are unknown; and which are times, or unknown."""
    kind = values.type
    if pa.types.is_string(kind):
        return _read(values)
    known = pc.is_valid(values).to_numpy()
    if pa.types.is_timestamp(kind):
        micros = pc.fill_null(values.cast(pa.int64()), 0).to_numpy()
    else:
        epoch = pc.fill_null(values, 0).to_numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            seconds = np.where(np.abs(epoch.astype(np.float64)) > EPOCH_SECONDS_MAX, epoch / 1000, epoch)
            micros = np.rint(np.clip(np.nan_to_num(seconds, nan=-np.inf), -1e12, 1e12) * 1e6).astype(np.int64)
    readable = (micros >= YEAR_1) & (micros <= YEAR_10000)
    return instants(np.where(known & readable, micros, UNKNOWN_TIME)), readable | ~known


def _read(texts: pa.ChunkedArray) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    for kind in (TIMESTAMP, pa.timestamp("us")):
        with suppress(pa.ArrowInvalid):  # as PostgreSQL writes them, which Arrow reads at once
            return texts.cast(kind).cast(TIMESTAMP).combine_chunks(), np.ones(len(texts), bool)
    times = pa.array([_instant(text) for text in texts.to_pylist()], TIMESTAMP)
    unknown = pc.fill_null(pc.equal(texts, ""), True).to_numpy()
    return times, unknown | times.is_valid().to_numpy(zero_copy_only=False)


def _instant(text: str | None) -> datetime | None:
    try:
        return utc(text) if text else None
    except (ValueError, OverflowError):
        return None
