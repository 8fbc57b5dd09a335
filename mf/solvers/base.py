"""What every solver is given, reports and gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mf.model import MatrixFactorization
from mf.solvers.workers import Workers

RMSE_PARTS = 4  # of validation ratings, for as many workers at most


@dataclass(frozen=True)
class Interactions:
    """Ratings as tensors on one device.

    Attributes:
        users, movies: int64[N] or int32[N], rows of the two sides; in validation ratings -1 is a user or movie unseen
            in training.
        ratings: float32[N].
        n_users, n_movies: how many rows the two sides have.
    """

    users: Tensor
    movies: Tensor
    ratings: Tensor
    n_users: int
    n_movies: int

    def __len__(self) -> int:
        return len(self.ratings)

    def to(self, where: torch.device) -> "Interactions":
        return Interactions(
            self.users.to(where), self.movies.to(where), self.ratings.to(where), self.n_users, self.n_movies
        )

    def counts(self) -> tuple[Tensor, Tensor]:
        """int64[n_users] and int64[n_movies], the ratings of each row."""
        return torch.bincount(self.users, minlength=self.n_users), torch.bincount(self.movies, minlength=self.n_movies)


@dataclass(frozen=True)
class EpochReport:
    """One pass over the training ratings: an epoch, or a sweep of ``vb`` and ``gibbs``."""

    epoch: int  # from 1
    epochs: int  # how many there will be at most
    train_rmse: float  # over the pass, each rating as it was predicted when its turn came
    validation_rmse: float | None  # None without validation ratings
    seconds: float
    ratings_per_second: float
    kept: bool  # the model of this pass is the one to be returned, unless a later one takes its place
    note: str = ""  # what the solver has to say of this pass, a sentence

    def line(self) -> str:
        """The line that is printed for the pass; with a note, there is a second one."""
        validation = "" if self.validation_rmse is None else f"  validation RMSE {self.validation_rmse:.4f}"
        left = self.seconds * (self.epochs - self.epoch)
        note = f"\n{self.note}" if self.note else ""
        return (
            f"epoch {self.epoch}/{self.epochs}{validation}  train RMSE {self.train_rmse:.4f}  {self.seconds:.1f} s  "
            f"{self.ratings_per_second:,.0f} ratings/s  {left:.0f} s left{note}"
        )


@dataclass(frozen=True)
class InitialSide:
    """What is known of one side's rows before a training.

    Attributes:
        rows: int64[n], which they are.
        vectors: float32[n, k], the weightiest factor first; k may be any number.
        biases: float32[n].
    """

    rows: Tensor
    vectors: Tensor
    biases: Tensor

    def to(self, where: torch.device) -> "InitialSide":
        return InitialSide(self.rows.to(where), self.vectors.to(where), self.biases.to(where))

    def put(self, vectors: Tensor, biases: Tensor, row_of: Tensor | None = None) -> None:
        """Overwrites the rows (``row_of`` them, where the tables have others) of float32[N, factors] and float32[N].

        Factors that are 0 everywhere are left as they are: where both sides are 0, neither would ever move."""
        rows = self.rows if row_of is None else row_of[self.rows]
        used = self.vectors.any(0).nonzero().squeeze(1)
        used = used[used < vectors.shape[1]]
        vectors[rows.unsqueeze(1), used] = self.vectors[:, used]
        biases[rows] = self.biases


@dataclass(frozen=True)
class Initial:
    """An earlier model to start from, in the rows of the new one.

    Attributes:
        name: of the earlier model.
        mu: its global mean.
        users, movies: its rows that the new one has too.
    """

    name: str
    mu: float
    users: InitialSide
    movies: InitialSide

    def to(self, where: torch.device) -> "Initial":
        return Initial(self.name, self.mu, self.users.to(where), self.movies.to(where))


Callback = Callable[[EpochReport], None]


class Checkpoint(Protocol):
    """Where the state of an unfinished training is kept; ``mf.checkpoint.CheckpointFile`` is one."""

    def load(self) -> dict[str, Any] | None:
        """What ``save`` kept last; ``None`` when there is nothing."""

    def save(self, state: dict[str, Any]) -> None:
        """Keeps ``state`` (tensors, numbers, strings, and lists and dicts of them) in place of what was kept."""


class Fitting(Protocol):
    """A training in progress: what a solver is to the loop that runs it (``mf.solvers.loop``)."""

    epochs: int  # passes, at most
    keeps_best: bool  # the best epoch by validation RMSE is returned; else the last one
    patience: int  # passes without a better validation RMSE before it stops; 0: never
    advice: str  # what to do when a value is not finite: "lower --lr (it is 0.01)"
    note: str  # what there is to say of the last pass, a sentence, or nothing

    def epoch(self, number: int) -> float:
        """The pass ``number``, from 1; returns the training RMSE.

        All that is drawn is drawn from ``generator(seed, number)``, so that a training that is resumed between two
        passes goes on as if it had not stopped.
        """

    def validation_rmse(self) -> float:
        """RMSE of the clipped predictions for the validation ratings, unseen rows answered as the finished model
        would."""

    def model(self) -> MatrixFactorization:
        """The finished model of the last pass, as ``mf.solvers.unseen`` makes them; later passes do not change it."""

    def state(self) -> dict[str, Any]:
        """All that the passes to come depend on; may share memory with what they change."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes back to where ``state`` was taken."""


def generator(seed: int, epoch: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The source of random numbers of one pass; 0 is the initialisation."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + epoch)


def rmse(model: MatrixFactorization, ratings: Interactions, workers: Workers | None = None) -> float:
    """RMSE of the clipped predictions of a finished model; the same with any number of workers."""
    columns = (ratings.users, ratings.movies, ratings.ratings)
    parts = list(zip(*(column.chunk(RMSE_PARTS) for column in columns), strict=True))

    def squares(part: tuple[Tensor, ...]) -> Tensor:
        users, movies, actual = part
        return (model.predict(users, movies) - actual).double().square().sum()

    sums = workers.map(squares, parts) if workers else [squares(part) for part in parts]
    return float((torch.stack(sums).sum() / len(ratings)).sqrt())
