"""The interface of a solver, its input, its reports and its result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mf.config import Config
from mf.model import MatrixFactorization
from mf.workers import Workers

# Descriptions of options that all solvers have.
EPOCHS = "passes over the training ratings; adam, sgd and vb may stop earlier"
SEED = "random seed"

RMSE_SHARDS = 4  # of the validation ratings: at most as many workers share an RMSE


@dataclass(frozen=True)
class RatingTensors:
    """Ratings as tensors on one device.

    Attributes:
        users, movies: int64[N] or int32[N], rows of the embedding tables; -1 in validation ratings is a user or movie
            without training ratings.
        ratings: float32[N].
        n_users, n_movies: number of rows of the embedding tables.
    """

    users: Tensor
    movies: Tensor
    ratings: Tensor
    n_users: int
    n_movies: int

    def __len__(self) -> int:
        return len(self.ratings)

    def to(self, device: torch.device) -> "RatingTensors":
        """A copy on ``device``; tensors that are there already are shared."""
        return RatingTensors(
            self.users.to(device), self.movies.to(device), self.ratings.to(device), self.n_users, self.n_movies
        )

    def counts(self) -> tuple[Tensor, Tensor]:
        """Ratings per user int64[n_users] and per movie int64[n_movies]."""
        return torch.bincount(self.users, minlength=self.n_users), torch.bincount(self.movies, minlength=self.n_movies)


@dataclass(frozen=True)
class EpochReport:
    """Metrics of one epoch (``vb`` and ``gibbs``: one sweep over the ratings)."""

    epoch: int  # from 1
    epochs: int  # largest number of epochs
    train_rmse: float  # each rating as it was predicted when its turn came
    validation_rmse: float | None  # None without validation ratings
    seconds: float
    ratings_per_second: float
    kept: bool  # this epoch's model is the best so far, or the last of a solver that keeps the last
    note: str = ""  # a remark of the solver, one sentence

    def line(self) -> str:
        """The log line of the epoch; a note adds a second line."""
        validation = "" if self.validation_rmse is None else f"  validation RMSE {self.validation_rmse:.4f}"
        left = self.seconds * (self.epochs - self.epoch)
        note = f"\n{self.note}" if self.note else ""
        return (
            f"epoch {self.epoch}/{self.epochs}{validation}  train RMSE {self.train_rmse:.4f}  {self.seconds:.1f} s  "
            f"{self.ratings_per_second:,.0f} ratings/s  {left:.0f} s left{note}"
        )


@dataclass(frozen=True)
class InitialRows:
    """Rows of an earlier model's embedding table and biases.

    Attributes:
        rows: int64[n], row numbers in the new model.
        vectors: float32[n, k], columns in descending order of weight; k may differ from the new model's factors.
        biases: float32[n].
    """

    rows: Tensor
    vectors: Tensor
    biases: Tensor

    def to(self, device: torch.device) -> "InitialRows":
        """A copy on ``device``."""
        return InitialRows(self.rows.to(device), self.vectors.to(device), self.biases.to(device))

    def scatter_into(self, vectors: Tensor, biases: Tensor, row_of: Tensor | None = None) -> None:
        """Overwrites these rows of an embedding table float32[N, factors] and its biases float32[N].

        Columns that are 0 in every row are left out: a factor that is 0 for users and movies would never move.

        Args:
            row_of: int64[N], the table's row of each row number, where the table is in another order.
        """
        rows = self.rows if row_of is None else row_of[self.rows]
        used = self.vectors.any(0).nonzero().squeeze(1)
        used = used[used < vectors.shape[1]]
        vectors[rows.unsqueeze(1), used] = self.vectors[:, used]
        biases[rows] = self.biases


@dataclass(frozen=True)
class Initial:
    """An earlier model to start from (warm start).

    Attributes:
        name: the earlier model's run id.
        mu: its global mean.
        users, movies: its rows for users and movies of the new model.
    """

    name: str
    mu: float
    users: InitialRows
    movies: InitialRows

    def to(self, device: torch.device) -> "Initial":
        """A copy on ``device``."""
        return Initial(self.name, self.mu, self.users.to(device), self.movies.to(device))


Callback = Callable[[EpochReport], None]


class Checkpoint(Protocol):
    """Storage for the state of an unfinished training, such as ``mf.checkpoint.CheckpointFile``."""

    def load(self) -> dict[str, Any] | None:
        """The state saved last; ``None`` without one."""

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the saved state: tensors, numbers, strings, and lists and dicts of these."""


class Training(Protocol):
    """A training in progress, run epoch by epoch by ``mf.solvers.loop``."""

    epochs: int  # largest number of epochs
    keeps_best: bool  # return the best epoch by validation RMSE; False: the last epoch
    patience: int  # epochs without a better validation RMSE before an early stop; 0: no early stop
    advice: str  # what to do when a value is not finite: "lower --lr (now 0.01)"
    note: str  # remark on the last epoch, one sentence or empty

    def epoch(self, number: int) -> float:
        """Runs epoch ``number``, from 1; returns the training RMSE.

        All random numbers come from ``generator(seed, number)``, so that a training resumed between two epochs gives
        the same bits as one that never stopped.
        """

    def validation_rmse(self) -> float:
        """RMSE of the clipped predictions on the validation ratings; unseen users and movies count as in the finished
        model."""

    def model(self) -> MatrixFactorization:
        """The finished model after the last epoch (``mf.solvers.unseen``); later epochs do not change it."""

    def state(self) -> dict[str, Any]:
        """All that later epochs depend on; may share memory with what they change."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores ``state``."""


class Start(Protocol):
    """Makes a ``Training`` that is ready for its first epoch."""

    def __call__(
        self, train: RatingTensors, validation: RatingTensors, config: Any, *, initial: Initial | None = None
    ) -> Training:
        """``initial`` is ``None`` unless the solver can start from an earlier model."""


@dataclass(frozen=True)
class Solver:
    """A way to fit the model.

    Attributes:
        name: as given to ``--solver``.
        help: when to choose it, in one clause.
        config: its options; their defaults hold for small and for large data.
        warm: whether it can start from an earlier model.
        start: makes the training.
    """

    name: str
    help: str
    config: type[Config]
    warm: bool
    start: Start


def generator(seed: int, epoch: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random number generator of one epoch; epoch 0 is the initialisation."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + epoch)


def rmse(model: MatrixFactorization, ratings: RatingTensors, workers: Workers | None = None) -> float:
    """RMSE of a finished model's clipped predictions; the same bits with any number of workers."""
    columns = (ratings.users, ratings.movies, ratings.ratings)
    shards = list(zip(*(column.chunk(RMSE_SHARDS) for column in columns), strict=True))

    def squared_error(shard: tuple[Tensor, ...]) -> Tensor:
        users, movies, actual = shard
        return (model.predict(users, movies) - actual).double().square().sum()

    sums = workers.map(squared_error, shards) if workers else [squared_error(shard) for shard in shards]
    return float((torch.stack(sums).sum() / len(ratings)).sqrt())
