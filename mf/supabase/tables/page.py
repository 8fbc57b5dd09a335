"""A page of rows of the REST API: JSON parsed into columns."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import json
from pydantic_core import from_json

from mf.errors import SupabaseError
from mf.supabase.tables.description import Row, Table

# By the column's type in the API's description.
ARROW = {"integer": pa.int64(), "number": pa.float64(), "string": pa.string(), "boolean": pa.bool_()}
SEPARATOR = b", \n "  # of json_agg, between rows; within a row's text a line break is always escaped
ONE_BLOCK = json.ReadOptions(use_threads=False, block_size=1 << 26)

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Page:
    """Rows of a table.

    Args:
        body: JSON, an array of objects.
        columns: the columns of ``body`` from its row ``start`` on; a number beyond float64 is infinite.
    """

    body: bytes
    columns: pa.Table
    start: int = 0

    def __len__(self) -> int:
        return len(self.columns)

    def key(self, names: Sequence[str], row: int) -> Key:
        """The values of the columns ``names`` in a row (-1: the last)."""
        return tuple(self.columns[name][row].as_py() for name in names)

    def without(self, first: bool = False, last: bool = False) -> "Page":
        """The page without its first row, its last, or both."""
        return Page(self.body, self.columns.slice(first, max(0, len(self) - first - last)), self.start + first)

    def rows(self) -> list[Row]:
        """The rows as JSON has them."""
        rows: list[Row] = from_json(self.body)[self.start : self.start + len(self)]
        return rows


def read_page(body: bytes, table: Table, selected: Iterable[str]) -> Page:
    """Parse the columns ``selected`` of rows of ``table``.

    Raises:
        ValueError: ``body`` is not JSON.
        SupabaseError: it is not an array of objects with these columns, or a column has another type.
    """
    schema = pa.schema([(name, ARROW[table.columns[name]["type"]]) for name in selected])
    # Arrow reads one object per line and releases the GIL; a slower parser reads what Arrow refuses.
    lines = body[1:-1].replace(SEPARATOR, b"\n")
    options = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    if body.startswith(b"[{") and body.endswith(b"}]"):
        try:
            return Page(body, json.read_json(pa.BufferReader(lines), ONE_BLOCK, options))
        except pa.ArrowInvalid:
            pass
    rows = from_json(body)
    try:
        columns = [_column([row[field.name] for row in rows], field.type) for field in schema]
    except (KeyError, TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise SupabaseError(
            f"cannot read {table}: the response is not a list of rows with the columns and types of the API's "
            f"description ({type(error).__name__}: {error}): is the URL a Supabase project's? If a "
            "column has changed, run `notify pgrst, 'reload schema';` in the SQL editor"
        ) from None
    return Page(body, pa.table(columns, schema))


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_floating(kind):
        values = [None if value is None else _float(value) for value in values]
    return pa.array(values).cast(kind)  # which refuses numbers that pa.array(values, kind) would truncate


def _float(number: float | str) -> float:
    try:
        return float(number)
    except OverflowError:  # a numeric without a point comes as an integer of any length
        return math.inf if int(number) > 0 else -math.inf
