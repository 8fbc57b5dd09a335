"""Variational Bayes: nothing to tune."""

from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mf.model import MatrixFactorization
from mf.solvers.base import Interactions, generator, rmse
from mf.solvers.gaussian import GaussianConfig, Moments, Prior, Side, both_sides, inner_rank, update
from mf.solvers.unseen import BiasFallback
from mf.solvers.workers import Workers

# Where a fit starts. The users' vectors are so long that fits from different starts end in different places, as those
# that are averaged should: at 0.1 the mean of four is 0.6% worse on MovieLens latest-small.
INIT_STD, INIT_VARIANCE, PRIOR_VARIANCE = 1.0, 0.01, 0.2
# A fit has converged when the noise's standard deviation, its own measure of how well it fits, moves by less a sweep.
TOLERANCE = 5e-4
# Fits that are averaged, at most, and ratings that all fits go over in a sweep, at most.
FITS, FITTED_RATINGS = 4, 20_000_000
# Training ratings, evenly spaced, on which the training RMSE is taken, at most: known to a thousandth or two.
TRAIN_SAMPLE = 1 << 18


class VBConfig(GaussianConfig):
    """Options of the ``vb`` solver; what has no value is derived from the ratings."""

    fits: int | None = Field(
        None,
        ge=1,
        le=16,
        description="fits from different starts whose predictions are averaged; none: as many as the vectors hold, at "
        "most 4, and one when there are more than 10 million ratings",
    )
    # Few ratings are fitted too closely by more (MovieLens latest-small: 0.3% worse by 20); 23.6 million have converged
    # by 14, and gain 0.0004 from the last two.
    epochs: int = Field(12, ge=1, description="passes over the training ratings, at most; it stops when converged")
    seed: int = Field(0, ge=0, description="of the initialisation")


class Fit:
    """One mean-field fit: q(p, q) is a product of Gaussians N(mean, covariance) over [factors, bias], one a row, each
    with its full covariance (Lim & Teh 2007, there without biases). Prior mean and precision of both sides and the
    noise are those that maximise the bound, given the Gaussians (empirical Bayes).

    The priors are full as well, so that the bound does not change when the space of the factors is turned, stretched or
    shifted: steps that do so between sweeps, to converge faster, have nothing to gain here.

    Attributes:
        users, movies: moments of the rows.
        user_prior, movie_prior: what is learned of all rows of a side.
        noise: float32[], the variance of a rating.
    """

    def __init__(self, train: Interactions, rank: int, rng: torch.Generator) -> None:
        d, device = rank + 1, train.ratings.device
        start = INIT_STD * torch.randn(train.n_users, d, generator=rng, device=device)
        start[:, -1] = 0.0
        eye = torch.eye(d, device=device)
        self.users = Moments(start, INIT_VARIANCE * eye)
        self.movies = Moments(start.new_zeros(train.n_movies, d))
        self.user_prior = self.movie_prior = Prior(start.new_zeros(d), eye / PRIOR_VARIANCE)
        self.noise = start.new_ones(())

    def sweep(self, by_user: Side, by_movie: Side, workers: Workers) -> None:
        """Updates the movies, the users, and what is learned of them."""
        self.movie_prior = self._update(by_movie, self.movies, self.users, self.movie_prior, workers)
        self.user_prior = self._update(by_user, self.users, self.movies, self.user_prior, workers)

    def _update(self, side: Side, own: Moments, other: Moments, prior: Prior, workers: Workers) -> Prior:
        squared_error = update(side, own, other, prior, 1 / self.noise, expectation, workers).sum(dtype=torch.float64)
        # One rating more, with an error of 1: ratings that can be told exactly do not make the noise 0.
        self.noise = ((squared_error + 1) / (side.ratings + 1)).float()
        return empirical_prior(own)

    def state(self) -> dict[str, Any]:
        """What the next sweep depends on: it begins with the movies, and their second moments are the first to go."""
        return {
            "users": [self.users.mean, self.users.table],
            "movies": self.movies.mean,
            "user_prior": [self.user_prior.mean, self.user_prior.precision],
            "movie_prior": [self.movie_prior.mean, self.movie_prior.precision],
            "noise": self.noise,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        for own, kept in zip(
            (self.users.mean, self.users.table, self.movies.mean), (*state["users"], state["movies"]), strict=True
        ):
            own.copy_(kept)
        device = self.noise.device
        self.user_prior = Prior(*(x.to(device) for x in state["user_prior"]))
        self.movie_prior = Prior(*(x.to(device) for x in state["movie_prior"]))
        self.noise = state["noise"].to(device)


def expectation(factor: Tensor, linear: Tensor, _: slice) -> tuple[Tensor, Tensor]:
    """Mean and covariance of Gaussians: a rule of ``mf.solvers.gaussian.update``."""
    covariance = torch.cholesky_inverse(factor)
    # A row vector on the left: several times as fast on a CPU as a column on the right, or two triangular solves.
    return torch.bmm(linear.unsqueeze(1), covariance).squeeze(1), covariance


def empirical_prior(side: Moments) -> Prior:
    """The prior that maximises the bound: mean and covariance of the rows, as uncertain as they are. A row more, with a
    variance of 0.1 around the mean, keeps it proper."""
    n, d = side.mean.shape
    mean = side.mean.mean(0, dtype=torch.float64)
    scatter = side.total() - n * torch.outer(mean, mean)
    covariance = (scatter + 0.1 * torch.eye(d, device=mean.device)) / (n + 1)
    return Prior(mean.float(), torch.linalg.inv(covariance).float())


def fits_to_average(ratings: int, rank: int, factors: int) -> int:
    """How many fits are averaged where no number is asked for: as many as the vectors hold, but few of many ratings,
    where a fit is slow and fits differ little."""
    return max(1, min(FITS, factors // rank, FITTED_RATINGS // ratings))


class VB:
    """Fits that go on side by side; what they predict is averaged (see ``mf.solvers.base.Fitting``)."""

    keeps_best = False
    patience = 0

    def __init__(self, train: Interactions, validation: Interactions, config: VBConfig) -> None:
        self.validation, self.config = validation, config
        self.rank = rank = config.rank or inner_rank(train, config.factors)
        fits = config.fits or fits_to_average(len(train), rank, config.factors)
        device = train.ratings.device
        self.workers = Workers(device)
        self.fallback = BiasFallback(train, validation)
        # The start and the first priors are those of ratings with a variance of 1.
        self.scale = train.ratings.double().std(correction=0).item() or 1.0
        self.by_user, self.by_movie = both_sides(replace(train, ratings=train.ratings / self.scale), rank, self.workers)
        rng = generator(config.seed, 0, device)
        self.fits = [Fit(train, rank, rng) for _ in range(fits)]
        every = -(-len(train) // TRAIN_SAMPLE)
        self.sample = [x[::every].contiguous() for x in (train.users, train.movies, train.ratings)]
        self.epochs = config.epochs
        self.advice = f"lower --rank (it is {rank})"
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
            self.note = f"converged: the noise, {after:.4f}, moved by less than {TOLERANCE:.2%}"
        users, movies, ratings = self.sample
        return float((self.model()(users, movies) - ratings).double().square().mean().sqrt())

    def noise(self) -> float:
        """Standard deviation of a rating, the mean of the fits'."""
        return float(torch.stack([fit.noise.sqrt() for fit in self.fits]).mean()) * self.scale

    def validation_rmse(self) -> float:
        return rmse(self.model(), self.validation, self.workers)

    @torch.no_grad()
    def join(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """p, q, b_u and b_m, in rating units, that predict the mean of the fits: their vectors side by side."""
        both = [[fit.users.mean for fit in self.fits], [fit.movies.mean for fit in self.fits]]
        scale = self.scale / len(self.fits)
        p, q = (scale**0.5 * torch.cat([z[:, :-1] for z in side], 1) for side in both)
        b_u, b_m = (scale * torch.stack([z[:, -1] for z in side]).sum(0) for side in both)
        return p, q, b_u, b_m

    def model(self) -> MatrixFactorization:
        if self.finished is None:
            self.finished = self.fallback.finished(*self.join(), self.config.factors, self.rank)
        return self.finished

    def state(self) -> dict[str, Any]:
        return {"fits": [fit.state() for fit in self.fits], "epochs": self.epochs}

    def load_state(self, state: dict[str, Any]) -> None:
        for fit, kept in zip(self.fits, state["fits"], strict=True):
            fit.load_state(kept)
        self.epochs = state["epochs"]
        self.finished = None


def start(train: Interactions, validation: Interactions, config: VBConfig) -> VB:
    """Fits that have not begun; see ``mf.solvers.fit``."""
    return VB(train, validation, config)
