"""The biased matrix factorization model: r̂ = mu + b_u + b_m + p_u·q_m."""

import torch
from torch import Tensor, nn


def products(p: Tensor, q: Tensor, users: Tensor, movies: Tensor) -> Tensor:
    """p_u·q_m float32[B] for the rows ``users`` and ``movies`` (both int32[B] or both int64[B]), each of which must
    exist, of p float32[n_users, K] and q float32[n_movies, K].

    They are what an ``embedding_bag`` of q has for derivatives by its weights, of which PyTorch computes each from the
    two rows where they lie. Gathered first, the rows would be written and read once more.
    """
    by_weight = torch.ops.aten._embedding_bag_per_sample_weights_backward
    dot: Tensor = by_weight(p, q, movies, movies[:1], users, 0)  # 0: mode "sum"; the offsets are not looked at
    return dot


class MatrixFactorization(nn.Module):
    """Biased matrix factorization: r̂ = mu + b_u + b_m + p_u·q_m (Koren, Bell & Volinsky 2009, eq. 4). All parameters
    are 0 at first; the solvers fill them.

    Args:
        n_users, n_movies: rows of the two sides.
        factors: length of p_u and q_m.
        rating_min, rating_max: the range to which ``predict`` clips.
        mu: the global mean rating.
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

    def embed(self, users: Tensor, movies: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """p float[B, factors], q float[B, factors], b_u float[B], b_m float[B] of the rows ``users`` and ``movies``
        (int64[B])."""
        return (
            self.user_factors(users),
            self.movie_factors(movies),
            self.user_bias(users).squeeze(-1),
            self.movie_bias(movies).squeeze(-1),
        )

    def forward(self, users: Tensor, movies: Tensor) -> Tensor:
        """Predictions float[B], not clipped, for rows that exist."""
        p, q, b_u, b_m = self.embed(users, movies)
        score: Tensor = self.mu + b_u + b_m + (p * q).sum(-1)
        return score

    @torch.no_grad()
    def predict(self, users: Tensor, movies: Tensor) -> Tensor:
        """Predictions float[N] clipped to the rating range, for rows int64[N]; -1 is a user or movie that training has
        not seen, and contributes bias 0 and a zero vector."""
        user_seen, movie_seen = (users >= 0).float(), (movies >= 0).float()
        users, movies = users.clamp(min=0), movies.clamp(min=0)
        out = products(self.user_factors.weight, self.movie_factors.weight, users, movies)
        out *= user_seen * movie_seen
        for seen, bias, rows in ((user_seen, self.user_bias, users), (movie_seen, self.movie_bias, movies)):
            out.addcmul_(seen, bias.weight.squeeze(-1).index_select(0, rows))
        return out.add_(self.mu).clamp_(self.rating_min, self.rating_max)
