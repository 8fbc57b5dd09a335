"""Variational Bayes (Lim & Teh 2007): learns its own regularisation and noise.

r ~ N(mu + b_u + b_m + p_u·q_m, σ²),  z_u = [p_u, b_u] ~ N(m_U, Λ_U⁻¹),  z_m = [q_m, b_m] ~ N(m_M, Λ_M⁻¹)
maximise the bound E_q[log p(r, z)] - E_q[log q(z)] over q, a product of one Gaussian per row, and over m, Λ, σ²
for each sweep: all q(z_m), then σ², m_M, Λ_M; all q(z_u), then σ², m_U, Λ_U
"""

from typing import Any

import torch
from torch import Tensor

from mf.model import MatrixFactorization
from mf.solvers.base import Initial, RatingTensors, Share, generator, rmse
from mf.solvers.config import VBConfig
from mf.solvers.gaussian import (
    PosteriorMoments,
    Prior,
    RatingsByRow,
    by_user_and_movie,
    update,
)
from mf.solvers.rows import Rows
from mf.solvers.unseen import BiasFallback
from mf.workers import Workers

# Initial values. With user vectors this long, different starts end in different optima, as they should for an average:
# at 0.1 the mean of four is 0.6% worse on MovieLens latest-small.
INIT_STD, INIT_VARIANCE, PRIOR_VARIANCE = 1.0, 0.01, 0.2
# Converged when the noise's standard deviation changes by a smaller share in one sweep.
TOLERANCE = 5e-4
# Largest number of averaged fits, and of ratings that all fits together read in a sweep.
FITS, FITTED_RATINGS = 4, 20_000_000


class MeanFieldPosterior:
    """Variational posterior from one random start (Lim & Teh 2007, there without biases).

    q is a product of Gaussians over [factors, bias], one per row, each with its full covariance. Prior mean and
    precision of users and of movies and the noise maximise the bound given the Gaussians (empirical Bayes).

    The priors have full covariances as well. So the bound does not change when the factor space is rotated, scaled or
    shifted, and steps between sweeps that do so to converge faster would gain nothing.

    Attributes:
        users, movies: moments of this rank's users and of all movies.
        user_prior, movie_prior: the learned priors.
        noise: float32[], variance of a rating.
    """

    def __init__(self, train: Share, rank: int, rng: torch.Generator) -> None:
        self.n_ratings = len(train)
        d, device = rank + 1, train.device
        start = train.users.own(INIT_STD * torch.randn(train.n_users, d, generator=rng, device=device))
        start[:, -1] = 0.0
        eye = torch.eye(d, device=device)
        self.users = PosteriorMoments(start, INIT_VARIANCE * eye)
        self.movies = PosteriorMoments(start.new_zeros(train.n_movies, d))
        self.user_prior = self.movie_prior = Prior(start.new_zeros(d), eye / PRIOR_VARIANCE)
        self.noise = start.new_ones(())

    def sweep(self, by_user: RatingsByRow, by_movie: RatingsByRow, workers: Workers) -> None:
        """Updates the movies, then the users, each with their prior and the noise."""
        self.movie_prior = self._update(by_movie, self.movies, self.users, self.movie_prior, workers)
        self.user_prior = self._update(by_user, self.users, self.movies, self.user_prior, workers)

    def _update(
        self, ratings: RatingsByRow, own: PosteriorMoments, other: PosteriorMoments, prior: Prior, workers: Workers
    ) -> Prior:
        errors = update(ratings, own, other, prior, 1 / self.noise, mean_and_covariance, workers)
        # One more rating with an error of 1 keeps the noise above 0 when the ratings can be fitted exactly.
        squares = ratings.side.sum_of_rows(errors.sum(dtype=torch.float64))
        self.noise = ((squares + 1) / (self.n_ratings + 1)).float()
        return empirical_prior(own, ratings.side)

    def state(self, users: Rows) -> dict[str, Any]:
        """All that the next sweep depends on: it starts by overwriting the movies' second moments."""
        return {
            "users": [users.whole(self.users.mean), users.whole(self.users.table)],
            "movies": self.movies.mean,
            "user_prior": [self.user_prior.mean, self.user_prior.precision],
            "movie_prior": [self.movie_prior.mean, self.movie_prior.precision],
            "noise": self.noise,
        }

    def load_state(self, state: dict[str, Any], users: Rows) -> None:
        for own, saved in zip((self.users.mean, self.users.table), state["users"], strict=True):
            own.copy_(users.own(saved))
        self.movies.mean.copy_(state["movies"])
        device = self.noise.device
        self.user_prior = Prior(*(x.to(device) for x in state["user_prior"]))
        self.movie_prior = Prior(*(x.to(device) for x in state["movie_prior"]))
        self.noise = state["noise"].to(device)


def mean_and_covariance(factor: Tensor, linear: Tensor, _: slice) -> tuple[Tensor, Tensor]:
    """Mean and covariance of each row's Gaussian, for ``mf.solvers.gaussian.update``."""
    covariance = torch.cholesky_inverse(factor)
    # On a CPU a row vector on the left is several times as fast as a column on the right, or two triangular solves.
    return torch.bmm(linear.unsqueeze(1), covariance).squeeze(1), covariance


def empirical_prior(moments: PosteriorMoments, side: Rows) -> Prior:
    """The prior that maximises the bound: mean and covariance of the rows, their own uncertainty included. One more row
    with a variance of 0.1 around the mean keeps it proper."""
    n, d = side.n, moments.mean.shape[1]
    mean = side.sum_of_rows(moments.mean.sum(0, dtype=torch.float64)) / n
    scatter = side.sum_of_rows(moments.total()) - n * torch.outer(mean, mean)
    covariance = (scatter + 0.1 * torch.eye(d, device=mean.device)) / (n + 1)
    return Prior(mean.float(), torch.linalg.inv(covariance).float())


def derived_fits(ratings: int, rank: int, factors: int) -> int:
    """Default number of averaged fits: as many as the vectors hold, but few for many ratings, where a fit is slow and
    fits differ little."""
    return max(1, min(FITS, factors // rank, FITTED_RATINGS // ratings))


class VB:
    """A training by variational Bayes: fits from different starts, averaged; see ``mf.solvers.base.Training``."""

    keeps_best = False
    patience = 0

    def __init__(self, train: Share, validation: RatingTensors, config: VBConfig) -> None:
        self.train, self.validation, self.config = train, validation, config
        self.rank = rank = config.fitted_rank(len(train), train.n_users + train.n_movies)
        fits = config.fits or derived_fits(len(train), rank, config.factors)
        self.workers = Workers(train.device)
        self.fallback = BiasFallback(train, validation)
        # The initial values are for ratings with a variance of 1.
        self.scale = train.std or 1.0
        self.by_user, self.by_movie = by_user_and_movie(train, train.standardised(), rank, self.workers)
        rng = generator(config.seed, 0, train.device)
        self.fits = [MeanFieldPosterior(train, rank, rng) for _ in range(fits)]
        self.epochs = config.epochs
        self.advice = f"lower --rank (now {rank})"
        self.note = ""
        self.finished: MatrixFactorization | None = None

    def epoch(self, number: int) -> float:
        before = self.noise()
        for fit in self.fits:
            fit.sweep(self.by_user, self.by_movie, self.workers)
        after = self.noise()
        self.finished = None
        self.note = ""
        if number == 1:
            self.note = f"{len(self.fits)} fit{'s' if self.fits[1:] else ''} of {self.rank} factors"
        elif abs(after - before) < TOLERANCE * before:
            self.epochs = number
            self.note = f"converged: the noise, {after:.4f}, changed by less than {TOLERANCE:.2%}"
        sample = self.fallback.sample
        squares = (self.model()(sample.users, sample.movies) - sample.ratings).double().square()
        both = self.train.ranks.sum(torch.stack([squares.sum(), squares.new_tensor(len(squares))]))
        return float((both[0] / both[1]).sqrt())

    def noise(self) -> float:
        """Standard deviation of a rating, the mean over the fits."""
        return float(torch.stack([fit.noise.sqrt() for fit in self.fits]).mean()) * self.scale

    def validation_rmse(self) -> float:
        return rmse(self.model(), self.validation, self.workers, self.train.ranks)

    @torch.no_grad()
    def mean_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """p, q, b_u, b_m, in rating units, whose predictions are the mean of the fits': vectors are concatenated."""
        both = [[fit.users.mean for fit in self.fits], [fit.movies.mean for fit in self.fits]]
        scale = self.scale / len(self.fits)
        p, q = (scale**0.5 * torch.cat([z[:, :-1] for z in rows], 1) for rows in both)
        b_u, b_m = (scale * torch.stack([z[:, -1] for z in rows]).sum(0) for rows in both)
        return p, q, b_u, b_m

    def keep(self) -> None:
        """Nothing: the last sweep is the model."""

    def model(self) -> MatrixFactorization:
        if self.finished is None:
            self.finished = self.fallback.to_model(*self.mean_parameters(), self.config.factors, self.rank)
        return self.finished

    def state(self) -> dict[str, Any]:
        return {"fits": [fit.state(self.train.users) for fit in self.fits], "epochs": self.epochs}

    def load_state(self, state: dict[str, Any]) -> None:
        for fit, saved in zip(self.fits, state["fits"], strict=True):
            fit.load_state(saved, self.train.users)
        self.epochs = state["epochs"]
        self.finished = None


def start(train: Share, validation: RatingTensors, config: VBConfig, *, initial: Initial | None = None) -> VB:
    """The fits before their first sweep."""
    return VB(train, validation, config)
