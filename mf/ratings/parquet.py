"""Parquet reader: batches of columns, every row becomes a rating or a rejected row."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mf.errors import DataError
from mf.progress import Progress
from mf.ratings import frame
from mf.ratings.collect import Collector
from mf.ratings.config import IngestConfig
from mf.ratings.schema import MOVIE, USER
from mf.ratings.values import check, reason

MAGIC = b"PAR1"
ROWS = 1 << 18  # per batch


def is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def rows_in(path: Path, name: str) -> int:
    """The number of rows of a file."""
    with _opened(path, name) as file:
        return int(file.metadata.num_rows)


def read(
    path: Path,
    name: str,
    place: str,
    config: IngestConfig,
    sink: Collector,
    progress: Progress,
    following: int | None,
) -> dict[str, str]:
    """Read a Parquet file into ``sink``. Ids keep their type, as those of a table.

    Args:
        name: the file as errors show it.
        place: begins a row's place, ``row 7``.
        following: the most rows of the files after it; None if unknown.

    Returns:
        Which column was read as what.

    Raises:
        DataError: the file is damaged, or its columns are not understood; or as ``sink.add`` raises.
    """
    with _opened(path, name) as file:
        columns = config.find_columns(file.schema_arrow.names, name)
        row = 0
        try:
            for batch in file.iter_batches(ROWS, columns=list(columns.values())):
                _add(batch, columns, row, name, place, config.ignored, sink)
                row += len(batch)
                sink.check(None if following is None else file.metadata.num_rows - row + following)
                progress.advance(len(batch))
        except (OSError, pa.ArrowException) as error:
            raise _damaged(name, error) from None
    return columns


def _opened(path: Path, name: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, pre_buffer=False)  # the default reads the whole file ahead
    except (OSError, pa.ArrowException) as error:
        raise _damaged(name, error) from None


def _damaged(name: str, error: Exception) -> DataError:
    return DataError(f"{name}: the Parquet file is damaged or cut short ({str(error).splitlines()[0]}); copy it again")


def _add(
    batch: pa.RecordBatch,
    columns: dict[str, str],
    row: int,
    name: str,
    place: str,
    ignore: Sequence[float],
    sink: Collector,
) -> None:
    cells = {
        role: frame.cells(pa.chunked_array([batch[column]]), role, f"{name}: column {column}")
        for role, column in columns.items()
    }
    for role in (USER, MOVIE):
        if pa.types.is_string(cells[role].type) and role in sink.untyped and len(batch):
            # Text stays text, though all of it may look like integers.
            sink.text(role, f"{place}row {row + 1}", str(cells[role][0]))
    raw = pa.table(cells)
    ratings, usable, ignored, forms = check(raw, is_file=False, ignore=ignore)
    bad = np.flatnonzero(~(usable | ignored))
    for number, record in zip(bad.tolist(), raw.take(pa.array(bad)).to_pylist(), strict=True):
        text = json.dumps({columns[role]: value for role, value in record.items()}, ensure_ascii=False, default=str)
        sink.reject(f"{place}row {row + number + 1}", reason(record), text)
    places = {form: f"{place}row {row + first + 1}: {text}" for form, (first, text) in forms.items()}
    sink.add(ratings, places, int(ignored.sum()))
