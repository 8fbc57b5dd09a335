"""Cold start: predictions for unseen users and movies are those of the damped bias model."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mf.biases import BiasModel
from mf.model import MatrixFactorization
from mf.solvers.base import Interactions

# With this many fitted factors, giving two to the biases costs known pairs nothing: what real ratings have in common
# fits into fewer.
ENOUGH_FACTORS = 32


class BiasFallback:
    """Makes models whose mu and biases are the damped bias model's (``mf.biases``).

    All else that a solver has fitted goes into the vectors. An unseen row has a bias of 0 and a zero vector, so its
    predictions are exactly the bias model's. With β the damped biases and mu the mean rating:

        b_u + b_m + p·q = β_u + β_m + [p, b_u - β_u, 1]·[q, 1, b_m - β_m]

    Vectors without room for two more factors get biases near β instead: see ``shifted_model``.

    Args:
        train: the training ratings; every row has at least one.
        validation: may be empty; only its smallest and largest rating are used, for the rating range.

    Attributes:
        mu: mean of the training ratings.
        user_bias, movie_bias: float32[n_users] and float32[n_movies], the damped biases.
        counts: float32[n_users] and float32[n_movies], training ratings per row, at least 1.
        range: rating_min and rating_max.
    """

    def __init__(self, train: Interactions, validation: Interactions) -> None:
        extremes = [r for data in (train, validation) if len(data) for r in data.ratings.aminmax()]
        self.range = {"rating_min": min(extremes).item(), "rating_max": max(extremes).item()}
        self.device = train.ratings.device
        users, movies, ratings = (x.cpu().numpy() for x in (train.users, train.movies, train.ratings))
        with np.errstate(invalid="ignore"):  # ratings that are not finite are reported by the first epoch
            biases = BiasModel.fit(users, movies, ratings, train.n_users, train.n_movies)
        self.mu = biases.mean
        self.user_bias, self.movie_bias = (
            torch.from_numpy(b).float().to(self.device) for b in (biases.user_bias, biases.movie_bias)
        )
        user_counts, movie_counts = train.counts()
        self.counts = user_counts.clamp(min=1).float(), movie_counts.clamp(min=1).float()

    def to_model(
        self, p: Tensor, q: Tensor, b_u: Tensor, b_m: Tensor, factors: int, fitted: int = ENOUGH_FACTORS
    ) -> MatrixFactorization:
        """The model mu + b_u + b_m + p·q with vectors of ``factors`` entries.

        Predictions for unseen rows are exactly the bias model's when the vectors have room for two factors more than
        ``fitted``, else near them.

        Args:
            p, q: float32[n_users, k] and float32[n_movies, k].
            b_u, b_m: float32[n_users] and float32[n_movies].
            fitted: number of factors that must be kept.
        """
        if self.has_room(fitted, factors) or p.shape[1] > factors:
            return self.truncated(self.widened_model(p, q, b_u, b_m), factors)
        missing = (0, factors - p.shape[1])
        return self.shifted_model(pad(p, missing), pad(q, missing), b_u, b_m)

    @staticmethod
    def has_room(fitted: int, factors: int) -> bool:
        """Whether vectors of ``factors`` entries hold ``fitted`` factors and two more."""
        return fitted + 2 <= factors

    def bias_factors(self, b_u: Tensor, b_m: Tensor) -> tuple[Tensor, Tensor]:
        """[b_u - β_u, 1] float32[n_users, 2] and [1, b_m - β_m] float32[n_movies, 2]."""
        users, movies = b_u - self.user_bias, b_m - self.movie_bias
        return torch.stack([users, torch.ones_like(users)], 1), torch.stack([torch.ones_like(movies), movies], 1)

    def widened_model(self, p: Tensor, q: Tensor, b_u: Tensor, b_m: Tensor) -> MatrixFactorization:
        """mu + b_u + b_m + p·q with the damped biases, and two factors more than p and q have."""
        users, movies = self.bias_factors(b_u, b_m)
        return self.model(torch.cat([p, users], 1), torch.cat([q, movies], 1))

    def truncated(self, model: MatrixFactorization, factors: int) -> MatrixFactorization:
        """``model`` with vectors of ``factors`` entries: a truncated SVD of its products.

        It is the best approximation of that rank (Eckart & Young 1936) when an error is weighted by the ratings of the
        user and of the movie, and exact when ``model`` has no more factors. The result does not depend on the solver's
        own axes: factors are orthogonal, of equal length for users and movies, in descending order of weight.
        """
        tables = [table.weight.detach() for table in (model.user_factors, model.movie_factors)]
        roots = [counts.sqrt().unsqueeze(1) for counts in self.counts]
        (left, r_left), (right, r_right) = (torch.linalg.qr(r * table) for r, table in zip(roots, tables, strict=True))
        # In float64: the matrix is small, and factors that are weak beside the first ones must be exact as well.
        u, s, vt = torch.linalg.svd(r_left.double() @ r_right.double().mT, full_matrices=False)
        turns = [(basis[:, :factors] * s[:factors].sqrt()).float() for basis in (u, vt.mT)]
        vectors = [basis @ turn / root for basis, turn, root in zip((left, right), turns, roots, strict=True)]
        return self.model(*(pad(v, (0, factors - v.shape[1])) for v in vectors))

    def shifted_model(self, p: Tensor, q: Tensor, b_u: Tensor, b_m: Tensor) -> MatrixFactorization:
        """mu + b_u + b_m + p·q with as many factors, and biases as near to β as predictions of known pairs allow.

        p·q = (p - d)·(q - c) + p·c + d·q - d·c for any c and d, so p·c can move to b_u and d·q to b_m.
        """
        p, q, b_u, b_m = (x.double() for x in (p, q, b_u, b_m))
        c, b_u, shift_u = _shift(self.user_bias.double(), b_u, p, self.counts[0].double())
        d, b_m, shift_m = _shift(self.movie_bias.double(), b_m, q, self.counts[1].double())
        model = self.model((p - d).float(), (q - c).float(), b_u.float(), b_m.float())
        model.mu.sub_(shift_u + shift_m + (d @ c).item())
        return model

    def model(self, p: Tensor, q: Tensor, b_u: Tensor | None = None, b_m: Tensor | None = None) -> MatrixFactorization:
        """A model of these parameters; default biases: the damped ones."""
        model = MatrixFactorization(len(p), len(q), p.shape[1], mu=self.mu, **self.range).to(self.device)
        for table, values in (
            (model.user_factors, p),
            (model.movie_factors, q),
            (model.user_bias, (self.user_bias if b_u is None else b_u).unsqueeze(1)),
            (model.movie_bias, (self.movie_bias if b_m is None else b_m).unsqueeze(1)),
        ):
            table.weight.data = values.contiguous()
        return model.eval()


def _shift(target: Tensor, bias: Tensor, vectors: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, float]:
    """Least squares of target - bias on [vectors, 1], weighted by ``counts``: the coefficients c float64[k], the sum
    bias + vectors·c + a float64[n], and the intercept a."""
    columns = torch.cat([vectors, torch.ones_like(bias).unsqueeze(1)], 1)
    weighted = columns * counts.unsqueeze(1)
    solution = torch.linalg.pinv(columns.mT @ weighted, hermitian=True, rtol=1e-10) @ (weighted.mT @ (target - bias))
    return solution[:-1], bias + columns @ solution, solution[-1].item()
