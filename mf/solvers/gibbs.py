"""Bayesian matrix factorization by Gibbs sampling (Salakhutdinov & Mnih 2008): the most accurate solver.

    r ~ N(mu + b_u + b_m + p_u·q_m, 1/alpha_u)
    z_u = [p_u, b_u] ~ N(m_U + f_u, Λ_U⁻¹),  z_m = [q_m, b_m] ~ N(m_M + f_m, Λ_M⁻¹)
    m, Λ ~ Normal-Wishart,  alpha_u ~ Gamma(shape, rate)
    for each sweep: draw m_U, Λ_U, f_U; all z_u; alpha, shape, rate; m_M, Λ_M, f_M; all z_m, each given all others
    prediction = mean over the sweeps after the burn-in

f is linear in which movies the user has rated (``mf.solvers.who_rated``). The noise per user (Lakshminarayanan,
Bouchard & Archambeau 2011) has a learned prior: with one noise for all, users whose ratings scatter are overfitted, and
the more the longer the chain runs. At the end the products p·q of the samples are collapsed into one pair of vectors.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mf.model import MatrixFactorization
from mf.solvers.base import EPOCHS, SEED, Initial, RatingTensors, Solver, generator, rmse
from mf.solvers.collapse import collapse
from mf.solvers.gaussian import (
    GaussianConfig,
    MeanOrSample,
    PosteriorMoments,
    Prior,
    RatingsByRow,
    by_user_and_movie,
    update,
)
from mf.solvers.unseen import BiasFallback
from mf.solvers.who_rated import Basis, who_rated
from mf.workers import Workers

SAMPLES_BYTES = 1 << 30  # largest memory of the kept samples; beyond it only every second is kept, or every third
# Eigenvectors of the who-rated-what basis. On MovieLens latest-small 64 are 0.4% worse, and all 610 no better.
BASIS_RANK = 128
PROBES = 1_000_000  # training ratings to measure the collapse's error on, without validation ratings
# Variance of the initial vectors' products, as a share of the ratings'. With a hundredth of it, half a million planted
# ratings need a hundred sweeps more until the vectors have grown; with a hundred times as much, latest-small is 0.4%
# worse.
INIT_SHARE = 0.125
MEAN_WEIGHT = 2.0  # weight of the prior of m, in rows
SHAPES = (1.0, 1e4, 1000)  # grid for the shape of the noise's prior: from, to, number of points (logarithmic)
INIT_SHAPE = 10.0


class GibbsConfig(GaussianConfig):
    """Options of the ``gibbs`` solver."""

    # Twice vb's: an RMSE 0.0015 lower at two million planted ratings (63 per row: rank 20); docs/solvers.md has a
    # table. Rank 32 gains 0.0009 more on latest-small (9 per row), for twice the time.
    RATINGS_PER_FACTOR: ClassVar[int] = 3
    rank: int | None = Field(
        None,
        ge=1,
        le=256,
        description="number of fitted factors, at most factors; default: a third of the mean number of ratings per "
        "user or movie, within 16 to 32",
    )
    # Two million planted ratings converge within 20. Latest-small does not, but 300 with a burn-in of 50 gain nothing.
    epochs: int = Field(120, ge=1, description=EPOCHS)
    burn_in: int = Field(20, ge=0, description="passes before the first sample that enters the mean")
    seed: int = Field(0, ge=0, description=SEED)

    @model_validator(mode="after")
    def _burn_in_fits(self) -> Self:
        if self.burn_in >= self.epochs:
            raise ValueError(f"burn_in: found {self.burn_in}, expected less than epochs ({self.epochs})")
        return self


class SampledPrior:
    """Sampled prior of all users, or of all movies: z ~ N(m + V S G, Λ⁻¹).

    V and S² are the eigenvectors and eigenvalues of the who-rated-what basis, and

        Λ ~ Wishart(I, D),  m ~ N(0, (2 Λ)⁻¹),  rows of G ~ N(0, (strength Λ)⁻¹),  strength ~ Gamma(½, ½).

    Attributes:
        g: float32[r, D].
        strength: float64[]; the larger, the smaller the effect of who-rated-what.
    """

    def __init__(self, basis: Basis, d: int) -> None:
        self.basis = basis
        self.g = basis.values.new_zeros(len(basis.values), d)
        self.strength = basis.values.new_ones((), dtype=torch.float64)

    def sample(self, z: Tensor, rng: torch.Generator) -> Prior:
        """Draws m and Λ, then G, then strength, each given the others and the rows z float32[n, D]."""
        values, vectors = self.basis.values, self.basis.vectors
        mean, precision = self._mean_and_precision(z - self.basis.means(self.g), rng)
        root = torch.linalg.cholesky(precision)

        total = (values + self.strength).float().unsqueeze(1)
        noise = torch.linalg.solve_triangular(root, _normal(self.g.shape, rng).double(), upper=False, left=False)
        projected = vectors.mT @ (z - mean.float())
        self.g = values.sqrt().unsqueeze(1) * projected / total + noise.float() / total.sqrt()

        shape = self.strength.new_tensor((1 + self.g.numel()) / 2)
        self.strength = _gamma(shape, rng) / ((1 + (self.g.double() @ root).square().sum()) / 2)
        return Prior(mean.float() + self.basis.means(self.g), precision.float())

    def _mean_and_precision(self, rest: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws m float64[D] and Λ float64[D, D] given z - V S G float32[n, D] and G.

        Salakhutdinov & Mnih 2008, eq. 14; the rows of G, with precision strength·Λ, are observations of Λ too."""
        rest, g = rest.double(), self.g.double()
        n, d = rest.shape
        mean = rest.mean(0)
        centred = rest - mean
        scatter = centred.mT @ centred + self.strength * (g.mT @ g) + torch.eye(d, device=g.device)
        scatter += MEAN_WEIGHT * n / (MEAN_WEIGHT + n) * torch.outer(mean, mean)
        precision = _wishart(scatter, d + n + len(g), rng)
        root = torch.linalg.cholesky((MEAN_WEIGHT + n) * precision)
        noise = torch.linalg.solve_triangular(root.mT, _normal((d, 1), rng).double(), upper=True).squeeze(1)
        return n / (MEAN_WEIGHT + n) * mean + noise, precision


class UserNoise:
    """Precision of each user's ratings, alpha_u ~ Gamma(shape, rate); log shape has a uniform prior, rate Gamma(1, 1).

    Attributes:
        alpha: float32[n_users].
        shape, rate: float64[].
    """

    def __init__(self, counts: Tensor) -> None:
        self.counts = counts.double()
        low, high, n = SHAPES
        self.shapes = torch.logspace(math.log10(low), math.log10(high), n, dtype=torch.float64, device=counts.device)
        self.alpha = torch.ones(len(counts), device=counts.device)
        self.shape = self.rate = self.counts.new_tensor(INIT_SHAPE)

    def sample(self, errors: Tensor, rng: torch.Generator) -> None:
        """Draws the precisions given each user's sum of squared errors float32[n_users], then shape and rate."""
        alpha = _gamma(self.shape + self.counts / 2, rng) / (self.rate + errors.double() / 2)
        self.alpha = alpha.float()
        # The shape is drawn with the rate integrated out: given each other, both would hardly move.
        n, total, shapes = len(alpha), 1 + alpha.sum(), self.shapes
        log_density = torch.lgamma(n * shapes + 1) - (n * shapes + 1) * total.log() - n * torch.lgamma(shapes)
        log_density += shapes * alpha.log().sum()
        self.shape = shapes[torch.multinomial(log_density.softmax(0), 1, generator=rng)].squeeze(0)
        self.rate = _gamma(n * self.shape + 1, rng) / total


class SampleMean:
    """Running mean over the samples: biases and clipped predictions; and the vectors of some samples.

    Attributes:
        drawn: number of samples.
        vectors: (p float32[n_users, k], q float32[n_movies, k]) of the kept samples.
        totals: sums over all samples of b_u float64[n_users], b_m float64[n_movies] and the predictions for the probes
            float64[N].
    """

    def __init__(self) -> None:
        self.drawn = 0
        self.vectors: list[tuple[Tensor, Tensor]] = []
        self.totals: list[Tensor] = []

    def add(self, sample: Sequence[Tensor], predictions: Tensor, keep: bool) -> None:
        """Adds a sample (p, q, b_u, b_m) and its predictions for the probes; ``keep``: keep its vectors too."""
        p, q, *biases = sample
        values = [*biases, predictions]
        totals = self.totals or [value.new_zeros((), dtype=torch.float64) for value in values]
        self.totals = [total + value for total, value in zip(totals, values, strict=True)]
        self.drawn += 1
        if keep:
            self.vectors.append((p, q))

    def means(self) -> list[Tensor]:
        """Means of b_u, b_m and the predictions, float64."""
        return [total / self.drawn for total in self.totals]


class Gibbs:
    """A training by Gibbs sampling; see ``mf.solvers.base.Training``.

    Args:
        ratings: the training ratings less their mean, divided by ``scale``, by user and by movie.
        bases: the who-rated-what bases of the users and of the movies.
        rank: number of sampled factors.
        scale: standard deviation of the ratings; the priors are for ratings with a variance of 1.
    """

    keeps_best = False
    patience = 0

    def __init__(
        self,
        train: RatingTensors,
        validation: RatingTensors,
        config: GibbsConfig,
        ratings: tuple[RatingsByRow, RatingsByRow],
        bases: tuple[Basis, Basis],
        workers: Workers,
        rank: int,
        scale: float,
    ) -> None:
        self.train, self.validation, self.config = train, validation, config
        self.ratings, self.workers, self.rank, self.scale = ratings, workers, rank, scale
        self.epochs = config.epochs
        self.advice = f"lower --rank (now {rank})"
        self.note = ""
        self.device = train.ratings.device
        self.fallback = BiasFallback(train, validation)
        rng = generator(config.seed, 0, self.device)
        rows = (train.n_users, train.n_movies)
        self.users, self.movies = (PosteriorMoments(_initial_rows(n, rank, rng)) for n in rows)
        # Drawn after the initial rows, so that the chain is the same with and without validation ratings.
        self.probes = validation if len(validation) else _random_subset(train, PROBES, rng)
        self.user_prior, self.movie_prior = (SampledPrior(basis, rank + 1) for basis in bases)
        self.noise = UserNoise(train.counts()[0])
        self.mean = SampleMean()
        self.keep_every = math.ceil((config.epochs - config.burn_in) * 4 * rank * sum(rows) / SAMPLES_BYTES)
        self.finished: MatrixFactorization | None = None

    @torch.no_grad()
    def epoch(self, number: int) -> float:
        rng = generator(self.config.seed, number, self.device)
        by_user, by_movie = self.ratings
        users, movies = self.users, self.movies

        prior, sample_rows = self.user_prior.sample(users.mean, rng), _sample_rows(users.mean.shape, rng)
        errors = update(by_user, users, movies, prior, self.noise.alpha, sample_rows, self.workers)
        train_rmse = math.sqrt(errors.sum(dtype=torch.float64).item() / len(self.train)) * self.scale
        if not math.isfinite(train_rmse):
            return train_rmse  # the loop reports it; sampling would fail
        self.noise.sample(errors, rng)
        prior, sample_rows = self.movie_prior.sample(movies.mean, rng), _sample_rows(movies.mean.shape, rng)
        one = self.noise.alpha.new_ones(())
        update(by_movie, movies, users, prior, one, sample_rows, self.workers, weights=self.noise.alpha)

        self.finished = None
        if number > self.config.burn_in:
            sample = self._sample()
            predictions = self.fallback.widened_model(*sample).predict(self.probes.users, self.probes.movies)
            self.mean.add(sample, predictions, keep=(self.epochs - number) % self.keep_every == 0)
        self.note = self._cost_of_collapse() if number == self.epochs else ""
        return train_rmse

    def validation_rmse(self) -> float:
        """RMSE of the mean of the samples so far; of the current sample during the burn-in, of the model at the end."""
        if not self.mean.drawn:
            return rmse(self.fallback.widened_model(*self._sample()), self.validation, self.workers)
        if self.mean.drawn < self.epochs - self.config.burn_in:
            return self._mean_rmse()
        return rmse(self.model(), self.validation, self.workers)

    def model(self) -> MatrixFactorization:
        if self.finished is None:
            self.finished = self._collapsed() if self.mean.drawn else self._truncated_sample()
        return self.finished

    def state(self) -> dict[str, Any]:
        return {
            "z": [self.users.mean, self.movies.mean],
            "priors": [[prior.g, prior.strength] for prior in (self.user_prior, self.movie_prior)],
            "noise": [self.noise.alpha, self.noise.shape, self.noise.rate],
            "drawn": self.mean.drawn,
            "vectors": [list(pair) for pair in self.mean.vectors],
            "totals": self.mean.totals,
            "note": self.note,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        def on_device(saved: list[Tensor]) -> list[Tensor]:
            return [tensor.to(self.device) for tensor in saved]

        self.users, self.movies = (PosteriorMoments(z) for z in on_device(state["z"]))
        for prior, saved in zip((self.user_prior, self.movie_prior), state["priors"], strict=True):
            prior.g, prior.strength = on_device(saved)
        self.noise.alpha, self.noise.shape, self.noise.rate = on_device(state["noise"])
        self.mean.drawn = state["drawn"]
        self.mean.vectors = [(p, q) for p, q in map(on_device, state["vectors"])]
        self.mean.totals = on_device(state["totals"])
        self.note = state["note"]
        self.finished = None

    def _sample(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """p, q, b_u, b_m of the current sample, in rating units."""
        (p, b_u), (q, b_m) = (torch.split(z, [self.rank, 1], 1) for z in (self.users.mean, self.movies.mean))
        return p * self.scale, q.contiguous(), b_u.squeeze(1) * self.scale, b_m.squeeze(1) * self.scale

    def _truncated_sample(self) -> MatrixFactorization:
        return self.fallback.to_model(*self._sample(), self.config.factors, self.rank)

    def _collapsed(self) -> MatrixFactorization:
        """The mean of the samples' unclipped predictions, approximated by ``factors`` factors; an error is weighted by
        the ratings of the user and of the movie."""
        b_u, b_m = (bias.float() for bias in self.mean.means()[:2])
        rng = generator(self.config.seed, self.epochs + 1, self.device)
        fallback, factors, vectors = self.fallback, self.config.factors, self.mean.vectors
        rest, room = fallback.bias_factors(b_u, b_m), fallback.has_room(self.rank, factors)
        collapsed = fallback.model(*collapse(vectors, rest, fallback.counts, factors + (0 if room else 2), rng))
        return collapsed if room else fallback.reduced(collapsed, factors)

    def _cost_of_collapse(self) -> str:
        probes = "validation ratings" if len(self.validation) else f"{len(self.probes):,} training ratings"
        return (
            f"RMSE on the {probes}: mean of {self.mean.drawn} samples {self._mean_rmse():.4f}, "
            f"collapsed into {self.config.factors} factors {rmse(self.model(), self.probes, self.workers):.4f}"
        )

    def _mean_rmse(self) -> float:
        """RMSE of the mean of the samples' clipped predictions on the probes."""
        error = self.mean.means()[-1] - self.probes.ratings
        return math.sqrt(error.square().mean().item())


def _sample_rows(shape: Sequence[int], rng: torch.Generator) -> MeanOrSample:
    """Sampling for ``mf.solvers.gaussian.update``, of rows of ``shape`` (n, D).

    All random numbers are drawn here, so that the samples do not depend on the blocks."""
    noise = _normal(shape, rng)

    def sample(factor: Tensor, linear: Tensor, rows: slice) -> tuple[Tensor, None]:
        # With precision L Lᵀ and linear term h: mean L⁻ᵀ L⁻¹ h, and L⁻ᵀ ε has the covariance.
        half = torch.linalg.solve_triangular(factor, linear.unsqueeze(2), upper=False) + noise[rows].unsqueeze(2)
        return torch.linalg.solve_triangular(factor.mT, half, upper=True).squeeze(2), None

    return sample


def _initial_rows(n: int, rank: int, rng: torch.Generator) -> Tensor:
    """Random vectors whose products have a variance of INIT_SHARE, and biases of 0, float32[n, rank + 1]."""
    z: Tensor = (INIT_SHARE / rank) ** 0.25 * _normal((n, rank + 1), rng)
    z[:, -1] = 0
    return z


def _random_subset(ratings: RatingTensors, n: int, rng: torch.Generator) -> RatingTensors:
    """``n`` random ratings, or all when there are fewer."""
    some = torch.randperm(len(ratings), generator=rng, device=rng.device)[:n]
    return replace(ratings, users=ratings.users[some], movies=ratings.movies[some], ratings=ratings.ratings[some])


def _normal(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng, device=rng.device)


def _gamma(shape: Tensor, rng: torch.Generator) -> Tensor:
    """A sample of Gamma(shape, 1). ``torch.distributions.Gamma`` would take no generator."""
    drawn: Tensor = torch._standard_gamma(shape, generator=rng)
    return drawn


def _wishart(inverse_scale: Tensor, freedom: int, rng: torch.Generator) -> Tensor:
    """A sample of Wishart(inverse_scale⁻¹, freedom), float64[D, D].

    Bartlett's decomposition (Smith & Hocking 1972)."""
    d = len(inverse_scale)
    halves = (freedom - torch.arange(d, device=rng.device, dtype=torch.float64)) / 2
    lower = _normal((d, d), rng).double().tril(-1) + (2 * _gamma(halves, rng)).sqrt().diag()
    root = torch.linalg.solve_triangular(torch.linalg.cholesky(inverse_scale).mT, lower, upper=True)
    drawn: Tensor = root @ root.mT
    return drawn


def start(
    train: RatingTensors, validation: RatingTensors, config: GibbsConfig, *, initial: Initial | None = None
) -> Gibbs:
    """A chain before its first sweep."""
    rank = config.fitted_rank(train)
    workers = Workers(train.ratings.device)
    scale = train.ratings.double().std(correction=0).item() or 1.0
    by_user, by_movie = by_user_and_movie(replace(train, ratings=train.ratings / scale), rank, workers)
    rng = generator(config.seed, 0, train.ratings.device)
    user_basis = who_rated(by_user, by_movie, BASIS_RANK, workers, rng)
    movie_basis = who_rated(by_movie, by_user, BASIS_RANK, workers, rng)
    return Gibbs(train, validation, config, (by_user, by_movie), (user_basis, movie_basis), workers, rank, scale)


SOLVER = Solver("gibbs", "Gibbs sampling, the most accurate", GibbsConfig, warm=False, start=start)
