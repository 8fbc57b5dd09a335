"""Read ratings from a data frame: pandas, polars, pyarrow, a dict of columns or a SciPy matrix."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from numbers import Real
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mf.errors import DataError
from mf.progress import Progress
from mf.ratings.collect import MOST_TEXT, Collector
from mf.ratings.config import NONE, IngestConfig, shown
from mf.ratings.schema import MOVIE, RATED_AT, TIMESTAMP, USER
from mf.ratings.values import check, reason

BATCH = 1 << 20  # rows that are checked at a time
EXACT = 2.0**53  # below it float64 holds every integer


@runtime_checkable
class ArrowStream(Protocol):
    """A data frame that Arrow can read (the PyCapsule interface): pandas, polars, pyarrow, DuckDB and others."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


Frame = ArrowStream | Mapping[str, Any]  # a mapping: name to column


def to_arrow(frame: Any, config: IngestConfig, what: str = "ratings") -> pa.Table:
    """A data frame as an Arrow table, without a copy where the types allow.

    Args:
        frame: see ``Frame``; also a SciPy sparse matrix, whose rows are users and whose columns are movies, by number,
            and a polars LazyFrame, which is collected.
        config: names the columns; of a pandas frame no others are converted.
        what: name of the argument, for errors.

    Raises:
        DataError: it is something else, or Arrow cannot read a column.
    """
    from scipy.sparse import issparse  # takes a while, and files need none of it

    kind = _kind(frame)
    if kind.endswith(" Series"):
        raise DataError(
            f"{what}: found a {kind}, expected a data frame with columns of users and movies; reset_index() makes one "
            "of a pandas Series whose index they are"
        )
    try:
        if kind == "polars LazyFrame":
            frame = frame.collect()
        if kind == "pandas DataFrame":
            return _from_pandas(frame, config, what)
        if issparse(frame):
            matrix = frame.tocoo()
            return pa.table({"user_id": matrix.row, "movie_id": matrix.col, "rating": matrix.data})
        if isinstance(frame, pa.Table):
            return frame
        if hasattr(frame, "__arrow_c_stream__") or hasattr(frame, "__arrow_c_array__"):
            return pa.table(frame)
        if isinstance(frame, Mapping):
            return pa.table(dict(frame))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{what}: cannot be read as a table ({' '.join(str(error).split())[:300]})") from None
    raise DataError(
        f"{what}: found {kind}, expected a file's name, a data frame (pandas, polars, pyarrow), a dict of "
        "columns or a SciPy sparse matrix"
    )


def _from_pandas(frame: Any, config: IngestConfig, what: str) -> pa.Table:
    """The columns of a pandas frame, and levels of its index, that ``config`` names."""
    levels = [name for name in frame.index.names if name is not None and name not in frame.columns]
    if levels:
        frame = frame.reset_index(levels)
    names = [str(name) for name in frame.columns]
    used = config.find_columns(names, _kind(frame) if what == "ratings" else what).values()
    columns = {name: frame.iloc[:, names.index(name)] for name in used}
    return pa.table({name: _pandas_column(column, f"{what}: column {name}") for name, column in columns.items()})


def _pandas_column(column: Any, where: str) -> pa.Array | pa.ChunkedArray:
    """A column as Arrow has it; a column of objects of several types as text."""
    if hasattr(column, "sparse"):
        column = column.sparse.to_dense()
    try:
        return pa.array(column, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if str(column.dtype) != "object":
            raise DataError(f"{where} of type {column.dtype} cannot be read: {' '.join(str(error).split())}") from None
    return pa.array([_text(value, where) for value in column], pa.string())


def _text(value: Any, where: str) -> str | None:
    """A value of a column of objects as text; None where there is none."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, bool | np.bool_) or not isinstance(value, str | Real | Decimal | UUID | date):
        raise DataError(f"{where}: found values of several types, one of them {_kind(value)}, expected numbers or text")
    if not isinstance(value, Real | Decimal):
        return str(value)
    if math.isnan(value):
        return None
    return str(math.floor(value) if math.isfinite(value) and value == math.floor(value) else value)


def _kind(frame: Any) -> str:
    kind = type(frame)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]} {kind.__name__}"


def frame_name(frame: Any) -> str:
    """The source's name in errors and records: ``pandas DataFrame``."""
    return _kind(frame)


def read(table: pa.Table, config: IngestConfig, sink: Collector) -> dict[str, str]:
    """Read ``table`` into ``sink``, by the rules for a database table. A row is named by its number, from 0.

    Returns:
        Which column was read as what, ``{"user_id": "userId", …}``.

    Raises:
        DataError: a column is missing or has a type that cannot be used; or as ``sink.add`` raises.
    """
    columns = config.find_columns(table.column_names, sink.source)
    rows = pa.table({role: cells(table[name], role, f"{sink.source}: column {name}") for role, name in columns.items()})
    with Progress(f"read {sink.source}", len(rows)) as progress:
        for start in range(0, len(rows), BATCH):
            batch = rows.slice(start, BATCH)
            checked = check(batch, is_file=False, ignore=config.ignored)
            bad = np.flatnonzero(~(checked.usable | checked.ignored))
            for number, row in zip(bad.tolist(), batch.take(pa.array(bad)).to_pylist(), strict=True):
                text = json.dumps(
                    {columns[role]: value for role, value in row.items()}, ensure_ascii=False, default=str
                )
                sink.reject(f"row {start + number}", reason(row), text)
            forms = checked.time_forms.items()
            places = {form: f"row {start + row}: {text}" for form, (row, text) in forms}
            sink.add(checked.ratings, places, int(checked.ignored.sum()))
            sink.check(len(rows) - start - len(batch))
            progress.advance(len(batch))
    return columns


def cells(column: pa.ChunkedArray, role: str, where: str) -> pa.ChunkedArray:
    """A column with one of the types that ``mf.ratings.values.check`` takes for ``role``."""
    try:
        column = _plain(column)
        if role in (USER, MOVIE):
            is_number = pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)
            return _integers(column) if is_number else _id_cells(column)
        return _time_cells(column) if role == RATED_AT else _rating_cells(column)
    except (pa.ArrowException, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{where} of type {column.type} cannot be read as {role}: {text}") from None


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without dictionary, view and extension types."""
    kind = column.type
    if isinstance(kind, pa.UuidType):
        return _written(column, str)
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type))
    if pa.types.is_dictionary(kind):
        parts = [
            values.take(indices)
            for chunk in column.chunks
            for values in [_plain(pa.chunked_array([chunk.dictionary]))]
            for indices in _pieces(chunk.indices, _most_rows(values))
        ]
        kind = parts[0].type if parts else kind.value_type
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], kind)
    if kind == pa.binary(16):
        return _written(column, lambda value: str(UUID(bytes=value)))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_binary(kind):
        return _texts(column)
    return column.cast(pa.string()) if pa.types.is_null(kind) else column


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """As string, whose offsets have 32 bits: a chunk of more than 2 GiB becomes several."""
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        rows = _most_rows(column)
        # ``concat_arrays`` copies, so that the offsets of a piece begin at 0.
        found = [pa.concat_arrays([piece]).cast(pa.string()) for c in column.chunks for piece in _pieces(c, rows)]
        return pa.chunked_array(found, pa.string())


def _written(column: pa.ChunkedArray, text: Callable[[Any], str]) -> pa.ChunkedArray:
    """The text of each value."""
    found = [
        pa.array([None if value is None else text(value) for value in piece.to_pylist()], pa.string())
        for chunk in column.chunks
        for piece in _pieces(chunk, BATCH)
    ]
    return pa.chunked_array(found, pa.string())


def _most_rows(texts: pa.ChunkedArray) -> int:
    """Values that fit into one string array, whatever they are; of numbers any number."""
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type) or pa.types.is_binary(texts.type)):
        return MOST_TEXT
    return MOST_TEXT // max(1, pc.max(pc.binary_length(texts)).as_py() or 0)


def _pieces(values: pa.Array, rows: int) -> list[pa.Array]:
    """Slices of at most so many rows; at least one."""
    return [values.slice(start, rows) for start in range(0, max(1, len(values)), rows)]


def _id_cells(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_string(column.type):
        return column
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64())
    raise ValueError("expected integers or text")


def _integers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """int64 of whole floats, as pandas holds integers beside gaps; NaN is null."""
    numbers = column.cast(pa.float64())
    missing = pc.or_kleene(numbers.is_null(), pc.is_nan(numbers)).fill_null(True)
    numbers = pc.if_else(missing, pa.scalar(None, pa.float64()), numbers)
    whole = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(pc.abs(numbers), EXACT))
    if not pc.all(whole).as_py() and pc.any(numbers.is_valid()).as_py():
        first = numbers.filter(pc.invert(whole).fill_null(False))[0].as_py()
        raise ValueError(f"found {first:g}, expected whole numbers or text")
    return numbers.cast(pa.int64())


def _rating_cells(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_boolean(column.type):
        return column.cast(pa.int8())
    if pa.types.is_decimal(column.type):
        return column.cast(pa.float64())
    if pa.types.is_float16(column.type):
        return column.cast(pa.float32())
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_string(column.type):
        return column
    raise ValueError("expected numbers")


def _time_cells(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(column.type):
        # A time without a zone is UTC. Digits below a microsecond are dropped.
        return column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(TIMESTAMP)
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64())
    if pa.types.is_floating(column.type):
        numbers = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
    if pa.types.is_string(column.type):
        return column
    raise ValueError("expected times, numbers or text")


def ids_of(values: Any, like: pa.DataType, what: str) -> pa.Array:
    """Ids as an Arrow array of the type ``like`` (int64 or string).

    Integers are taken as text where the model's ids are text, since a database may store them so.

    Args:
        values: an Arrow column, or any sequence of integers, texts and UUIDs.
        like: the type of the model's ids.
        what: the ids' name, for errors.

    Raises:
        DataError: they are of another type, or one is missing.
    """
    texts = UUID | int if pa.types.is_string(like) else UUID
    try:
        if not isinstance(values, pa.Array | pa.ChunkedArray):
            values = pa.array([str(value) if isinstance(value, texts) else value for value in values])
        column = _plain(values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values]))
        column = _integers(column) if pa.types.is_floating(column.type) else _id_cells(column)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{what}: {' '.join(str(error).split())[:200]}") from None
    if column.null_count:
        place = column.is_null().index(pa.scalar(True)).as_py()
        raise DataError(f"{what}: found no id at position {place}, expected an integer or a text")
    if len(column) and pa.types.is_integer(like) and not pa.types.is_integer(column.type):
        raise DataError(f"{what}: found the text {shown(column[0].as_py())}, expected integers like the model's ids")
    ids: pa.Array = column.cast(like).combine_chunks()
    return ids


def pairs_of(pairs: Any, config: IngestConfig, user: pa.DataType, movie: pa.DataType) -> tuple[pa.Array, pa.Array]:
    """The ids of (user, movie) pairs, of the types ``user`` and ``movie``.

    Args:
        pairs: a data frame with columns of users and movies, or a sequence of pairs.

    Raises:
        DataError: it is neither, or its ids are of another type.
    """
    if isinstance(pairs, Iterator) and not isinstance(pairs, ArrowStream):  # such as zip(users, movies)
        pairs = list(pairs)
    if isinstance(pairs, Sequence | np.ndarray) and not isinstance(pairs, str | bytes):
        rows = [tuple(map(_item, pair)) if isinstance(pair, tuple | list | np.ndarray) else (pair,) for pair in pairs]
        if odd := next((row for row in rows if len(row) != 2), None):
            raise DataError(f"pairs: found {str(odd)[:100]}, expected pairs (user, movie)")
        users, movies = zip(*rows, strict=True) if rows else ((), ())
        columns: tuple[Any, Any] = users, movies
    else:
        # A pair needs no rating.
        config = config.model_copy(update={"rating_column": NONE})
        table = to_arrow(pairs, config, "pairs")
        names = config.find_columns(table.column_names, "pairs")
        columns = table[names[USER]], table[names[MOVIE]]
    return ids_of(columns[0], user, "users"), ids_of(columns[1], movie, "movies")


def one_id(value: Any, like: pa.DataType, what: str) -> pa.Array:
    """One id as an Arrow array of the type ``like``, as ``ids_of``.

    Raises:
        DataError: it is no id, or one of another type.
    """
    value = _item(value)
    if not isinstance(value, str | int | float | UUID | None):
        raise DataError(f"{what}: found {_kind(value)}, expected one id, {_expected(like)}")
    return ids_of([value], like, what)


def some_ids(values: Any, like: pa.DataType, what: str) -> pa.Array:
    """Several ids as an Arrow array of the type ``like``, as ``ids_of``.

    Raises:
        DataError: it is no list of ids, or an id is of another type.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise DataError(f"{what}: found {shown(str(values))}, expected a list of ids, {_expected(like)} each")
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return ids_of(values, like, what)
    return ids_of([_item(value) for value in values], like, what)


def _expected(like: pa.DataType) -> str:
    return "an integer" if pa.types.is_integer(like) else "a text"


def _item(value: Any) -> Any:
    """A scalar of NumPy or Arrow as Python has it."""
    if isinstance(value, pa.Scalar):
        return value.as_py()
    return value.item() if isinstance(value, np.generic) else value
