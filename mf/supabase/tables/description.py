"""A Supabase table's description, and the check of its rows; for the API and for the direct connection."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mf.errors import ConfigError, DataError, SupabaseError
from mf.ratings.config import IngestConfig
from mf.ratings.schema import COUNT, MOVIE, RATED_AT, RATING, USER
from mf.ratings.values import check, reason

SCHEMA = "public"  # the schema that Supabase's API shows by default
KEY = "the key"
# The JSON types that a column of each role may have. Numbers that are not integers can be neither ids nor keys: JSON
# numbers lose the last digits of a numeric.
TYPES = {
    USER: ("integer", "string"),
    MOVIE: ("integer", "string"),
    RATING: ("integer", "number"),
    COUNT: ("integer", "number"),
    RATED_AT: ("integer", "number", "string"),
    KEY: ("integer", "string", "boolean"),
}
# Types that PostgreSQL compares with a time.
TIMES = ("timestamp with time zone", "timestamp without time zone", "date")
# PostgreSQL counts microseconds from the year 2000; its infinities are the ends of int64, which ADBC moves to 1970 (the
# upper one wraps round). No other time is beyond FAR.
MINUS_INFINITY = -(2**63) + 946_684_800_000_000
FAR = 9.2e18

Row = Mapping[str, Any]


class Batch(NamedTuple):
    """Rows of a table after the check of their values."""

    ratings: pa.Table  # as ``Collector.add`` takes it
    bad: list[tuple[str, str, str]]  # place (``row id=7``), reason, row as JSON
    ignored: int  # rows left out for their rating
    time_forms: dict[str, str]  # as ``Collector.add`` takes it


def check_rows(
    cells: pa.Table,
    columns: Mapping[str, str],
    key: Sequence[str],
    ignore: Sequence[float],
    records: Callable[[Sequence[int]], Sequence[Row]] | None = None,
) -> Batch:
    """Check the values of some rows.

    Args:
        cells: the table's columns by their own names; those of ``columns`` have the types of
            ``mf.ratings.values.check``.
        columns: the table's column for each role.
        key: the columns that identify a row.
        ignore: ratings whose rows are left out.
        records: gives rows, by their number, as they are to be rejected; by default those of ``cells``.
    """
    records = records or partial(_records, cells)

    def places(numbers: Sequence[int]) -> list[str]:
        rows = _records(cells.select(key), numbers)
        return ["row " + ", ".join(f"{name}={cell}" for name, cell in row.items()) for row in rows]

    raw = pa.table({role: cells[name] for role, name in columns.items()})
    ratings, usable, ignored, time_forms = check(raw, is_file=False, ignore=ignore)
    bad = []
    if numbers := np.flatnonzero(~(usable | ignored)).tolist():
        for place, row in zip(places(numbers), records(numbers), strict=True):
            why = reason({role: row[name] for role, name in columns.items()})
            bad.append((place, why, json.dumps(row, ensure_ascii=False)))
    places_of_forms = {form: f"{places([row])[0]}: {text}" for form, (row, text) in time_forms.items()}
    return Batch(ratings, bad, int(ignored.sum()), places_of_forms)


def _records(cells: pa.Table, numbers: Sequence[int]) -> list[Row]:
    """Some rows of ``cells``, times as text."""
    rows = cells.take(numbers)
    for position, column in enumerate(rows.columns):
        if pa.types.is_timestamp(column.type):
            texts = pa.array(map(_time_text, column.cast(pa.int64()).to_pylist()), pa.string())
            rows = rows.set_column(position, rows.column_names[position], texts)
    records: list[Row] = rows.to_pylist()
    return records


def _time_text(micros: int | None) -> str | None:
    """A time as text; it may be beyond the years that Python has."""
    if micros is None:
        return None
    if abs(micros) > FAR:
        return "-infinity" if micros == MINUS_INFINITY else "infinity"
    return str(np.datetime64(micros, "us"))


def table_name(name: str) -> str:
    """The name of ``--import_table`` without its schema; both may be quoted as in SQL, ``public."Ratings"``.

    Raises:
        ConfigError: the schema is not public, or it is not a name.
    """
    word = r'(?:"((?:[^"]|"")+)"|([^".]+))'
    match = re.fullmatch(rf"(?:{word}\.)?{word}", name)
    if not match:
        raise ConfigError(f'--import_table {name}: expected a name such as ratings, public.ratings or public."Ratings"')
    quoted, plain, quoted_table, plain_table = match.groups()
    schema = quoted or plain or SCHEMA
    table = quoted_table.replace('""', '"') if quoted_table else plain_table
    if schema != SCHEMA:
        raise ConfigError(f"--import_table {name}: expected a table of the schema {SCHEMA}; make a view there")
    return table


def source_name(name: str) -> str:
    """``--import_table`` as errors and ``Provenance.source`` have it.

    Raises:
        ConfigError: as ``table_name``.
    """
    return f"table {SCHEMA}.{table_name(name)}"


def grant(table: str, role: str) -> str:
    """Advice where ``role`` (that of a secret key if unknown) lacks the right to read ``table``."""
    role = "service_role" if role == "unknown" else role
    name = table if re.fullmatch("[a-z_][a-z0-9_]*", table) else '"' + table.replace('"', '""') + '"'
    return f"run `grant select on {SCHEMA}.{name} to {role};` in the SQL editor"


def no_such_table(tables: Iterable[str]) -> str:
    """Advice where the table is missing, ``tables`` being those that exist."""
    return f"check --import_table; the tables to be seen are {', '.join(sorted(tables)[:20]) or 'none'}"


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

    def key(self, key_columns: str) -> list[str]:
        """The columns ``key_columns`` (separated by commas), by default those of the primary key; empty without one.

        Raises:
            DataError: the table has no such column.
        """
        key = [name.strip() for name in key_columns.split(",")] if key_columns else list(self.primary_key)
        for name in key:
            if name not in self.columns:
                raise DataError(f"{self}: no column {name!r} for --key_columns, found {', '.join(self.columns)}")
        return key

    def find_columns(self, config: IngestConfig) -> dict[str, str]:
        """``config.find_columns`` of this table, with the types of the columns checked.

        Raises:
            DataError: a column is missing or has a type that cannot be used.
        """
        columns = config.find_columns(list(self.columns), str(self))
        for role, name in [*columns.items(), *((KEY, name) for name in self.key(config.key_columns))]:
            self._check_type(name, role)
        if config.rated_since or config.rated_before:
            self._check_filter(columns)
        return columns

    @property
    def hints(self) -> dict[str, str]:
        """Advice by the error code of a request that reads the table."""
        return {"42501": grant(self.name, self.role)}

    def no_rows(self, config: IngestConfig) -> SupabaseError:
        """The error for a table that shows no rows."""
        span = " in this span of time" if config.rated_since or config.rated_before else ""
        return SupabaseError(
            f"cannot read {self}: it shows no rows{span}: either it is empty (fill it), or row level security hides "
            f"its rows from the role {self.role} (use the secret key; a view must belong to a role that sees them)"
        )

    def _check_type(self, column: str, role: str) -> None:
        if self.columns[column].get("type") not in TYPES[role]:
            raise DataError(
                f"{self}: column {column} is of type {self.columns[column].get('format')}, expected "
                f"{' or '.join(TYPES[role])} for {role}: name another column, or read a view that casts it"
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
