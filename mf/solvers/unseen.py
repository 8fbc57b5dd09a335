"""Cold start: predictions for unseen users and movies are those of the damped bias model."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mf.biases import BiasModel
from mf.model import MatrixFactorization
from mf.solvers.base import RatingTensors, rmse
from mf.solvers.gaussian import Block, PosteriorMoments, RatingsByRow, normal_equations
from mf.workers import Workers

# With this many fitted factors, giving two to the biases costs known pairs nothing: what real ratings have in common
# fits into fewer.
ENOUGH_FACTORS = 32
# With fewer, vectors are refitted when the training RMSE rises by more, in standard deviations of the ratings.
ALLOWED_LOSS = 0.005
# Largest number of training ratings, evenly spaced, for a training RMSE: accurate to a thousandth or two.
RMSE_SAMPLE = 1 << 18
# Sweeps of a refit, and the weight of its prior at the vectors before the sweep, in ratings of an average row. The
# weight makes a sweep move the vectors a little: they stay near the solver's, which overfit less than least squares.
REFIT_SWEEPS, PRIOR_WEIGHT = 10, 2.0
LEAST_GAIN = 0.1  # share of the excess loss that a sweep must remove to be kept


class BiasFallback:
    """Makes models whose mu and biases are the damped bias model's (``mf.biases``).

    All else that a solver has fitted goes into the vectors. An unseen row has a bias of 0 and a zero vector, so its
    predictions are exactly the bias model's. With β the damped biases and mu the mean rating:

        b_u + b_m + p·q = β_u + β_m + [p, b_u - β_u, 1]·[q, 1, b_m - β_m]

    The sum has two factors more than the solver's vectors, and is then truncated to ``factors``. Where few factors make
    that cost training RMSE, the truncated vectors are refitted: see ``reduced``.

    Args:
        train: the training ratings; every row has at least one.
        validation: may be empty; only its smallest and largest rating are used, for the rating range.

    Attributes:
        mu: mean of the training ratings.
        user_bias, movie_bias: float32[n_users] and float32[n_movies], the damped biases.
        counts: float32[n_users] and float32[n_movies], training ratings per row, at least 1.
        range: rating_min and rating_max.
        sample: training ratings, evenly spaced, for training RMSEs.
    """

    def __init__(self, train: RatingTensors, validation: RatingTensors) -> None:
        extremes = [r for data in (train, validation) if len(data) for r in data.ratings.aminmax()]
        self.range = {"rating_min": min(extremes).item(), "rating_max": max(extremes).item()}
        self.device, self.train = train.ratings.device, train
        self.workers = Workers(self.device)
        self.by_row: tuple[RatingsByRow, RatingsByRow] | None = None
        self.sample = _evenly_spaced(train, RMSE_SAMPLE)
        self.allowed_loss = ALLOWED_LOSS * train.ratings.double().std(correction=0).item()
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
        """The model nearest to mu + b_u + b_m + p·q with the damped biases and vectors of ``factors`` entries.

        Args:
            p, q: float32[n_users, k] and float32[n_movies, k].
            b_u, b_m: float32[n_users] and float32[n_movies].
            fitted: number of factors that must be kept; with room for two more the model is not refitted.
        """
        widened = self.widened_model(p, q, b_u, b_m)
        return self.truncated(widened, factors) if self.has_room(fitted, factors) else self.reduced(widened, factors)

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

    def reduced(self, model: MatrixFactorization, factors: int) -> MatrixFactorization:
        """``model`` truncated, and refitted to the training ratings if that costs more than ``ALLOWED_LOSS`` of RMSE.

        A sweep of ridge regressions updates all movies given the users, then all users given the movies (alternating
        least squares). Sweeps end when the loss is small enough or hardly falls: there may be no vectors of ``factors``
        entries with a smaller loss. The axes are those of ``truncated``.
        """
        best = self.truncated(model, factors)
        allowed, loss = rmse(model, self.sample) + self.allowed_loss, rmse(best, self.sample)
        for _ in range(REFIT_SWEEPS):
            if not loss > allowed:
                break
            by_user, by_movie = self.residuals_by_row(factors)
            p, q = best.user_factors.weight.detach(), best.movie_factors.weight.detach()
            q = _ridge_regressions(by_movie, q, p, self.counts[0], self.workers)
            p = _ridge_regressions(by_user, p, q, self.counts[1], self.workers)
            refitted = self.truncated(self.model(p, q), factors)
            gain = loss - rmse(refitted, self.sample)
            if not gain > LEAST_GAIN * (loss - allowed):
                break
            best, loss = refitted, loss - gain
        return best

    def residuals_by_row(self, factors: int) -> tuple[RatingsByRow, RatingsByRow]:
        """The training ratings less mu and the damped biases, by user and by movie; kept for later epochs."""
        if self.by_row is None:
            users, movies, n = self.train.users, self.train.movies, (self.train.n_users, self.train.n_movies)
            values = self.train.ratings - self.mu - self.user_bias[users] - self.movie_bias[movies]
            self.by_row = (
                RatingsByRow(users, movies, values, n[0], factors),
                RatingsByRow(movies, users, values, n[1], factors),
            )
        return self.by_row

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


def _ridge_regressions(ratings: RatingsByRow, rows: Tensor, others: Tensor, counts: Tensor, workers: Workers) -> Tensor:
    """New vectors of all users given the movies, or of all movies given the users, float32[n, k].

    A row's vector v minimises Σ (y - v·x)² + w·E[((v - v₀)·x)²] over its ratings y of rows with vectors x, where v₀ is
    its vector now, the mean E is over all ratings, and w is ``PRIOR_WEIGHT`` times the mean number of ratings per row.

    Args:
        rows: float32[n, k], v₀.
        others: float32[n_others, k].
        counts: float32[n_others], ratings of each.
    """
    k = rows.shape[1]
    moments = PosteriorMoments(pad(others, (0, 1)))  # with biases of 0
    weighted = (others * counts.unsqueeze(1)).double()
    prior = PRIOR_WEIGHT / len(rows) * (weighted.mT @ others.double())
    # For factors that are 0 in all rows.
    prior += (1e-9 * prior.trace() + 1e-30) * torch.eye(k, dtype=prior.dtype, device=prior.device)

    def work(block: Block) -> Tensor:
        gram, linear, _ = normal_equations(block, moments)
        gram, linear, start = gram[:, :k, :k].double(), linear[:, :k].double(), rows[block.rows].double()
        gradient = linear - (gram @ start.unsqueeze(2)).squeeze(2)
        factor = torch.linalg.cholesky(gram + prior)
        return (start + torch.cholesky_solve(gradient.unsqueeze(2), factor).squeeze(2)).float()

    return torch.cat(workers.map(work, ratings.blocks))


def _evenly_spaced(ratings: RatingTensors, n: int) -> RatingTensors:
    """At most ``n`` of the ratings."""
    every = -(-len(ratings) // n)
    users, movies, values = (x[::every].contiguous() for x in (ratings.users, ratings.movies, ratings.ratings))
    return replace(ratings, users=users, movies=movies, ratings=values)
