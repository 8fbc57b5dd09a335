"""Variational Bayes (Lim & Teh 2007): learns its own regularisation and noise.

r ~ N(mu + b_u + b_m + p_u·q_m, σ²),  z_u = [p_u, b_u] ~ N(m_U, Λ_U⁻¹),  z_m = [q_m, b_m] ~ N(m_M, Λ_M⁻¹)
maximise the bound E_q[log p(r, z)] - E_q[log q(z)] over q, a product of one Gaussian per row, and over m, Λ, σ²
for each sweep: all q(z_m), then σ², m_M, Λ_M; all q(z_u), then σ², m_U, Λ_U
"""

from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mf.model import MatrixFactorization
from mf.solvers.base import EPOCHS, SEED, Initial, RatingTensors, Solver, generator, rmse
from mf.solvers.gaussian import (
    GaussianConfig,
    PosteriorMoments,
    Prior,
    RatingsByRow,
    by_user_and_movie,
    update,
)
from mf.solvers.unseen import BiasFallback
from mf.workers import Workers

# Initial values. With user vectors this long, different starts end in different optima, as they should for an average:
# at 0.1 the mean of four is 0.6% worse on MovieLens latest-small.
INIT_STD, INIT_VARIANCE, PRIOR_VARIANCE = 1.0, 0.01, 0.2
# Converged when the noise's standard deviation changes by a smaller share in one sweep.
TOLERANCE = 5e-4
# Largest number of averaged fits, and of ratings that all fits together read in a sweep.
FITS, FITTED_RATINGS = 4, 20_000_000


class VBConfig(GaussianConfig):
    """Options of the ``vb`` solver."""

    fits: int | None = Field(
        None,
        ge=1,
        le=16,
        description="number of fits from different random starts, whose predictions are averaged; default: factors / "
        "rank, at most 4, and 1 above 10 million ratings",
    )
    # More sweeps overfit few ratings (MovieLens latest-small: 0.3% worse after 20); 23.6 million converge within 14, of
    # which the last two gain 0.0004.
    epochs: int = Field(12, ge=1, description=EPOCHS)
    seed: int = Field(0, ge=0, description=SEED)


class MeanFieldPosterior:
    """Variational posterior from one random start (Lim & Teh 2007, there without biases).

    q is a product of Gaussians over [factors, bias], one per row, each with its full covariance. Prior mean and
    precision of users and of movies and the noise maximise the bound given the Gaussians (empirical Bayes).

    The priors have full covariances as well. So the bound does not change when the factor space is rotated, scaled or
    shifted, and steps between sweeps that do so to converge faster would gain nothing.

    Attributes:
        users, movies: moments of the rows.
        user_prior, movie_prior: the learned priors.
        noise: float32[], variance of a rating.
    """

    def __init__(self, train: RatingTensors, rank: int, rng: torch.Generator) -> None:
        d, device = rank + 1, train.ratings.device
        start = INIT_STD * torch.randn(train.n_users, d, generator=rng, device=device)
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
        self.noise = ((errors.sum(dtype=torch.float64) + 1) / (ratings.ratings + 1)).float()
        return empirical_prior(own)

    def state(self) -> dict[str, Any]:
        """All that the next sweep depends on: it starts by overwriting the movies' second moments."""
        return {
            "users": [self.users.mean, self.users.table],
            "movies": self.movies.mean,
            "user_prior": [self.user_prior.mean, self.user_prior.precision],
            "movie_prior": [self.movie_prior.mean, self.movie_prior.precision],
            "noise": self.noise,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        for own, saved in zip(
            (self.users.mean, self.users.table, self.movies.mean), (*state["users"], state["movies"]), strict=True
        ):
            own.copy_(saved)
        device = self.noise.device
        self.user_prior = Prior(*(x.to(device) for x in state["user_prior"]))
        self.movie_prior = Prior(*(x.to(device) for x in state["movie_prior"]))
        self.noise = state["noise"].to(device)


def mean_and_covariance(factor: Tensor, linear: Tensor, _: slice) -> tuple[Tensor, Tensor]:
    """Mean and covariance of each row's Gaussian, for ``mf.solvers.gaussian.update``."""
    covariance = torch.cholesky_inverse(factor)
    # On a CPU a row vector on the left is several times as fast as a column on the right, or two triangular solves.
    return torch.bmm(linear.unsqueeze(1), covariance).squeeze(1), covariance


def empirical_prior(moments: PosteriorMoments) -> Prior:
    """The prior that maximises the bound: mean and covariance of the rows, their own uncertainty included. One more row
    with a variance of 0.1 around the mean keeps it proper."""
    n, d = moments.mean.shape
    mean = moments.mean.mean(0, dtype=torch.float64)
    scatter = moments.total() - n * torch.outer(mean, mean)
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

    def __init__(self, train: RatingTensors, validation: RatingTensors, config: VBConfig) -> None:
        self.validation, self.config = validation, config
        self.rank = rank = config.fitted_rank(train)
        fits = config.fits or derived_fits(len(train), rank, config.factors)
        device = train.ratings.device
        self.workers = Workers(device)
        self.fallback = BiasFallback(train, validation)
        # The initial values are for ratings with a variance of 1.
        self.scale = train.ratings.double().std(correction=0).item() or 1.0
        self.by_user, self.by_movie = by_user_and_movie(
            replace(train, ratings=train.ratings / self.scale), rank, self.workers
        )
        rng = generator(config.seed, 0, device)
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
        return float((self.model()(sample.users, sample.movies) - sample.ratings).double().square().mean().sqrt())

    def noise(self) -> float:
        """Standard deviation of a rating, the mean over the fits."""
        return float(torch.stack([fit.noise.sqrt() for fit in self.fits]).mean()) * self.scale

    def validation_rmse(self) -> float:
        return rmse(self.model(), self.validation, self.workers)

    @torch.no_grad()
    def mean_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """p, q, b_u, b_m, in rating units, whose predictions are the mean of the fits': vectors are concatenated."""
        both = [[fit.users.mean for fit in self.fits], [fit.movies.mean for fit in self.fits]]
        scale = self.scale / len(self.fits)
        p, q = (scale**0.5 * torch.cat([z[:, :-1] for z in rows], 1) for rows in both)
        b_u, b_m = (scale * torch.stack([z[:, -1] for z in rows]).sum(0) for rows in both)
        return p, q, b_u, b_m

    def model(self) -> MatrixFactorization:
        if self.finished is None:
            self.finished = self.fallback.to_model(*self.mean_parameters(), self.config.factors, self.rank)
        return self.finished

    def state(self) -> dict[str, Any]:
        return {"fits": [fit.state() for fit in self.fits], "epochs": self.epochs}

    def load_state(self, state: dict[str, Any]) -> None:
        for fit, saved in zip(self.fits, state["fits"], strict=True):
            fit.load_state(saved)
        self.epochs = state["epochs"]
        self.finished = None


def start(train: RatingTensors, validation: RatingTensors, config: VBConfig, *, initial: Initial | None = None) -> VB:
    """The fits before their first sweep."""
    return VB(train, validation, config)


SOLVER = Solver("vb", "variational Bayes, nothing to tune", VBConfig, warm=False, start=start)
