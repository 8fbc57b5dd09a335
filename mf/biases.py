"""Damped bias model: the baseline of every model, and its prediction for unseen users and movies."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32] | npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# The best of 0.5 to 25 on MovieLens latest-small (RMSE 0.8634, mean of three random 90/10 splits). Different dampings
# for users and movies gain less than 0.0001.
DAMPING = 3.0


@dataclass(frozen=True)
class BiasModel:
    """Global mean plus a damped bias for each user and each movie.

    The form is equation 3 of Koren, Bell and Volinsky, "Matrix Factorization Techniques for Recommender Systems"
    (2009). The biases are not fitted but averaged, movies first, as in S. Funk's "Netflix Update: Try This at Home"
    (2006), Koren and Bell's "Advances in Collaborative Filtering" (2011) and LensKit's ``BiasModel``:

        b_m = Σ (r − μ) / (n_m + λ)            over the n_m ratings of movie m
        b_u = Σ (r − μ − b_m) / (n_u + λ)      over the n_u ratings of user u
    """

    mean: float  # μ, in rating units
    user_bias: Floats  # [n_users], in rating units
    movie_bias: Floats  # [n_movies], in rating units

    @classmethod
    def fit(
        cls,
        users: Ints,
        movies: Ints,
        ratings: npt.NDArray[np.float32],
        n_users: int,
        n_movies: int,
        damping: float = DAMPING,
    ) -> Self:
        """Computes the biases from N ≥ 1 ratings.

        Args:
            users: int32[N] or int64[N], rows in 0 … n_users - 1.
            movies: int32[N] or int64[N], rows in 0 … n_movies - 1.
            ratings: float32[N].
            damping: λ ≥ 0, in ratings: shrinks a bias as λ more ratings with a deviation of 0 would.
        """
        mean = float(ratings.mean(dtype=np.float64))
        residuals = ratings - np.float64(mean)
        movie_bias = _damped_means(movies, residuals, n_movies, damping)
        residuals -= movie_bias[movies]
        user_bias = _damped_means(users, residuals, n_users, damping)
        return cls(mean, user_bias, movie_bias)

    def predict(self, users: Ints, movies: Ints) -> Floats:
        """Unclipped predictions float64[N] for rows int64[N]; row -1 is unseen and has bias 0."""
        # Row -1 reads the appended zero.
        user_bias: Floats = np.append(self.user_bias, 0.0)
        movie_bias: Floats = np.append(self.movie_bias, 0.0)
        return self.mean + user_bias[users] + movie_bias[movies]


def _damped_means(rows: Ints, values: Floats, n_rows: int, damping: float) -> Floats:
    weights = np.bincount(rows, minlength=n_rows) + damping
    sums = np.bincount(rows, weights=values, minlength=n_rows)
    # Without damping, a row without ratings would be 0 / 0.
    means: Floats = np.divide(sums, weights, out=np.zeros(n_rows), where=weights > 0)
    return means
