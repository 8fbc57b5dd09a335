"""What every solver is given, reports and gives."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, device


@dataclass(frozen=True)
class Interactions:
    """Ratings as tensors on one device.

    Attributes:
        users, movies: int64[N], rows of the two sides; in validation ratings -1 is a user or movie unseen in training.
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

    def to(self, where: device) -> "Interactions":
        return Interactions(
            self.users.to(where), self.movies.to(where), self.ratings.to(where), self.n_users, self.n_movies
        )


@dataclass(frozen=True)
class EpochReport:
    """One pass over the training ratings."""

    epoch: int  # from 1
    epochs: int  # how many there will be at most
    train_rmse: float  # over the epoch's batches, each as it was when its turn came, dropout included
    validation_rmse: float | None  # None without validation ratings
    seconds: float
    ratings_per_second: float

    def line(self) -> str:
        """The one line that is printed for the epoch."""
        validation = "" if self.validation_rmse is None else f"  validation RMSE {self.validation_rmse:.4f}"
        left = self.seconds * (self.epochs - self.epoch)
        return (
            f"epoch {self.epoch}/{self.epochs}{validation}  train RMSE {self.train_rmse:.4f}  {self.seconds:.1f} s  "
            f"{self.ratings_per_second:,.0f} ratings/s  {left:.0f} s left"
        )


Callback = Callable[[EpochReport], None]
