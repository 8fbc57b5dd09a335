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
from typing import Any

import torch
from torch import Tensor

from mf.model import MatrixFactorization
from mf.ranks import Ranks
from mf.solvers.base import Initial, RatingTensors, Share, generator, rmse
from mf.solvers.collapse import collapse
from mf.solvers.config import GibbsConfig
from mf.solvers.gaussian import (
    MeanOrSample,
    PosteriorMoments,
    Prior,
    RatingsByRow,
    by_user_and_movie,
    update,
)
from mf.solvers.rows import MovieRows, Rows
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
# Smallest mean squared error of a user, as a share of the ratings' variance. Of ratings that the model fits exactly
# only rounding errors are left, perhaps below 0, and precisions would grow until no matrix can be factored.
LEAST_NOISE = 1e-5


class SampledPrior:
    """Sampled prior of all users, or of all movies: z ~ N(m + V S G, Λ⁻¹). The draws are the same on every rank.

    V and S² are the eigenvectors and eigenvalues of the who-rated-what basis, and

        Λ ~ Wishart(I, D),  m ~ N(0, (2 Λ)⁻¹),  rows of G ~ N(0, (strength Λ)⁻¹),  strength ~ Gamma(½, ½).

    Attributes:
        means: float32[n, D], V S G of this rank's rows.
        squares: float64[D, D], Gᵀ G; of G as of the means a basis turned by rounding errors changes nothing.
        strength: float64[]; the larger, the smaller the effect of who-rated-what.
    """

    def __init__(self, basis: Basis, d: int, side: Rows | None = None) -> None:
        self.basis, self.side = basis, side or MovieRows(len(basis.vectors), Ranks.alone())
        self.means = basis.values.new_zeros(len(basis.vectors), d)
        self.squares = basis.values.new_zeros(d, d, dtype=torch.float64)
        self.strength = basis.values.new_ones((), dtype=torch.float64)

    def sample(self, z: Tensor, rng: torch.Generator) -> Prior:
        """Draws m and Λ, then G, then strength, each given the others and this rank's rows z float32[n, D]."""
        values, vectors, d = self.basis.values, self.basis.vectors, z.shape[1]
        mean, precision = self._mean_and_precision(z - self.means, rng)
        root = torch.linalg.cholesky(precision)

        total = (values + self.strength).float().unsqueeze(1)
        # The noise is drawn per row and projected: orthonormal columns keep it normal, and a basis that has turned
        # within directions of equal weight, as rounding errors turn it, gives the same V S G.
        drawn = self.side.own(_normal((self.side.n, d), rng))
        both = self.side.sum_of_rows(vectors.mT @ torch.cat([z - mean.float(), drawn], 1))
        projected, noise = both[:, :d], both[:, d:].double()
        noise = torch.linalg.solve_triangular(root, noise, upper=False, left=False)
        g = values.sqrt().unsqueeze(1) * projected / total + noise.float() / total.sqrt()
        self.means, self.squares = self.basis.means(g), g.double().mT @ g.double()

        shape = self.strength.new_tensor((1 + g.numel()) / 2)
        self.strength = _gamma(shape, rng) / ((1 + (self.squares * precision).sum()) / 2)
        return Prior(mean.float() + self.means, precision.float())

    def _mean_and_precision(self, rest: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws m float64[D] and Λ float64[D, D] given z - V S G float32[n, D] and G.

        Salakhutdinov & Mnih 2008, eq. 14; the rows of G, with precision strength·Λ, are observations of Λ too."""
        rest = rest.double()
        n, d = self.side.n, rest.shape[1]
        mean = self.side.sum_of_rows(rest.sum(0)) / n
        centred = rest - mean
        scatter = self.side.sum_of_rows(centred.mT @ centred) + self.strength * self.squares
        scatter += torch.eye(d, device=rest.device)
        scatter += MEAN_WEIGHT * n / (MEAN_WEIGHT + n) * torch.outer(mean, mean)
        precision = _wishart(scatter, d + n + len(self.basis.values), rng)
        root = torch.linalg.cholesky((MEAN_WEIGHT + n) * precision)
        noise = torch.linalg.solve_triangular(root.mT, _normal((d, 1), rng).double(), upper=True).squeeze(1)
        return n / (MEAN_WEIGHT + n) * mean + noise, precision


class UserNoise:
    """Precision of each user's ratings, alpha_u ~ Gamma(shape, rate); log shape has a uniform prior, rate Gamma(1, 1).

    All ranks draw all users' precisions from the same random numbers and keep those of their own users.

    Args:
        counts: int64[n_users], training ratings of this rank's users.

    Attributes:
        alpha: float32[n_users], of this rank's users.
        shape, rate: float64[].
    """

    def __init__(self, counts: Tensor, side: Rows | None = None) -> None:
        self.side = side or MovieRows(len(counts), Ranks.alone())
        self.counts = counts.double()
        low, high, n = SHAPES
        self.shapes = torch.logspace(math.log10(low), math.log10(high), n, dtype=torch.float64, device=counts.device)
        self.alpha = torch.ones(len(counts), device=counts.device)
        self.shape = self.rate = self.counts.new_tensor(INIT_SHAPE)

    def sample(self, errors: Tensor, rng: torch.Generator) -> None:
        """Draws the precisions given each user's sum of squared errors float32[n_users], then shape and rate."""
        squares = errors.double().maximum(LEAST_NOISE * self.counts)
        alpha = _gammas(self.shape + self.counts / 2, self.side, rng) / (self.rate + squares / 2)
        self.alpha = alpha.float()
        # The shape is drawn with the rate integrated out: given each other, both would hardly move.
        n, shapes = self.side.n, self.shapes
        sum_of_alpha, sum_of_logs = self.side.sum_of_rows(torch.stack([alpha.sum(), alpha.log().sum()]))
        total = 1 + sum_of_alpha
        log_density = torch.lgamma(n * shapes + 1) - (n * shapes + 1) * total.log() - n * torch.lgamma(shapes)
        log_density += shapes * sum_of_logs
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
        train: Share,
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
        self.device = train.device
        self.fallback = BiasFallback(train, validation)
        rng = generator(config.seed, 0, self.device)
        self.sides = train.users, train.movies
        self.users, self.movies = (PosteriorMoments(side.own(_initial_rows(side.n, rank, rng))) for side in self.sides)
        lengths = train.ranks.gather_objects(len(validation))
        self.validates = sum(lengths) > 0
        self.probes = validation if self.validates else train.evenly_spaced(PROBES)
        self.n_probes = sum(lengths) or sum(train.ranks.gather_objects(len(self.probes)))
        self.priors = [SampledPrior(basis, rank + 1, side) for basis, side in zip(bases, self.sides, strict=True)]
        self.noise = UserNoise(train.user_counts, train.users)
        self.mean = SampleMean()
        rows = train.n_users + train.n_movies
        self.keep_every = math.ceil((config.epochs - config.discarded) * 4 * rank * rows / SAMPLES_BYTES)
        self.finished: MatrixFactorization | None = None

    @torch.no_grad()
    def epoch(self, number: int) -> float:
        rng = generator(self.config.seed, number, self.device)
        by_user, by_movie = self.ratings
        users, movies = self.users, self.movies
        user_prior, movie_prior = self.priors

        prior, sample_rows = user_prior.sample(users.mean, rng), _sample_rows(self.sides[0], self.rank, rng)
        errors = update(by_user, users, movies, prior, self.noise.alpha, sample_rows, self.workers)
        squares = self.train.ranks.sum(errors.sum(dtype=torch.float64)).item()
        train_rmse = math.sqrt(max(squares, 0.0) / len(self.train)) * self.scale
        if not math.isfinite(train_rmse):
            return train_rmse  # the loop reports it; sampling would fail
        self.noise.sample(errors, rng)
        prior, sample_rows = movie_prior.sample(movies.mean, rng), _sample_rows(self.sides[1], self.rank, rng)
        one = self.noise.alpha.new_ones(())
        update(by_movie, movies, users, prior, one, sample_rows, self.workers, weights=self.noise.alpha)

        self.finished = None
        if number > self.config.discarded:
            sample = self._sample()
            predictions = self.fallback.widened_model(*sample).predict(self.probes.users, self.probes.movies)
            self.mean.add(sample, predictions, keep=(self.epochs - number) % self.keep_every == 0)
        self.note = self._cost_of_collapse() if number == self.epochs else ""
        return train_rmse

    def validation_rmse(self) -> float:
        """RMSE of the mean of the samples so far; of the current sample during the burn-in, of the model at the end."""
        if not self.mean.drawn:
            return self._rmse(self.fallback.widened_model(*self._sample()), self.validation)
        if self.mean.drawn < self.epochs - self.config.discarded:
            return self._mean_rmse()
        return self._rmse(self.model(), self.validation)

    def keep(self) -> None:
        """Nothing: the last sweep is the model."""

    def model(self) -> MatrixFactorization:
        if self.finished is None:
            self.finished = self._collapsed() if self.mean.drawn else self._truncated_sample()
        return self.finished

    def state(self) -> dict[str, Any]:
        users, ranks = self.sides[0], self.train.ranks
        # The second is of the movies, which every rank has.
        totals = [x if i == 1 else ranks.gather_rows(x) for i, x in enumerate(self.mean.totals)]
        return {
            "z": [users.whole(self.users.mean), self.movies.mean],
            "priors": [
                [side.whole(p.means), p.squares, p.strength] for side, p in zip(self.sides, self.priors, strict=True)
            ],
            "noise": [users.whole(self.noise.alpha), self.noise.shape, self.noise.rate],
            "drawn": self.mean.drawn,
            "vectors": [[users.whole(p), q] for p, q in self.mean.vectors],
            "totals": totals,
            "note": self.note,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        def on_device(saved: list[Tensor]) -> list[Tensor]:
            return [tensor.to(self.device) for tensor in saved]

        users, ranks = self.sides[0], self.train.ranks
        z = on_device(state["z"])
        self.users, self.movies = PosteriorMoments(users.own(z[0])), PosteriorMoments(z[1])
        for side, prior, saved in zip(self.sides, self.priors, state["priors"], strict=True):
            means, prior.squares, prior.strength = on_device(saved)
            prior.means = side.own(means)
        alpha, self.noise.shape, self.noise.rate = on_device(state["noise"])
        self.noise.alpha = users.own(alpha)
        self.mean.drawn = state["drawn"]
        self.mean.vectors = [(users.own(p), q) for p, q in map(on_device, state["vectors"])]
        totals = on_device(state["totals"])
        if totals:
            before = sum(ranks.gather_objects(len(self.probes))[: ranks.rank])
            totals = [users.own(totals[0]), totals[1], totals[2][before : before + len(self.probes)]]
        self.mean.totals = totals
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
        wanted = factors + (0 if room else 2)
        pair = collapse(vectors, rest, fallback.counts, self.sides, wanted, rng, self.workers)
        collapsed = fallback.model(*pair)
        return collapsed if room else fallback.reduced(collapsed, factors)

    def _cost_of_collapse(self) -> str:
        probes = "validation ratings" if self.validates else f"{self.n_probes:,} training ratings"
        return (
            f"RMSE on the {probes}: mean of {self.mean.drawn} samples {self._mean_rmse():.4f}, "
            f"collapsed into {self.config.factors} factors {self._rmse(self.model(), self.probes):.4f}"
        )

    def _mean_rmse(self) -> float:
        """RMSE of the mean of the samples' clipped predictions on the probes."""
        error = self.mean.means()[-1] - self.probes.ratings
        return math.sqrt(self.train.ranks.sum(error.square().sum()).item() / self.n_probes)

    def _rmse(self, model: MatrixFactorization, ratings: RatingTensors) -> float:
        return rmse(model, ratings, self.workers, self.train.ranks)


def _sample_rows(side: Rows, rank: int, rng: torch.Generator) -> MeanOrSample:
    """Sampling for ``mf.solvers.gaussian.update``, of rows of ``rank`` + 1 entries.

    All random numbers are drawn here, so that the samples depend neither on the blocks nor on the ranks."""
    noise = side.own(_normal((side.n, rank + 1), rng))

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


def _normal(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng, device=rng.device)


def _gamma(shape: Tensor, rng: torch.Generator) -> Tensor:
    """A sample of Gamma(shape, 1). ``torch.distributions.Gamma`` would take no generator."""
    drawn: Tensor = torch._standard_gamma(shape, generator=rng)
    return drawn


def _gammas(shapes: Tensor, side: Rows, rng: torch.Generator) -> Tensor:
    """Samples of Gamma(shape, 1) for this rank's rows, from shapes float64[n] of at least 1 (Marsaglia & Tsang 2000).

    Every row has its own random numbers, however often others' are rejected: a rounding error in one shape changes no
    other row, so that ranks, whose sums differ by rounding errors, draw alike.
    """
    d = shapes - 1 / 3
    drawn = torch.zeros_like(d)
    seed = int(torch.randint(1 << 62, (), generator=rng, device=rng.device))
    attempt = 0
    while side.ranks.sum((drawn == 0).sum()):
        again = torch.Generator(rng.device).manual_seed(seed + attempt)
        x, u = (side.own(draw(side.n, generator=again, device=rng.device)) for draw in (torch.randn, torch.rand))
        v = (1 + x / (9 * d).sqrt()) ** 3
        accepted = (v > 0) & (u.double().log() < x.double().square() / 2 + d - d * v + d * v.clamp(min=1e-300).log())
        drawn = torch.where((drawn == 0) & accepted, d * v, drawn)
        attempt += 1
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


def start(train: Share, validation: RatingTensors, config: GibbsConfig, *, initial: Initial | None = None) -> Gibbs:
    """A chain before its first sweep."""
    rank = config.fitted_rank(len(train), train.n_users + train.n_movies)
    workers = Workers(train.device)
    scale = train.std or 1.0
    by_user, by_movie = by_user_and_movie(train, train.standardised(), rank, workers)
    rng = generator(config.seed, 0, train.device)
    user_basis = who_rated(by_user, by_movie, BASIS_RANK, workers, rng)
    movie_basis = who_rated(by_movie, by_user, BASIS_RANK, workers, rng)
    return Gibbs(train, validation, config, (by_user, by_movie), (user_basis, movie_basis), workers, rank, scale)
