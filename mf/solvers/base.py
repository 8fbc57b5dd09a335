"""The interface of a solver, its input, its reports and its result."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from mf.errors import DataError
from mf.model import MatrixFactorization, batches
from mf.ranks import Ranks, lane_count, lanes_of
from mf.solvers.rows import MovieRows, UserRows, summable
from mf.solvers.sorting import stable_argsort
from mf.workers import Workers

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
class Share:
    """The training ratings of one rank, and what it knows of all of them.

    Attributes:
        own: this rank's ratings, sorted by user; its users are numbered from 0.
        users, movies: how they lie on the ranks.
        n_ratings: number of ratings on all ranks together.
        first_rating: number of the ratings before this rank's.
        user_counts, movie_counts: int64, ratings of each of this rank's users and of each movie on all ranks.
        mean: of all ratings.
        std: standard deviation of all ratings.
    """

    own: RatingTensors
    users: UserRows
    movies: MovieRows
    n_ratings: int
    first_rating: int
    user_counts: Tensor
    movie_counts: Tensor
    mean: float
    std: float

    @classmethod
    def of(cls, own: RatingTensors, ranks: Ranks | None = None) -> "Share":
        """The share of this rank.

        Args:
            own: the ratings of its users, in any order; users before another rank's are on a rank before it.

        Raises:
            DataError: a rank has no ratings.
        """
        ranks = ranks or Ranks.alone()
        if bool((own.users[1:] < own.users[:-1]).any()):
            order = stable_argsort(own.users, own.n_users)
            own = replace(own, users=own.users[order], movies=own.movies[order], ratings=own.ratings[order])
        sizes = ranks.gather_objects((len(own), own.n_users))
        n_ratings, n_users = (sum(size[i] for size in sizes) for i in range(2))
        if not all(ratings for ratings, _ in sizes):
            raise DataError(
                f"found {n_users:,} users with {n_ratings:,} ratings for {ranks.world} processes, expected at least "
                "one user per process: use fewer --processes"
            )
        first_rating, first_user = (sum(size[i] for size in sizes[: ranks.rank]) for i in range(2))
        user_counts, movie_counts = own.counts()
        # A lane begins with the first user whose ratings begin at or after its share of all ratings.
        starts = first_rating + pad(user_counts.cumsum(0), (1, 0))
        lanes = lane_count(own.ratings.device.type, ranks.world)
        here = lanes_of(ranks.rank, ranks.world, lanes)
        wanted = starts.new_tensor([n_ratings * lane // lanes for lane in here[1:]])
        edges = [0, *torch.searchsorted(starts, wanted).tolist(), own.n_users]
        bounds = ranks.gather(torch.stack(own.ratings.aminmax())[None])
        bound = float(bounds.abs().max())
        mean = float(ranks.sum(summable(own.ratings, bound, n_ratings).sum())) / n_ratings
        squares = ranks.sum((own.ratings.double() - mean).square().sum())
        return cls(
            own,
            UserRows(n_users, ranks, first_user, [slice(*pair) for pair in pairwise(edges)]),
            MovieRows(own.n_movies, ranks),
            n_ratings,
            first_rating,
            user_counts,
            ranks.sum(movie_counts),
            mean,
            float(squares / n_ratings) ** 0.5,
        )

    @property
    def ranks(self) -> Ranks:
        return self.users.ranks

    @property
    def n_users(self) -> int:
        """Number of users on all ranks together."""
        return self.users.n

    @property
    def n_movies(self) -> int:
        """Number of movies."""
        return self.movies.n

    @property
    def device(self) -> torch.device:
        return self.own.ratings.device

    def __len__(self) -> int:
        return self.n_ratings

    def standardised(self) -> Tensor:
        """This rank's ratings less the mean of all, divided by their standard deviation (by 1 where it is 0)."""
        scaled = self.own.ratings / (self.std or 1.0)
        return scaled - self.mean / (self.std or 1.0)

    def evenly_spaced(self, n: int) -> RatingTensors:
        """This rank's part of at most ``n`` of all ratings."""
        every = -(-self.n_ratings // n)
        start = -self.first_rating % every
        columns = (x[start::every].contiguous() for x in (self.own.users, self.own.movies, self.own.ratings))
        users, movies, ratings = columns
        return replace(self.own, users=users, movies=movies, ratings=ratings)


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

    def due(self) -> bool:
        """Whether ``save`` would save now."""

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the saved state: tensors, numbers, strings, and lists and dicts of these. It may return before the
        state is safe, but needs the given tensors no longer."""

    def wait(self) -> None:
        """Waits until the last save is done; raises what it failed with."""


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
        the same bits as one that never stopped. What is drawn depends on no rank.
        """

    def validation_rmse(self) -> float:
        """RMSE of the finished model's clipped predictions on the validation ratings; unseen users and movies count."""

    def keep(self) -> None:
        """Takes the last epoch for the best so far; called only where ``keeps_best``."""

    def model(self) -> MatrixFactorization:
        """The finished model (``mf.solvers.unseen``) of the epoch that was kept last; without one, of the last epoch.
        Later epochs do not change it."""

    def state(self) -> dict[str, Any]:
        """All that later epochs and the model depend on, of all users, on rank 0; may share memory with what they
        change."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores ``state``."""


class Start(Protocol):
    """Makes a ``Training`` that is ready for its first epoch; called by all ranks, as every method of it."""

    def __call__(
        self, train: Share, validation: RatingTensors, config: Any, *, initial: Initial | None = None
    ) -> Training:
        """``initial`` is ``None`` unless the solver can start from an earlier model."""


def generator(seed: int, epoch: int, device: torch.device | str = "cpu", lane: int = 0) -> torch.Generator:
    """The random number generator of a lane of users in one epoch; epoch 0 is the initialisation."""
    return torch.Generator(device).manual_seed((lane * 1_000_003 + seed) * 1_000_003 + epoch)


class Predictor(Protocol):
    """A finished model, or what predicts as it does."""

    @property
    def spread(self) -> float:
        """Largest difference between two predictions."""

    def predict(self, users: Tensor, movies: Tensor) -> Tensor:
        """Clipped predictions, float32[N]; row -1 is unseen."""


def rmse(model: Predictor, ratings: RatingTensors, workers: Workers | None = None, ranks: Ranks | None = None) -> float:
    """RMSE of clipped predictions on the ratings of all ranks; the same bits with any number of
    workers and of ranks."""
    ranks = ranks or Ranks.alone()
    n = int(ranks.sum(torch.tensor(len(ratings), device=ratings.ratings.device)))
    largest = model.spread**2
    columns = (ratings.users, ratings.movies, ratings.ratings)
    shards = list(zip(*(column.chunk(RMSE_SHARDS) for column in columns), strict=True))

    def squared_error(shard: tuple[Tensor, ...]) -> Tensor:
        total = shard[0].new_zeros((), dtype=torch.float64)
        for users, movies, actual in batches(*shard):
            total += summable((model.predict(users, movies) - actual).double().square(), largest, n).sum()
        return total

    sums = workers.map(squared_error, shards) if workers else [squared_error(shard) for shard in shards]
    return float((ranks.sum(torch.stack(sums).sum()) / n).sqrt())
