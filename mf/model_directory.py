"""The published part of a model directory, checked before anything of it is sent. Needs pyarrow and no torch."""

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mf.errors import DataError
from mf.ratings.schema import MOVIE, USER, IdType, TrainedOn, id_type
from mf.ratings.vocabulary import Vocabulary


@dataclass(frozen=True)
class Header:
    """What ``model.json`` says of the run."""

    run_id: str
    factors: int
    mu: float  # stars
    rating_min: float
    rating_max: float


@dataclass(frozen=True)
class Embeddings:
    """One side of the model: ``ids`` (int64 or string) [n], ``bias`` float32 [n], ``vectors`` float32 [n, factors]."""

    ids: pa.Array
    bias: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """The row of every one of ``ids``, int64; -1 for one that is not there. Where ids are text, as a database may
        keep integers too, they are looked up as text.

        Raises:
            DataError: these ids are integers, and ``ids`` are not.
        """
        return Vocabulary(self.ids).rows(ids if pa.types.is_integer(self.ids.type) else ids.cast(pa.string()))

    @property
    def id_type(self) -> IdType:
        return id_type(self.ids)


@dataclass(frozen=True)
class PublishedModel:
    """What an export sends."""

    header: Header
    users: Embeddings
    movies: Embeddings
    content_hash: str  # tells two contents under one run id apart
    noise_variance: float  # of a rating around its prediction, in squared stars
    trained_on: TrainedOn | None  # None where the model does not tell


def read_model(directory: Path) -> PublishedModel:
    """Reads ``model.json``, ``user_embeddings.parquet`` and ``movie_embeddings.parquet``.

    Raises:
        DataError: a file is missing or is not what it should be; a value is not finite, an embedding has not
            ``factors`` values, an id is missing or occurs twice. The message names file, row and column.
    """
    directory = Path(directory)
    header, noise_variance, trained_on = _read_header(directory / "model.json")
    parts = {name: directory / f"{name}_embeddings.parquet" for name in ("user", "movie")}
    # A database can take in a model in the time that one core needs to read it.
    with ThreadPoolExecutor(2) as pool:
        users = pool.submit(_read_embeddings, parts["user"], USER, header.factors)
        movies = pool.submit(_read_embeddings, parts["movie"], MOVIE, header.factors)
        content = pool.submit(_content_hash, header, [*parts.values()])
        return PublishedModel(header, users.result(), movies.result(), content.result(), noise_variance, trained_on)


def _content_hash(header: Header, parts: list[Path]) -> str:
    content = hashlib.sha256(json.dumps(asdict(header), sort_keys=True).encode())
    for path in parts:
        content.update(path.read_bytes())
    return content.hexdigest()[:16]


def _read_header(path: Path) -> tuple[Header, float, TrainedOn | None]:
    try:
        model: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}): is this a model directory?") from None
    fields = model if isinstance(model, dict) else {}
    if not isinstance(fields.get("run_id"), str) or not fields["run_id"].strip():
        raise DataError(f"{path}: run_id is {fields.get('run_id')!r}, expected a text that names the run")
    factors = fields.get("factors")
    if type(factors) is not int or factors < 1:
        raise DataError(f"{path}: factors is {factors!r}, expected an integer of 1 or more")
    for name in ("mu", "rating_min", "rating_max"):
        value = fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{path}: {name} is {value!r}, expected a finite number")
    header = Header(fields["run_id"], factors, *(float(fields[name]) for name in ("mu", "rating_min", "rating_max")))
    return header, _noise_variance(fields.get("metrics"), header), TrainedOn.read(fields.get("trained_on"))


def _noise_variance(metrics: Any, header: Header) -> float:
    """The model's squared error on held-out ratings; without any, that of models of ratings of one to five stars, whose
    RMSE is about a fifth of the range."""
    known = metrics if isinstance(metrics, dict) else {}
    for name in ("validation_rmse", "test_rmse"):
        rmse = known.get(name)
        if isinstance(rmse, int | float) and math.isfinite(rmse) and rmse > 0:
            return float(rmse) ** 2
    return ((header.rating_max - header.rating_min) / 5 or 1.0) ** 2


def _read_embeddings(path: Path, key: str, factors: int) -> Embeddings:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None
    if missing := {key, "bias", "embedding"} - set(table.column_names):
        raise DataError(f"{path}: no column {', '.join(sorted(missing))}: expected {key}, bias and embedding")
    if not len(table):
        raise DataError(f"{path}: no rows: there is nothing to publish")
    ids, bias, embedding = (table[name].combine_chunks() for name in (key, "bias", "embedding"))
    return Embeddings(
        _checked_ids(ids, path, key), _checked_bias(bias, path), _checked_vectors(embedding, path, factors)
    )


def _checked_ids(ids: pa.Array, path: Path, key: str) -> pa.Array:
    if not (pa.types.is_integer(ids.type) or pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise DataError(f"{path}: {key} is of type {ids.type}, expected int64 or string")
    if ids.null_count:
        raise DataError(f"{path} row {_first(ids.is_null())}: {key} is null")
    if pa.types.is_integer(ids.type):
        try:
            ids = ids.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: {key} does not fit bigint ({error})") from None
    elif pc.any(empty := pc.equal(pc.binary_length(ids), 0)).as_py():
        raise DataError(f"{path} row {_first(empty)}: {key} is empty")
    counts = pc.value_counts(ids)
    if len(counts) < len(ids):
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0]
        raise DataError(f"{path}: {key} {twice.as_py()!r} stands in more than one row, expected each once")
    return ids


def _checked_bias(bias: pa.Array, path: Path) -> npt.NDArray[np.float32]:
    if bias.type != pa.float32() or bias.null_count:
        raise DataError(f"{path}: bias is {bias.type} with {bias.null_count} nulls, expected float without nulls")
    values: npt.NDArray[np.float32] = bias.to_numpy()
    if not (finite := np.isfinite(values)).all():
        raise DataError(f"{path} row {_first(~finite)}: bias is not finite")
    return values


def _checked_vectors(embedding: pa.Array, path: Path, factors: int) -> npt.NDArray[np.float32]:
    """[n, factors] float32, a view of the column's memory."""
    kind = embedding.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)) or (
        kind.value_type != pa.float32()
    ):
        raise DataError(f"{path}: embedding is of type {kind}, expected list<float>")
    lengths = pc.fill_null(pc.list_value_length(embedding), 0)
    if not pc.all(right := pc.equal(lengths, factors)).as_py():
        row = _first(pc.invert(right))
        raise DataError(f"{path} row {row}: embedding has {lengths[row]} values, model.json says factors {factors}")
    values = embedding.flatten()
    if values.null_count:
        raise DataError(f"{path} row {_first(values.is_null()) // factors}: embedding holds a null")
    vectors: npt.NDArray[np.float32] = values.to_numpy().reshape(-1, factors)
    if not (finite := np.isfinite(vectors).all(axis=1)).all():
        raise DataError(f"{path} row {_first(~finite)}: embedding holds a value that is not finite")
    return vectors


def _first(found: Any) -> int:
    """The row, counted from 0, of the first true value."""
    return int(np.argmax(np.asarray(found)))
