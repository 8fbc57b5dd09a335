"""The biased matrix factorization model: r̂ = mu + b_u + b_m + p_u·q_m."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Pairs per batch. On a CPU their vectors stay in the cache, which is ten times as fast; a GPU needs few, large batches.
CPU_BATCH, GPU_BATCH = 1 << 12, 1 << 18


def batches(*columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Columns of equal length [N] in batches of pairs to predict."""
    size = CPU_BATCH if columns[0].device.type == "cpu" else GPU_BATCH
    return zip(*(torch.split(column, size) for column in columns), strict=True)


class MatrixFactorization(nn.Module):
    """Biased matrix factorization: r̂ = mu + b_u + b_m + p_u·q_m (Koren, Bell & Volinsky 2009, eq. 4).

    All parameters start at 0; the solvers fill them.

    Args:
        n_users, n_movies: number of users and movies.
        factors: length of p_u and q_m.
        rating_min, rating_max: range to which ``predict`` clips.
        mu: global mean rating.
    """

    mu: Tensor
    rating_min: Tensor
    rating_max: Tensor

    def __init__(
        self,
        n_users: int,
        n_movies: int,
        factors: int,
        *,
        rating_min: float,
        rating_max: float,
        mu: float = 0.0,
    ) -> None:
        super().__init__()
        self.user_factors = nn.Embedding(n_users, factors)
        self.movie_factors = nn.Embedding(n_movies, factors)
        self.user_bias = nn.Embedding(n_users, 1)
        self.movie_bias = nn.Embedding(n_movies, 1)
        for table in (self.user_factors, self.movie_factors, self.user_bias, self.movie_bias):
            nn.init.zeros_(table.weight)
        for name, value in (("mu", mu), ("rating_min", rating_min), ("rating_max", rating_max)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))

    @property
    def factors(self) -> int:
        return self.user_factors.embedding_dim

    @property
    def spread(self) -> float:
        """Largest difference between two predictions."""
        return float(self.rating_max - self.rating_min)

    def embed(self, users: Tensor, movies: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embedding lookups: p float[B, factors], q float[B, factors], b_u float[B], b_m float[B].

        Args:
            users, movies: int64[B] or int32[B], rows that exist.
        """
        return (
            self.user_factors(users),
            self.movie_factors(movies),
            self.user_bias(users).squeeze(-1),
            self.movie_bias(movies).squeeze(-1),
        )

    def forward(self, users: Tensor, movies: Tensor) -> Tensor:
        """Unclipped predictions float[B] for rows that exist."""
        p, q, b_u, b_m = self.embed(users, movies)
        score: Tensor = self.mu + b_u + b_m + (p * q).sum(-1)
        return score

    @torch.no_grad()
    def predict(self, users: Tensor, movies: Tensor) -> Tensor:
        """Predictions clipped to the rating range, float[N].

        Args:
            users, movies: int64[N] or int32[N]; -1 is an unseen user or movie, with bias 0 and a zero vector.
        """
        return torch.cat([self._predict_batch(*batch) for batch in batches(users, movies)])

    def _predict_batch(self, users: Tensor, movies: Tensor) -> Tensor:
        user_seen, movie_seen = users >= 0, movies >= 0
        p, q, b_u, b_m = self.embed(users.clamp(min=0), movies.clamp(min=0))
        dot = (p * q).sum(-1)
        score = self.mu + b_u * user_seen + b_m * movie_seen + dot * (user_seen & movie_seen)
        return score.clamp(self.rating_min, self.rating_max)
