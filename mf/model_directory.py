"""Reading and writing model directories: model.pt, model.json, embeddings and ranking vectors in Parquet.

r̂ = clip(mu + b_u + b_m + p_u·q_m, rating_min, rating_max); an unknown user or movie has bias 0 and a zero vector. The
ranking score is p_u·q_m + b_m of the ranking vectors. A model of clicks has no star model: its numbers are null, and
model.pt and the embeddings are absent.
"""

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mf.errors import DataError, TrainingError
from mf.files import directory_written_aside
from mf.ratings.names import RATINGS_PARQUET
from mf.ratings.schema import MOVIE, USER, IdType, TrainedOn, id_type
from mf.ratings.vocabulary import Vocabulary, distinct_ids

# PyTorch is imported where it is used: publishing a model directory needs none of it.
if TYPE_CHECKING:
    import torch

    from mf.model import MatrixFactorization
    from mf.ranking import RankingModel

FORMAT = 1
WEIGHTS = "model.pt"
CARD = "model.json"
# A file of vectors is refused when it unpacks to more bytes than this and to so many times its size.
MOST_UNPACKED, MOST_RATIO = 1 << 28, 100
MOST_CARD = 1 << 26  # bytes of model.json, whose longest part are the trials of a sweep
PARQUET = {USER: "user_embeddings.parquet", MOVIE: "movie_embeddings.parquet"}
RANKING_PARQUET = {USER: "user_ranking.parquet", MOVIE: "movie_ranking.parquet"}
# Fields of the ranking model that are numbers; the arrays are columns of movie_ranking.parquet.
RANKING_NUMBERS = (
    "mu", "sd", "rho", "regularization", "teacher_rank", "energy_beyond", "relevance_threshold", "recency",
)  # fmt: skip
RANKING_COLUMNS = ("embedding", "history", "liking")
MOST_VALUES = (1 << 31) - 1  # of a list array, whose offsets have 32 bits
COUNTS = "ratings"  # last column of movie_ranking.parquet or, without it, movie_embeddings.parquet
STARS = ("mu", "rating_min", "rating_max")  # null where there is no star model
WITH_RATINGS = ("mu", "sd", "relevance_threshold")  # null where the model does not look at ratings


@dataclass(frozen=True)
class Header:
    """The fields of ``model.json`` that prediction needs."""

    run_id: str
    factors: int  # of the star model; without one, of the ranking model
    mu: float | None  # stars; None, as the next two, of a model of clicks: it has no star model
    rating_min: float | None
    rating_max: float | None

    @property
    def has_stars(self) -> bool:
        """Whether there is a star model."""
        return self.mu is not None

    def stars(self) -> dict[str, float]:
        """``mu``, ``rating_min`` and ``rating_max`` by name.

        Raises:
            DataError: there is no star model.
        """
        numbers = {"mu": self.mu, "rating_min": self.rating_min, "rating_max": self.rating_max}
        given = {name: number for name, number in numbers.items() if number is not None}
        if len(given) < len(numbers):
            raise no_star_model(self.run_id)
        return given


def no_star_model(run_id: str) -> DataError:
    """The error for a model of clicks where a star model is needed."""
    return DataError(f"model {run_id} was trained without ratings: it has no star model, only lists")


@dataclass(frozen=True)
class Embeddings:
    """The users or the movies of a model: ``ids`` (int64 or string) [n], ``bias`` float32 [n], ``vectors`` float32
    [n, factors]."""

    ids: pa.Array
    bias: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """Row numbers int64[len(ids)] of ``ids``; -1 for an unknown id. Where the stored ids are text (a database may
        store integers as text), ``ids`` are compared as text.

        Raises:
            DataError: the stored ids are integers and ``ids`` are not.
        """
        return Vocabulary(self.ids).rows(ids if pa.types.is_integer(self.ids.type) else ids.cast(pa.string()))

    @property
    def id_type(self) -> IdType:
        return id_type(self.ids)


@dataclass(frozen=True)
class PublishedRanking:
    """The ranking model of a model directory: score = p_u·q_m + b_m.

    Its users and movies are those of training and validation part, the star model's and more.
    """

    numbers: dict[str, Any]  # the entry "ranking" of model.json: factors, mu, sd, rho, recency, …
    movie_ids: pa.Array  # int64 or string [n]
    bias: npt.NDArray[np.float32]  # [n], b
    embedding: npt.NDArray[np.float32]  # [n, factors], q
    history: npt.NDArray[np.float32]  # [n, factors]
    liking: npt.NDArray[np.float32]  # [n, factors]
    user_ids: pa.Array  # int64 or string [m]
    vectors: npt.NDArray[np.float32]  # [m, factors], p


@dataclass(frozen=True)
class MovieCounts:
    """Ratings per movie that a model was trained on: the column ``ratings`` of the last of the movies' files."""

    ids: pa.Array  # int64 or string [n]
    ratings: npt.NDArray[np.int32]  # [n]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, movies: pa.ChunkedArray) -> "MovieCounts":
        """From the movie of each rating."""
        ids, codes = distinct_ids(movies)
        return cls(ids, np.bincount(codes, minlength=len(ids)).astype(np.int32))

    @classmethod
    def read(cls, directory: Path, card: Mapping[str, Any]) -> "MovieCounts | None":
        """From a model directory; ``None`` in one of an earlier release.

        Raises:
            DataError: the column is malformed.
        """
        path = directory / (PARQUET if card.get("ranking") is None else RANKING_PARQUET)[MOVIE]
        ids, ratings = _read_columns(path, MOVIE, optional=COUNTS)
        if ratings is None:
            return None
        if ratings.type != pa.int32() or ratings.null_count:
            raise DataError(f"{path}: {COUNTS} is {ratings.type} with {ratings.null_count} nulls, expected int32")
        return cls(_checked_ids(ids, path, MOVIE), ratings.to_numpy())

    def columns(self, ids: pa.Array) -> dict[str, npt.NDArray[np.int32]]:
        """The column for the movies ``ids``."""
        rows = Vocabulary(self.ids).rows(ids)
        return {COUNTS: np.where(rows < 0, 0, self.ratings[rows]).astype(np.int32)}


@dataclass(frozen=True)
class PublishedModel:
    """The part of a model directory that an export publishes."""

    header: Header
    users: Embeddings | None  # of the star model; None, as the next one, of a model of clicks
    movies: Embeddings | None
    content_hash: str  # distinguishes two contents under one run id
    noise_variance: float | None  # of a rating around its prediction, in squared stars; None without a star model
    trained_on: TrainedOn | None  # None: not recorded
    ranking: PublishedRanking | None = None  # None: lists are ordered by predicted rating
    movie_counts: MovieCounts | None = None  # None: not recorded
    ignore_ratings: tuple[float, ...] = ()  # ratings that mean "not rated"
    sweep: dict[str, Any] | None = None  # of ``metrics``, without the single trials; None: there was none

    @property
    def user_ids(self) -> pa.Array:
        """Of the star model or, without one, of the ranking model."""
        return self.users.ids if self.users else self._lists.user_ids

    @property
    def movie_ids(self) -> pa.Array:
        """As ``user_ids``."""
        return self.movies.ids if self.movies else self._lists.movie_ids

    @property
    def _lists(self) -> PublishedRanking:
        assert self.ranking is not None, "a model without a star model has a ranking model"
        return self.ranking


@dataclass
class TrainedRanking:
    """A ranking model with its ids, the vectors of its users and its training record."""

    model: "RankingModel"
    users: Vocabulary
    movies: Vocabulary
    vectors: npt.NDArray[np.float32]  # [users, factors], p
    config: dict[str, Any]  # the ranking model's configuration
    metrics: dict[str, Any] = field(default_factory=dict)  # seconds and memory of the training

    @property
    def factors(self) -> int:
        return int(self.vectors.shape[1])

    def card(self) -> dict[str, Any]:
        """The entry ``ranking`` of ``model.json``."""
        return {
            "factors": self.factors,
            "options": self.config,
            **{name: getattr(self.model, name) for name in RANKING_NUMBERS},
            "users": len(self.users),
            "movies": len(self.movies),
            "metrics": self.metrics,
        }

    def summary(self) -> str:
        """One line for a person."""
        return (
            f"ranking model of {self.factors} factors, teacher rank {self.model.teacher_rank}, "
            f"{self.model.energy_beyond:.1%} of the energy beyond it, {self.metrics['seconds']:.1f} s"
        )

    def write(self, directory: Path, counts: MovieCounts | None = None) -> None:
        """Write ``user_ranking.parquet`` (``user_id``, ``embedding``) and ``movie_ranking.parquet`` (``movie_id``,
        ``bias``, ``embedding``, ``history``, ``liking``, and ``ratings`` where the counts are known)."""
        counted = counts.columns(self.movies.ids) if counts else {}
        vectors = {name: _lists(getattr(self.model, name)) for name in RANKING_COLUMNS}
        tables = {
            USER: pa.table({USER: self.users.ids, "embedding": _lists(self.vectors)}),
            MOVIE: pa.table({MOVIE: self.movies.ids, "bias": self.model.bias, **vectors, **counted}),
        }
        for key, table in tables.items():
            pq.write_table(table, directory / RANKING_PARQUET[key], compression="zstd")

    @classmethod
    def read(cls, directory: Path, card: Mapping[str, Any]) -> "TrainedRanking":
        """Read the files written by ``write``; ``card`` is the entry ``ranking`` of ``model.json``.

        Raises:
            DataError: as ``read_model``.
        """
        read = _read_ranking(directory, _ranking_numbers(directory / CARD, card))
        # Copies, because Arrow's memory is read-only and PyTorch wants to write.
        arrays = {name: getattr(read, name).copy() for name in ("bias", *RANKING_COLUMNS)}
        from mf.ranking import RankingModel

        return cls(
            RankingModel(**arrays, **{name: card[name] for name in RANKING_NUMBERS}),
            Vocabulary(read.user_ids),
            Vocabulary(read.movie_ids),
            read.vectors,
            card["options"],
            card["metrics"],
        )


@dataclass
class TrainedModel:
    """A trained model with its ids and its training record."""

    module: "MatrixFactorization | None"  # the star model; None: trained on clicks, there is only the ranking model
    users: Vocabulary  # of the star model; without one, of the ranking model, as the movies
    movies: Vocabulary
    run_id: str  # identifies this training, also once published
    solver: str | None  # None without a star model
    config: dict[str, Any]  # the solver's configuration
    rows: dict[str, int]  # number of ratings for training and for validation
    metrics: dict[str, Any] = field(default_factory=dict)  # validation and test RMSE, the training curve
    git_sha: str = "unknown"
    trained_on: TrainedOn | None = None  # None: not recorded
    ranking: TrainedRanking | None = None  # None: lists are ordered by predicted rating
    movie_counts: MovieCounts | None = None  # None: not recorded
    ignore_ratings: Sequence[float] = ()  # ratings that mean "not rated"

    def summary(self) -> str:
        """One line for a person: size, initial model, validation RMSE."""
        size = f"{len(self.users):,} users, {len(self.movies):,} movies, {self.factors} factors"
        if self.module is None:
            return f"model {self.run_id}: {size}, lists only: there are no ratings to predict"
        rmse = self.metrics.get("validation_rmse")
        kept = f", epoch {self.metrics['best_epoch']} kept with validation RMSE {rmse:.4f}" if rmse is not None else ""
        if judged := self.metrics.get("refit_of"):
            kept = f", fitted to all ratings as the judged model {judged}"
        start = f", started from {earlier}" if (earlier := self.metrics.get("init_from")) else ""
        return f"model {self.run_id}: {size}{start}{kept}"

    def predict(
        self, user_ids: pa.ChunkedArray | pa.Array, movie_ids: pa.ChunkedArray | pa.Array
    ) -> npt.NDArray[np.float32]:
        """Predicted ratings float32[N], clipped, for N pairs of ids; unknown ids have bias 0 and a zero vector.

        Raises:
            DataError: there is no star model.
        """
        import torch

        module = self.star_model()
        users, movies = (
            torch.from_numpy(v.rows(i)).to(self.device) for v, i in ((self.users, user_ids), (self.movies, movie_ids))
        )
        predictions: npt.NDArray[np.float32] = module.predict(users, movies).cpu().numpy()
        return predictions

    def star_model(self) -> "MatrixFactorization":
        """The star model.

        Raises:
            DataError: there is none.
        """
        if self.module is None:
            raise no_star_model(self.run_id)
        return self.module

    @property
    def factors(self) -> int:
        """Length of the star model's vectors or, without one, of the ranking vectors."""
        return self.module.factors if self.module else self.ranking.factors if self.ranking else 0

    @property
    def device(self) -> "torch.device":
        """Where predictions and lists are computed."""
        import torch

        return self.module.mu.device if self.module else torch.device("cpu")

    def to(self, device: "torch.device") -> None:
        """Move the star model, if there is one, to ``device``."""
        if self.module:
            self.module.to(device)

    def save(self, directory: Path, also: Sequence[Path] = ()) -> None:
        """Write the model directory (``model.json`` last) with copies of the files ``also``.

        Raises:
            TrainingError: mu lies outside the rating range; nothing is written.
        """
        if self.module is None:
            _write(directory, self.card(), None, None, None, also, self.ranking, self.movie_counts)
            return
        m = self.module.cpu()
        if problem := _mu_problem(m.mu.item(), m.rating_min.item(), m.rating_max.item()):
            raise TrainingError(f"model {self.run_id}: {problem}: nothing is saved; choose another --solver")
        users, movies = (
            Embeddings(vocabulary.ids, bias.weight.detach().numpy().ravel(), factors.weight.detach().numpy())
            for vocabulary, bias, factors in (
                (self.users, m.user_bias, m.user_factors),
                (self.movies, m.movie_bias, m.movie_factors),
            )
        )
        _write(directory, self.card(), users, movies, m.state_dict(), also, self.ranking, self.movie_counts)

    def card(self) -> dict[str, Any]:
        """The content of ``model.json``."""
        m = self.module
        return {
            "format": FORMAT,
            "run_id": self.run_id,
            "solver": self.solver,
            "config": self.config,
            "mu": m.mu.item() if m else None,
            "factors": self.factors,
            "rating_min": m.rating_min.item() if m else None,
            "rating_max": m.rating_max.item() if m else None,
            "rows": self.rows,
            "users": len(self.users),
            "movies": len(self.movies),
            "git_sha": self.git_sha,
            "trained_on": asdict(self.trained_on) if self.trained_on else None,
            "ignore_ratings": list(self.ignore_ratings),
            "metrics": self.metrics,
            "ranking": self.ranking.card() if self.ranking else None,
        }

    @classmethod
    def load(cls, directory: Path) -> "TrainedModel":
        """Read a directory written by ``save``.

        Raises:
            DataError: a file is missing or does not match the others.
        """
        _check_files(directory)
        if not (directory / CARD).is_file():
            what = (
                f"no {CARD} in it"
                if directory.is_dir()
                else "it is a file"
                if directory.exists()
                else "it is not there"
            )
            raise DataError(f"{directory} is not a model directory: {what}")
        try:
            card = json.loads((directory / CARD).read_text(encoding="utf-8"))
            if card["format"] != FORMAT:
                raise ValueError(f"{CARD} has format {card['format']}, expected {FORMAT}")
            record = {name: card[name] for name in ("run_id", "solver", "config", "rows", "metrics", "git_sha")}
            ranking = TrainedRanking.read(directory, card["ranking"]) if card.get("ranking") is not None else None
            counts = MovieCounts.read(directory, card)
            module: MatrixFactorization | None = None
            if ranking and all(card[name] is None for name in STARS):
                users, movies = ranking.users, ranking.movies
            else:
                module, users, movies = _read_star_model(directory, card)
        except KeyError as error:
            raise DataError(f"{directory} is not a complete model directory: {error} is missing") from None
        except DataError:
            raise
        except Exception as error:  # on a corrupt file torch.load raises whatever its parser runs into
            raise DataError(f"{directory} is not a model directory: {' '.join(str(error).split())[:300]}") from None
        return cls(
            module,
            users,
            movies,
            **record,
            trained_on=TrainedOn.read(card.get("trained_on")),
            ranking=ranking,
            movie_counts=counts,
            ignore_ratings=_ignore_ratings(directory / CARD, card),
        )


def _read_star_model(directory: Path, card: Mapping[str, Any]) -> "tuple[MatrixFactorization, Vocabulary, Vocabulary]":
    """The module, the users and the movies; sizes and values are checked before they are read."""
    from mf.model import MatrixFactorization
    from mf.tensors import load_tensors

    header = _header(directory / CARD, card)
    if header.rating_min is None or header.rating_max is None or header.factors is None:
        raise ValueError(f"{CARD} has neither a star model nor a ranking model")
    for file in PARQUET.values():
        if _check_size(directory / file) != header.factors:
            raise ValueError(f"{file}: its vectors do not have {header.factors} values, as {CARD} says")
    users, movies = (
        Vocabulary(_checked_ids(_read_columns(directory / file, key)[0], directory / file, key))
        for key, file in PARQUET.items()
    )
    module = MatrixFactorization(
        len(users), len(movies), header.factors, rating_min=header.rating_min, rating_max=header.rating_max
    )
    state = load_tensors(directory / WEIGHTS)
    module.load_state_dict(state)
    for name, values in state.items():
        if not values.is_floating_point():
            raise ValueError(f"{WEIGHTS}: {name} is of {values.dtype}, expected floating-point numbers")
        if not values.isfinite().all():
            raise ValueError(f"{WEIGHTS}: {name} holds a value that is not finite")
    if problem := _mu_problem(*(float(state[name]) for name in STARS)):
        raise ValueError(f"{WEIGHTS}: {problem}")
    return module, users, movies


def write_published(
    directory: Path, header: Header, users: Embeddings, movies: Embeddings, trained_on: TrainedOn | None
) -> None:
    """Write the files that ``read_model`` reads; ``TrainedModel.load`` also needs ``model.pt``."""
    card = asdict(header) | {"trained_on": trained_on and asdict(trained_on)}
    _write(directory, card, users, movies)


def _write(
    directory: Path,
    card: Mapping[str, Any],
    users: Embeddings | None,
    movies: Embeddings | None,
    state: "Mapping[str, torch.Tensor] | None" = None,
    also: Sequence[Path] = (),
    ranking: TrainedRanking | None = None,
    counts: MovieCounts | None = None,
) -> None:
    with directory_written_aside(directory, seal=CARD) as aside:
        if state is not None:
            import torch

            torch.save(state, aside / WEIGHTS)
        for key, rows in ((USER, users), (MOVIE, movies)) if users and movies else ():
            counted = counts.columns(rows.ids) if counts and key == MOVIE and not ranking else {}
            table = pa.table({key: rows.ids, "bias": rows.bias, "embedding": _lists(rows.vectors), **counted})
            pq.write_table(table, aside / PARQUET[key], compression="zstd")
        if ranking:
            ranking.write(aside, counts)
        for extra in also:
            shutil.copy(extra, aside)
        (aside / CARD).write_text(json.dumps(card, indent=2) + "\n")
    absent = [] if ranking else [*RANKING_PARQUET.values()]
    absent += [] if users else [WEIGHTS, *PARQUET.values()]
    for file in absent:
        (directory / file).unlink(missing_ok=True)  # of an earlier model


def _lists(vectors: npt.NDArray[np.float32]) -> pa.ChunkedArray:
    """list<float32>[n] of float32[n, factors], in chunks that offsets of 32 bits can address."""
    factors, kind = vectors.shape[1], pa.list_(pa.float32())
    rows = max(1, MOST_VALUES // factors)
    chunks = []
    for start in range(0, len(vectors), rows):
        part = vectors[start : start + rows]
        offsets = pa.array(np.arange(0, part.size + 1, factors, dtype=np.int32))
        chunks.append(pa.ListArray.from_arrays(offsets, pa.array(part.ravel())))
    return pa.chunked_array(chunks, kind)


def read_model(directory: Path) -> PublishedModel:
    """Read and check ``model.json`` and the Parquet files.

    Raises:
        DataError: a file is missing or malformed; a value is not finite, a vector does not have ``factors`` values, an
            id is missing or occurs twice. The message names file, row and column.
    """
    directory = Path(directory)
    _check_files(directory)
    card = _read_card(directory / CARD)
    header, entry = _header(directory / CARD, card), card.get("ranking")
    numbers = None if entry is None else _ranking_numbers(directory / CARD, entry)
    files = {key: directory / name for key, name in PARQUET.items()}
    # In parallel: a database can load a model in the time that one core needs to read it.
    with ThreadPoolExecutor(2) as pool:
        stars = [
            pool.submit(_read_embeddings, file, key, header.factors)
            for key, file in (files.items() if header.has_stars else ())
        ]
        ranking = pool.submit(_read_ranking, directory, numbers) if numbers else None
        content = pool.submit(_content_hash, directory, header, numbers)
        # content last: an unreadable file is reported by the part that it belongs to.
        return PublishedModel(
            header,
            users=stars[0].result() if stars else None,
            movies=stars[1].result() if stars else None,
            ranking=ranking.result() if ranking else None,
            content_hash=content.result(),
            noise_variance=_header_noise(card.get("metrics"), header) if header.has_stars else None,
            trained_on=TrainedOn.read(card.get("trained_on")),
            movie_counts=MovieCounts.read(directory, card),
            ignore_ratings=_ignore_ratings(directory / CARD, card),
            sweep=_sweep(card.get("metrics")),
        )


def _sweep(metrics: Any) -> dict[str, Any] | None:
    """The entry ``sweep`` of ``metrics``, without its list of trials."""
    found = metrics.get("sweep") if isinstance(metrics, dict) else None
    return {name: value for name, value in found.items() if name != "tried"} if isinstance(found, dict) else None


def read_run_id(directory: Path) -> str:
    """The run id of a model directory.

    Raises:
        DataError: ``model.json`` is missing or malformed.
    """
    _check_files(directory)
    return _header(directory / CARD, _read_card(directory / CARD)).run_id


def _check_files(directory: Path) -> None:
    """Check, before the files are opened, that none is a pipe, which would wait, or a device, which never ends."""
    for name in (CARD, WEIGHTS, *PARQUET.values(), *RANKING_PARQUET.values(), RATINGS_PARQUET):
        path = directory / name
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataError(f"{path}: found a pipe or a device, expected a file: is this a model directory?")
    if (directory / CARD).exists() and (size := (directory / CARD).stat().st_size) > MOST_CARD:
        raise DataError(
            f"{directory / CARD}: {size:,} bytes, expected at most {MOST_CARD:,}: this is no model directory"
        )


def _content_hash(directory: Path, header: Header, ranking: dict[str, Any] | None) -> str:
    content = hashlib.sha256(json.dumps(asdict(header), sort_keys=True).encode())
    files = [*PARQUET.values()] if header.has_stars else []
    if ranking:
        numbers = {name: ranking[name] for name in ("factors", *RANKING_NUMBERS)}
        content.update(json.dumps(numbers, sort_keys=True).encode())
        files += RANKING_PARQUET.values()
    for file in files:
        content.update((directory / file).read_bytes())
    return content.hexdigest()[:16]


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}): is this a model directory?") from None
    if not isinstance(card, dict):
        raise DataError(f"{path}: found a {type(card).__name__}, expected an object: is this a model directory?")
    return card


def _header(path: Path, card: Mapping[str, Any]) -> Header:
    if not isinstance(card.get("run_id"), str) or not card["run_id"].strip():
        raise DataError(f"{path}: run_id is {card.get('run_id')!r}, expected a non-empty text")
    factors = _checked_factors(path, "factors", card.get("factors"))
    if card.get("ranking") is not None and all(card.get(name, "") is None for name in STARS):
        return Header(card["run_id"], factors, None, None, None)
    numbers = [_checked_number(path, name, card.get(name)) for name in STARS]
    if problem := _mu_problem(*numbers):
        raise DataError(f"{path}: {problem}: train the model again")
    return Header(card["run_id"], factors, *numbers)


def _checked_factors(path: Path, name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise DataError(f"{path}: {name} is {value!r}, expected an integer of 1 or more")
    return value


def _checked_number(path: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise DataError(f"{path}: {name} is {repr(value)[:40]}, expected a finite number")
    return float(value)


def _ignore_ratings(path: Path, card: Mapping[str, Any]) -> tuple[float, ...]:
    """The entry ``ignore_ratings`` of a ``model.json``; empty in one of an earlier release."""
    numbers = card.get("ignore_ratings", [])
    if not isinstance(numbers, list):
        raise DataError(f"{path}: ignore_ratings is {numbers!r}, expected a list of numbers")
    return tuple(_checked_number(path, "ignore_ratings", number) for number in numbers)


def _mu_problem(mu: float, rating_min: float, rating_max: float) -> str:
    """What is wrong with mu, the prediction for an unseen user and an unseen movie; empty if nothing is."""
    if rating_min <= mu <= rating_max:
        return ""
    return f"mu is {mu:g}, expected a mean rating within the rating range {rating_min:g} to {rating_max:g}"


def _header_noise(metrics: Any, header: Header) -> float:
    stars = header.stars()
    return noise_variance(metrics, stars["rating_min"], stars["rating_max"])


def noise_variance(metrics: Any, rating_min: float, rating_max: float) -> float:
    """The model's squared RMSE on held-out ratings; without one, (range / 5)², as models of one to five stars have."""
    held_out = metrics if isinstance(metrics, dict) else {}
    for name in ("validation_rmse", "test_rmse"):
        rmse = held_out.get(name)
        if isinstance(rmse, int | float) and math.isfinite(rmse) and rmse > 0:
            return float(rmse) ** 2
    return ((rating_max - rating_min) / 5 or 1.0) ** 2


def _read_embeddings(path: Path, key: str, factors: int) -> Embeddings:
    ids, bias, embedding = _read_columns(path, key, "bias", "embedding")
    return Embeddings(
        _checked_ids(ids, path, key), _checked_bias(bias, path), _checked_vectors(embedding, path, factors)
    )


def _ranking_numbers(path: Path, entry: Any) -> dict[str, Any]:
    """The checked entry ``ranking`` of a ``model.json``."""
    if not isinstance(entry, dict):
        raise DataError(f"{path}: ranking is {entry!r}, expected an object or null")
    _checked_factors(path, "ranking.factors", entry.get("factors"))
    if not isinstance(entry.get("recency"), bool):
        raise DataError(f"{path}: ranking.recency is {entry.get('recency')!r}, expected true or false")
    for name in RANKING_NUMBERS:
        if name != "recency" and not (name in WITH_RATINGS and entry.get(name, "") is None):
            _checked_number(path, f"ranking.{name}", entry.get(name))
    if entry["sd"] is not None and entry["sd"] <= 0:
        raise DataError(f"{path}: ranking.sd is {entry['sd']}, expected a number above 0")
    return entry


def _read_ranking(directory: Path, numbers: dict[str, Any]) -> PublishedRanking:
    factors = numbers["factors"], "ranking.factors"
    users, movies = directory / RANKING_PARQUET[USER], directory / RANKING_PARQUET[MOVIE]
    user_ids, vectors = _read_columns(users, USER, "embedding")
    movie_ids, bias, *columns = _read_columns(movies, MOVIE, "bias", *RANKING_COLUMNS)
    embedding, history, liking = (
        _checked_vectors(column, movies, *factors, name) for name, column in zip(RANKING_COLUMNS, columns, strict=True)
    )
    return PublishedRanking(
        numbers,
        _checked_ids(movie_ids, movies, MOVIE),
        _checked_bias(bias, movies),
        embedding,
        history,
        liking,
        _checked_ids(user_ids, users, USER),
        _checked_vectors(vectors, users, *factors),
    )


def _check_size(path: Path) -> float:
    """Check, before it is read, that a file of vectors does not unpack to far more than its size; returns the values
    per vector."""
    about = pq.read_metadata(path)
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    columns = [group.column(j) for group in groups for j in range(group.num_columns)]
    values = sum(column.num_values for column in columns)
    size = max(4 * values, sum(group.total_byte_size for group in groups))
    if size > MOST_UNPACKED and size > MOST_RATIO * path.stat().st_size:
        raise DataError(f"{path}: {path.stat().st_size:,} bytes that unpack to {size:,}: this is no file of a model")
    vectors = sum(column.num_values for column in columns if column.path_in_schema.startswith("embedding."))
    return float(vectors / max(1, about.num_rows))


def _read_columns(path: Path, *names: str, optional: str = "") -> list[pa.Array]:
    """The named columns of a Parquet file; last the optional one, ``None`` where it is absent."""
    try:
        _check_size(path)
        there = {*pq.read_schema(path).names}
        table = pq.read_table(path, columns=[name for name in (*names, optional) if name in there])
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None
    if missing := {*names} - {*table.column_names}:
        *first, last = names
        raise DataError(f"{path}: no column {', '.join(sorted(missing))}: expected {', '.join(first)} and {last}")
    if not len(table):
        raise DataError(f"{path}: no rows: there is nothing to publish")
    columns = [_whole(table[name]) for name in names]
    if optional:
        columns.append(table[optional].combine_chunks() if optional in table.column_names else None)
    return columns


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """One array; vectors get offsets of 64 bits, since 32 end at 33 million vectors of 64 values."""
    if pa.types.is_list(column.type) and column.type.value_type == pa.float32():
        column = column.cast(pa.large_list(pa.float32()))
    return column.combine_chunks()


def _checked_ids(ids: pa.Array, path: Path, key: str) -> pa.Array:
    if not (pa.types.is_integer(ids.type) or pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise DataError(f"{path}: {key} is of type {ids.type}, expected int64 or string")
    if ids.null_count:
        raise DataError(f"{path} row {_first_row(ids.is_null())}: {key} is null")
    if pa.types.is_integer(ids.type):
        try:
            ids = ids.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: {key} does not fit bigint ({error})") from None
    elif pc.any(empty := pc.equal(pc.binary_length(ids), 0)).as_py():
        raise DataError(f"{path} row {_first_row(empty)}: {key} is empty")
    counts = pc.value_counts(ids)
    if len(counts) < len(ids):
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0]
        raise DataError(f"{path}: {key} {twice.as_py()!r} occurs in more than one row, expected once")
    return ids


def _checked_bias(bias: pa.Array, path: Path) -> npt.NDArray[np.float32]:
    if bias.type != pa.float32() or bias.null_count:
        raise DataError(f"{path}: bias is {bias.type} with {bias.null_count} nulls, expected float without nulls")
    values: npt.NDArray[np.float32] = bias.to_numpy()
    if not (finite := np.isfinite(values)).all():
        raise DataError(f"{path} row {_first_row(~finite)}: bias is not finite")
    return values


def _checked_vectors(
    column: pa.Array, path: Path, factors: int, expected: str = "factors", name: str = "embedding"
) -> npt.NDArray[np.float32]:
    """float32[n, factors], a view of the column's memory. ``expected`` is what ``model.json`` calls ``factors``."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)) or (
        kind.value_type != pa.float32()
    ):
        raise DataError(f"{path}: {name} is of type {kind}, expected list<float>")
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    if not pc.all(matching := pc.equal(lengths, factors)).as_py():
        row = _first_row(pc.invert(matching))
        raise DataError(f"{path} row {row}: {name} has {lengths[row]} values, model.json says {expected} {factors}")
    values = column.flatten()
    if values.null_count:
        raise DataError(f"{path} row {_first_row(values.is_null()) // factors}: {name} holds a null")
    vectors: npt.NDArray[np.float32] = values.to_numpy().reshape(-1, factors)
    if not (finite := np.isfinite(vectors).all(axis=1)).all():
        raise DataError(f"{path} row {_first_row(~finite)}: {name} holds a value that is not finite")
    return vectors


def _first_row(mask: Any) -> int:
    """Row number, from 0, of the first true value."""
    return int(np.argmax(np.asarray(mask)))
