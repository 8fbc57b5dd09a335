"""Bayesian matrix factorization by Gibbs sampling (Salakhutdinov & Mnih 2008): the most accurate solver.

A rating is N(mu + b_u + b_m + p_u·q_m, 1/alpha_u). A user's z = [p, b] is N(m + f_u, Λ⁻¹), a movie's likewise, with a
Normal-Wishart prior on m and Λ of each side, and f what who-rated-what tells (``mf.solvers.who_rated``). Every user has
a noise of their own (Lakshminarayanan, Bouchard & Archambeau 2011), whose prior is learned: with one noise for all,
those whose ratings scatter are fitted too closely, and the longer the chain runs the worse it gets. A sweep draws each
of these given all others. What is wanted is the mean of the predictions over the sweeps; the products p·q are collapsed
into one pair of vectors at the end.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mf.model import MatrixFactorization
from mf.solvers.base import Interactions, generator, rmse
from mf.solvers.collapse import collapse
from mf.solvers.gaussian import GaussianConfig, Moments, Prior, Rule, Side, both_sides, inner_rank, update
from mf.solvers.unseen import BiasFallback
from mf.solvers.who_rated import Basis, who_rated
from mf.solvers.workers import Workers

SAMPLES_BYTES = 1 << 30  # of the samples that are kept: of more, every second is, or every third
# Eigenvectors of who-rated-what. On MovieLens latest-small 64 are 0.4% worse, and all 610 as good.
BASIS_RANK = 128
PROBES = 1_000_000  # training ratings on which the collapse is measured where there are no validation ratings
# Share of the ratings' variance that the first vectors' products have. With a hundredth of it half a million planted
# ratings need a hundred sweeps more until the vectors have grown; a hundred times as much costs latest-small 0.4%.
INIT_SHARE = 0.125
MEAN_WEIGHT = 2.0  # what the prior of a side's mean counts, in rows
SHAPES = (1.0, 1e4, 1000)  # of the noise's prior: from, to, and how many on a logarithmic grid
INIT_SHAPE = 10.0


class GibbsConfig(GaussianConfig):
    """Options of the ``gibbs`` solver."""

    # Two million planted ratings have converged by 20. Latest-small has not, but 300 with a burn-in of 50 gain nothing.
    epochs: int = Field(120, ge=1, description="passes over the training ratings")
    burn_in: int = Field(20, ge=0, description="passes before the first sample that counts")
    seed: int = Field(0, ge=0, description="of the initialisation and of the samples")

    @model_validator(mode="after")
    def _burn_in_fits(self) -> Self:
        if self.burn_in >= self.epochs:
            raise ValueError(f"burn_in: found {self.burn_in}, expected less than epochs, which is {self.epochs}")
        return self


class SampledPrior:
    """z ~ N(m + V S G, Λ⁻¹) for all rows of a side, V and S² the eigenvectors and -values of who-rated-what, with

        Λ ~ Wishart(I, D),  m ~ N(0, (2 Λ)⁻¹),  rows of G ~ N(0, (strength Λ)⁻¹),  strength ~ Gamma(½, ½).

    Attributes:
        g: float32[r, D].
        strength: float64[], the larger the less who-rated-what says.
    """

    def __init__(self, basis: Basis, d: int) -> None:
        self.basis = basis
        self.g = basis.values.new_zeros(len(basis.values), d)
        self.strength = basis.values.new_ones((), dtype=torch.float64)

    def sample(self, z: Tensor, rng: torch.Generator) -> Prior:
        """Draws m and Λ, then G, then the strength, each given the others and the rows z float32[n, D]."""
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
        """m float64[D] and Λ float64[D, D] given z - V S G float32[n, D] and G (Salakhutdinov & Mnih 2008, eq. 14; the
        rows of G are as many more that tell of Λ)."""
        rest, g = rest.double(), self.g.double()
        n, d = rest.shape
        mean = rest.mean(0)
        apart = rest - mean
        scatter = apart.mT @ apart + self.strength * (g.mT @ g) + torch.eye(d, device=g.device)
        scatter += MEAN_WEIGHT * n / (MEAN_WEIGHT + n) * torch.outer(mean, mean)
        precision = _wishart(scatter, d + n + len(g), rng)
        root = torch.linalg.cholesky((MEAN_WEIGHT + n) * precision)
        noise = torch.linalg.solve_triangular(root.mT, _normal((d, 1), rng).double(), upper=True).squeeze(1)
        return n / (MEAN_WEIGHT + n) * mean + noise, precision


class UserNoise:
    """The precisions of the users' ratings, alpha_u ~ Gamma(shape, rate), where log shape has a uniform prior
    and the rate Gamma(1, 1).

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
        """Draws the precisions given the users' sums of squared errors float32[n_users], then shape and rate."""
        alpha = _gamma(self.shape + self.counts / 2, rng) / (self.rate + errors.double() / 2)
        self.alpha = alpha.float()
        # The shape with the rate integrated out: drawn given one another the two would hardly move.
        n, total, shapes = len(alpha), 1 + alpha.sum(), self.shapes
        log_density = torch.lgamma(n * shapes + 1) - (n * shapes + 1) * total.log() - n * torch.lgamma(shapes)
        log_density += shapes * alpha.log().sum()
        self.shape = shapes[torch.multinomial(log_density.softmax(0), 1, generator=rng)].squeeze(0)
        self.rate = _gamma(n * self.shape + 1, rng) / total


class Posterior:
    """The mean over the samples so far: of the model's parts, and of its clipped predictions.

    Attributes:
        drawn: how many samples.
        products: (p float32[n_users, k], q float32[n_movies, k]) of the samples that were kept.
        totals: sums over all samples of b_u float64[n_users], b_m float64[n_movies], and of the predictions for the
            probes, float64[N].
    """

    def __init__(self) -> None:
        self.drawn = 0
        self.products: list[tuple[Tensor, Tensor]] = []
        self.totals: list[Tensor] = []

    def add(self, sample: Sequence[Tensor], predictions: Tensor, keep: bool) -> None:
        """Counts p, q, b_u and b_m of a sample and its predictions for the probes; with ``keep`` its products too."""
        p, q, *biases = sample
        parts = [*biases, predictions]
        totals = self.totals or [part.new_zeros((), dtype=torch.float64) for part in parts]
        self.totals = [total + part for total, part in zip(totals, parts, strict=True)]
        self.drawn += 1
        if keep:
            self.products.append((p, q))

    def means(self) -> list[Tensor]:
        """b_u, b_m and the predictions, float64."""
        return [total / self.drawn for total in self.totals]


class Gibbs:
    """The sampler; see ``mf.solvers.base.Fitting``.

    Args:
        sides: the training ratings by user and by movie, less their mean, divided by ``scale``.
        bases: who-rated-what of the users and of the movies.
        rank: factors that are sampled.
        scale: the ratings' standard deviation: the priors are those of ratings with a variance of 1.
    """

    keeps_best = False
    patience = 0

    def __init__(
        self,
        train: Interactions,
        validation: Interactions,
        config: GibbsConfig,
        sides: tuple[Side, Side],
        bases: tuple[Basis, Basis],
        workers: Workers,
        rank: int,
        scale: float,
    ) -> None:
        self.train, self.validation, self.config = train, validation, config
        self.sides, self.workers, self.rank, self.scale = sides, workers, rank, scale
        self.epochs = config.epochs
        self.advice = f"lower --rank (it is {rank})"
        self.note = ""
        self.device = train.ratings.device
        self.fallback = BiasFallback(train, validation)
        rng = generator(config.seed, 0, self.device)
        rows = (train.n_users, train.n_movies)
        self.users, self.movies = (Moments(_start_of_side(n, rank, rng)) for n in rows)
        # After the start, so that the chain is the same with validation ratings and without.
        self.probes = validation if len(validation) else _some(train, PROBES, rng)
        self.user_prior, self.movie_prior = (SampledPrior(basis, rank + 1) for basis in bases)
        self.noise = UserNoise(train.counts()[0])
        self.posterior = Posterior()
        self.keep_every = math.ceil((config.epochs - config.burn_in) * 4 * rank * sum(rows) / SAMPLES_BYTES)
        self.finished: MatrixFactorization | None = None

    @torch.no_grad()
    def epoch(self, number: int) -> float:
        rng = generator(self.config.seed, number, self.device)
        by_user, by_movie = self.sides
        users, movies = self.users, self.movies

        prior, draw = self.user_prior.sample(users.mean, rng), _draw(users.mean.shape, rng)
        errors = update(by_user, users, movies, prior, self.noise.alpha, draw, self.workers)
        train_rmse = math.sqrt(errors.sum(dtype=torch.float64).item() / len(self.train)) * self.scale
        if not math.isfinite(train_rmse):
            return train_rmse  # the loop says so; nothing can be drawn from it
        self.noise.sample(errors, rng)
        prior, draw = self.movie_prior.sample(movies.mean, rng), _draw(movies.mean.shape, rng)
        one = self.noise.alpha.new_ones(())
        update(by_movie, movies, users, prior, one, draw, self.workers, weights=self.noise.alpha)

        self.finished = None
        if number > self.config.burn_in:
            sample = self._sample()
            predictions = self.fallback.exact(*sample).predict(self.probes.users, self.probes.movies)
            self.posterior.add(sample, predictions, keep=(self.epochs - number) % self.keep_every == 0)
        self.note = self._cost_of_collapse() if number == self.epochs else ""
        return train_rmse

    def validation_rmse(self) -> float:
        """Of the mean over the samples so far, of the sample where none counts yet, and in the end of the model."""
        if not self.posterior.drawn:
            return rmse(self.fallback.exact(*self._sample()), self.validation, self.workers)
        if self.posterior.drawn < self.epochs - self.config.burn_in:
            return self._mean_rmse()
        return rmse(self.model(), self.validation, self.workers)

    def model(self) -> MatrixFactorization:
        if self.finished is None:
            self.finished = self._collapsed() if self.posterior.drawn else self._cut_sample()
        return self.finished

    def state(self) -> dict[str, Any]:
        return {
            "z": [self.users.mean, self.movies.mean],
            "priors": [[prior.g, prior.strength] for prior in (self.user_prior, self.movie_prior)],
            "noise": [self.noise.alpha, self.noise.shape, self.noise.rate],
            "drawn": self.posterior.drawn,
            "products": [list(product) for product in self.posterior.products],
            "totals": self.posterior.totals,
            "note": self.note,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        def here(kept: list[Tensor]) -> list[Tensor]:
            return [tensor.to(self.device) for tensor in kept]

        self.users, self.movies = (Moments(z) for z in here(state["z"]))
        for prior, kept in zip((self.user_prior, self.movie_prior), state["priors"], strict=True):
            prior.g, prior.strength = here(kept)
        self.noise.alpha, self.noise.shape, self.noise.rate = here(state["noise"])
        self.posterior.drawn = state["drawn"]
        self.posterior.products = [(p, q) for p, q in map(here, state["products"])]
        self.posterior.totals = here(state["totals"])
        self.note = state["note"]
        self.finished = None

    def _sample(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """p, q, b_u and b_m of the current sample, in rating units."""
        (p, b_u), (q, b_m) = (torch.split(z, [self.rank, 1], 1) for z in (self.users.mean, self.movies.mean))
        return p * self.scale, q.contiguous(), b_u.squeeze(1) * self.scale, b_m.squeeze(1) * self.scale

    def _cut_sample(self) -> MatrixFactorization:
        return self.fallback.finished(*self._sample(), self.config.factors, self.rank)

    def _collapsed(self) -> MatrixFactorization:
        """The mean of the samples. What is linear in p and q can only be their mean before it is clipped. An error
        counts by how many ratings the user and the movie have."""
        b_u, b_m = (bias.float() for bias in self.posterior.means()[:2])
        rng = generator(self.config.seed, self.epochs + 1, self.device)
        fallback, factors, products = self.fallback, self.config.factors, self.posterior.products
        if fallback.has_room(self.rank, factors):
            return fallback.model(*collapse(products, fallback.rest(b_u, b_m), fallback.counts, factors, rng))
        nothing = b_u.new_zeros(len(b_u), 0), b_m.new_zeros(len(b_m), 0)
        return fallback.near(*collapse(products, nothing, fallback.counts, factors, rng), b_u, b_m)

    def _cost_of_collapse(self) -> str:
        which = "validation ratings" if len(self.validation) else f"{len(self.probes):,} training ratings"
        return (
            f"RMSE on the {which}: mean of {self.posterior.drawn} samples {self._mean_rmse():.4f}, "
            f"collapsed into {self.config.factors} factors {rmse(self.model(), self.probes, self.workers):.4f}"
        )

    def _mean_rmse(self) -> float:
        """RMSE on the probes of the mean of the samples' clipped predictions."""
        error = self.posterior.means()[-1] - self.probes.ratings
        return math.sqrt(error.square().mean().item())


def _draw(shape: Sequence[int], rng: torch.Generator) -> Rule:
    """The rule that draws the rows of a side, ``shape`` n and D, from their Gaussians: see
    ``mf.solvers.gaussian.update``. The random numbers are drawn here, for all rows, whatever the blocks will be."""
    noise = _normal(shape, rng)

    def rule(factor: Tensor, linear: Tensor, rows: slice) -> tuple[Tensor, None]:
        # With the precision L Lᵀ: L⁻ᵀ (L⁻¹ h) is the mean, and L⁻ᵀ ε has the covariance.
        half = torch.linalg.solve_triangular(factor, linear.unsqueeze(2), upper=False) + noise[rows].unsqueeze(2)
        return torch.linalg.solve_triangular(factor.mT, half, upper=True).squeeze(2), None

    return rule


def _start_of_side(n: int, rank: int, rng: torch.Generator) -> Tensor:
    """Vectors whose products have a variance of INIT_SHARE, and biases of 0, float32[n, rank + 1]."""
    z: Tensor = (INIT_SHARE / rank) ** 0.25 * _normal((n, rank + 1), rng)
    z[:, -1] = 0
    return z


def _some(ratings: Interactions, n: int, rng: torch.Generator) -> Interactions:
    """``n`` of the ratings, or all when there are fewer."""
    some = torch.randperm(len(ratings), generator=rng, device=rng.device)[:n]
    return replace(ratings, users=ratings.users[some], movies=ratings.movies[some], ratings=ratings.ratings[some])


def _normal(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng, device=rng.device)


def _gamma(shape: Tensor, rng: torch.Generator) -> Tensor:
    """Gamma(shape, 1): what ``torch.distributions.Gamma`` calls, which takes no generator."""
    drawn: Tensor = torch._standard_gamma(shape, generator=rng)
    return drawn


def _wishart(inverse_scale: Tensor, freedom: int, rng: torch.Generator) -> Tensor:
    """Wishart(inverse_scale⁻¹, freedom), float64[D, D], by Bartlett's decomposition (Smith & Hocking 1972)."""
    d = len(inverse_scale)
    halves = (freedom - torch.arange(d, device=rng.device, dtype=torch.float64)) / 2
    lower = _normal((d, d), rng).double().tril(-1) + (2 * _gamma(halves, rng)).sqrt().diag()
    root = torch.linalg.solve_triangular(torch.linalg.cholesky(inverse_scale).mT, lower, upper=True)
    drawn: Tensor = root @ root.mT
    return drawn


def start(train: Interactions, validation: Interactions, config: GibbsConfig) -> Gibbs:
    """A chain that has not begun; see ``mf.solvers.fit``."""
    rank = config.rank or inner_rank(train, config.factors)
    workers = Workers(train.ratings.device)
    scale = train.ratings.double().std(correction=0).item() or 1.0
    by_user, by_movie = both_sides(replace(train, ratings=train.ratings / scale), rank, workers)
    rng = generator(config.seed, 0, train.ratings.device)
    of_users = who_rated(by_user, by_movie, BASIS_RANK, workers, rng)
    of_movies = who_rated(by_movie, by_user, BASIS_RANK, workers, rng)
    return Gibbs(train, validation, config, (by_user, by_movie), (of_users, of_movies), workers, rank, scale)
