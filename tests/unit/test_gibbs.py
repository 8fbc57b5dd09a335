"""The sampler: each draw against the distribution it is from, the whole by known noise floors, and no leak."""

import io
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from mf.errors import ConfigError
from mf.model import MatrixFactorization
from mf.solvers import gibbs, loop
from mf.solvers.base import EpochReport, RatingTensors, generator, rmse
from mf.solvers.gaussian import by_user_and_movie
from mf.solvers.gibbs import Gibbs, GibbsConfig, SampledPrior, UserNoise, start
from mf.solvers.who_rated import Basis, who_rated
from mf.workers import Workers

CPU = torch.device("cpu")
USERS, MOVIES = 300, 200
# A user's noise: of every other user a calm one and a wild one.
CALM, WILD = 0.2, 0.8


def split(data: RatingTensors, held: Tensor) -> tuple[RatingTensors, RatingTensors]:
    """The ratings that are not held out, and those that are."""
    train, rest = (
        replace(data, users=data.users[rows], movies=data.movies[rows], ratings=data.ratings[rows])
        for rows in (~held, held)
    )
    return train, rest


@cache
def planted() -> tuple[RatingTensors, RatingTensors]:
    """15,000 training ratings and 1,500 others, of rank 2, neither rounded nor clipped."""
    g = torch.Generator().manual_seed(0)
    pairs = torch.randperm(USERS * MOVIES, generator=g)[:16_500]
    users, movies = pairs // MOVIES, pairs % MOVIES
    p, q = (0.8 * torch.randn(n, 2, generator=g) for n in (USERS, MOVIES))
    b_u, b_m = (0.4 * torch.randn(n, generator=g) for n in (USERS, MOVIES))
    noise = torch.where(users % 2 == 0, CALM, WILD) * torch.randn(len(pairs), generator=g)
    ratings = 3.5 + b_u[users] + b_m[movies] + (p[users] * q[movies]).sum(1) + noise
    return split(RatingTensors(users, movies, ratings, USERS, MOVIES), torch.arange(len(pairs)) >= 15_000)


def few(n: int = 1500) -> tuple[RatingTensors, RatingTensors]:
    """The first of the planted ratings, and the others."""
    train, rest = planted()
    return split(train, torch.arange(len(train)) >= n)[0], rest


def none(like: RatingTensors) -> RatingTensors:
    return split(like, torch.zeros(len(like), dtype=torch.bool))[1]


def run(training: Gibbs) -> tuple[MatrixFactorization, list[EpochReport]]:
    reports: list[EpochReport] = []
    model = loop.run(training, len(training.train), len(training.validation) > 0, [reports.append])
    return model, reports


def fit(
    train: RatingTensors, validation: RatingTensors, **options: int
) -> tuple[MatrixFactorization, list[EpochReport]]:
    return run(start(train, validation, GibbsConfig.of(**options)))


@cache
def planted_fit() -> tuple[MatrixFactorization, Gibbs, tuple[EpochReport, ...]]:
    training = start(*planted(), GibbsConfig(rank=4, epochs=60))
    model, reports = run(training)
    return model, training, tuple(reports)


def test_the_rmse_is_within_a_tenth_of_the_noise() -> None:
    model, _, reports = planted_fit()
    floor = ((CALM**2 + WILD**2) / 2) ** 0.5
    assert 0.95 * floor < rmse(model, planted()[1]) < 1.1 * floor
    assert reports[-1].validation_rmse == rmse(model, planted()[1])


def test_every_users_noise_is_recovered() -> None:
    found = planted_fit()[1].noise.alpha.rsqrt() * planted_fit()[1].scale
    for first, planted_noise in ((0, CALM), (1, WILD)):
        assert found[first::2].median() == pytest.approx(planted_noise, rel=0.1)


def test_only_the_last_sweep_reports_the_loss_of_the_collapse() -> None:
    *first, last = planted_fit()[2]
    assert not any(report.note for report in first)
    collapsed = f"{last.validation_rmse:.4f}"
    assert last.note.startswith("RMSE on the validation ratings: mean of 40 samples 0.6")
    assert last.note.endswith(f"collapsed into 64 factors {collapsed}")


def test_the_model_is_the_mean_of_the_samples_and_its_collapse_loses_nothing_that_64_factors_can_hold() -> None:
    train, validation = few()
    training = start(train, validation, GibbsConfig(rank=4, epochs=8, burn_in=3))
    total = torch.zeros(len(validation))
    for sweep in range(1, 9):
        training.epoch(sweep)
        if sweep > 3:  # 5 samples of 4 factors
            sample = training.fallback.widened_model(*training._sample())
            total += sample(validation.users, validation.movies).detach()
    model = training.model()
    torch.testing.assert_close(model(validation.users, validation.movies), total / 5, atol=1e-4, rtol=0)


def test_the_mean_over_the_samples_beats_a_sample() -> None:
    _, _, reports = planted_fit()
    of_samples, of_means = reports[19].validation_rmse, reports[-2].validation_rmse
    assert of_samples is not None
    assert of_means is not None
    assert of_means < of_samples - 0.02


def test_without_validation_ratings_the_collapse_is_measured_on_training_ratings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gibbs, "PROBES", 700)
    train, _ = few()
    model, reports = fit(train, none(train), rank=3, factors=3, epochs=6, burn_in=1)
    assert reports[-1].validation_rmse is None
    assert reports[-1].note.startswith("RMSE on the 700 training ratings: mean of 5 samples ")
    assert model.factors == 3


def test_samples_that_exceed_the_memory_are_thinned_and_the_last_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation = few()
    monkeypatch.setattr(gibbs, "SAMPLES_BYTES", 4 * 4 * 3 * (USERS + MOVIES))  # 4 samples of 3 factors
    training = start(train, validation, GibbsConfig(rank=3, epochs=12, burn_in=2))
    run(training)
    assert training.mean.drawn == 10
    assert len(training.mean.vectors) == 4
    torch.testing.assert_close(training.mean.vectors[-1], training._sample()[:2])


@pytest.mark.parametrize("stopped_after", [2, 6, 9])
def test_a_resumed_chain_ends_in_the_same_bits(stopped_after: int) -> None:
    train, validation = few()
    config = GibbsConfig(rank=3, epochs=9, burn_in=4, seed=5)
    whole, part, resumed = (start(train, validation, config) for _ in range(3))
    for sweep in range(1, 10):
        whole.epoch(sweep)
    for sweep in range(1, stopped_after + 1):
        part.epoch(sweep)
    file = io.BytesIO()
    torch.save(part.state(), file)
    file.seek(0)
    resumed.load_state(torch.load(file, weights_only=True))
    for sweep in range(stopped_after + 1, 10):
        resumed.epoch(sweep)
    assert resumed.note == whole.note
    assert resumed.validation_rmse() == whole.validation_rmse()
    for name, table in whole.model().state_dict().items():
        assert torch.equal(resumed.model().state_dict()[name], table), name


def test_a_seed_decides_the_model_and_the_number_of_workers_does_not() -> None:
    train, validation = few()
    options = {"rank": 3, "epochs": 4, "burn_in": 1}
    first, other = (fit(train, validation, seed=seed, **options)[0] for seed in (1, 2))
    alone = start(train, validation, GibbsConfig.of(seed=1, **options))
    alone.workers = Workers(CPU, 1)
    again = run(alone)[0]
    assert torch.equal(first.user_factors.weight, again.user_factors.weight)
    assert not torch.equal(first.user_factors.weight, other.user_factors.weight)


def test_ratings_on_a_scale_16_times_as_wide_give_predictions_16_times_as_large() -> None:
    train, validation = few()
    wide = [replace(part, ratings=16 * part.ratings) for part in (train, validation)]
    options = {"rank": 3, "epochs": 6, "burn_in": 2}
    narrow_model, narrow = fit(train, validation, **options)
    wide_model, reports = fit(*wide, **options)
    expected = 16 * narrow_model.predict(validation.users, validation.movies)
    torch.testing.assert_close(wide_model.predict(validation.users, validation.movies), expected, rtol=1e-3, atol=0)
    assert reports[-1].train_rmse == pytest.approx(16 * narrow[-1].train_rmse, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "found"),
    [({"epochs": 5, "burn_in": 5}, "burn_in: found 5"), ({"factors": 8, "rank": 9}, "rank: found 9")],
)
def test_invalid_options_are_refused(options: dict[str, int], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        GibbsConfig.of(**options)


def test_fewer_factors_than_the_rank_that_the_ratings_suggest_are_sampled_at_that_length() -> None:
    train, validation = few()
    assert start(train, validation, GibbsConfig(factors=5)).rank == 5


# One draw


def test_a_wishart_has_its_mean_and_its_variance() -> None:
    scale = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    rng = generator(0, 1)
    draws = torch.stack([gibbs._wishart(torch.linalg.inv(scale), 7, rng) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), 7 * scale, rtol=0.05, atol=0)
    variance = 7 * (scale.square() + torch.outer(scale.diag(), scale.diag()))
    torch.testing.assert_close(draws.var(0), variance, rtol=0.15, atol=0)


def test_a_row_is_drawn_with_the_mean_and_the_covariance_of_its_gaussian() -> None:
    root = torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    linear = torch.tensor([3.0, -1.0])
    n = 40_000
    rule = gibbs._sample_rows((n, 2), generator(0, 1))
    z, covariance = rule(root.expand(n, 2, 2), linear.expand(n, 2), slice(0, n))
    assert covariance is None
    expected = torch.linalg.inv(root @ root.T)
    torch.testing.assert_close(z.mean(0), expected @ linear, atol=0.06, rtol=0)
    torch.testing.assert_close(torch.cov(z.T), expected, atol=0.02, rtol=0.03)


def planted_rows(strength: float) -> tuple[Basis, Tensor, Tensor]:
    """A basis of 2,000 rows and 20 directions, what is expected of each row, and rows z around it, all of D = 3 with
    covariance [[1, .5, 0], [.5, 1, 0], [0, 0, .1]] and mean [1, 0, -1]."""
    rng = generator(3, 1)
    vectors = torch.linalg.qr(torch.randn(2000, 20, generator=rng))[0]
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.1]]))
    basis = Basis(torch.linspace(2000, 500, 20), vectors)
    means = basis.means(torch.randn(20, 3, generator=rng) @ root.T / strength**0.5)
    return basis, means, torch.tensor([1.0, 0.0, -1.0]) + means + torch.randn(2000, 3, generator=rng) @ root.T


def draws(prior: SampledPrior, z: Tensor, what: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mean over 80 draws, after 20 that do not count."""
    rng = generator(4, 1)
    found = []
    for draw in range(100):
        drawn = prior.sample(z, rng)
        if draw >= 20:
            found.append(what(drawn.mean, drawn.precision))
    return torch.stack(found).mean(0)


def test_a_sides_mean_covariance_and_directions_are_those_of_its_rows() -> None:
    basis, means, z = planted_rows(strength=4.0)
    covariance = draws(SampledPrior(basis, 3), z, lambda _, precision: torch.linalg.inv(precision))
    expected = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.1]])
    torch.testing.assert_close(covariance, expected, atol=0.07, rtol=0)
    found = draws(SampledPrior(basis, 3), z, lambda mean, _: mean)
    rest = found - means - torch.tensor([1.0, 0.0, -1.0])
    # Of 2,000 rows' noise the 20 directions and the mean can take a 21 / 2,000th.
    assert rest.square().mean() < 2 * 21 / 2000 * expected.diag().mean()


@pytest.mark.parametrize("strength", [1.0, 20.0])
def test_the_strength_of_who_rated_what_is_recovered(strength: float) -> None:
    basis, _, z = planted_rows(strength)
    prior = SampledPrior(basis, 3)
    found = draws(prior, z, lambda *_: prior.strength)
    assert float(found) == pytest.approx(strength, rel=0.5)


def test_the_prior_of_the_users_noise_is_recovered() -> None:
    rng = generator(2, 1)
    alpha = torch._standard_gamma(torch.full((4000,), 3.0), generator=rng) / 1.5
    counts = torch.full((4000,), 30)
    errors = (torch.randn(4000, 30, generator=rng) / alpha.sqrt().unsqueeze(1)).square().sum(1)
    noise = UserNoise(counts)
    for _ in range(30):
        noise.sample(errors, rng)
    assert float(noise.shape) == pytest.approx(3.0, rel=0.15)
    assert float(noise.shape / noise.rate) == pytest.approx(2.0, rel=0.1)
    assert torch.corrcoef(torch.stack([noise.alpha.log(), alpha.log()]))[0, 1] > 0.8


# The leak

SCORED, TAUGHT, ORDINARY, MARKED = 60, 240, 40, 10


def marked() -> tuple[RatingTensors, Tensor]:
    """Ratings of which some tell by their being there what others are, and which are held out (bool[N]).

    Everyone rates half of 40 ordinary movies, pure noise, and 10 movies A: half of the users with 5, the others with 2.
    Those who rate A with 5 have also rated 10 movies B. Of 60 users all of A and B is held out: which half one is in,
    nothing tells but that the held-out ratings of B exist.
    """
    g = torch.Generator().manual_seed(0)
    n = SCORED + TAUGHT
    likes = torch.arange(n) % 2 == 0
    there = torch.rand(n, ORDINARY + 2 * MARKED, generator=g) < 0.5
    there[:, ORDINARY:] = True
    there[~likes, ORDINARY + MARKED :] = False
    users, movies = there.nonzero(as_tuple=True)
    ratings = 3.5 + 0.5 * torch.randn(len(users), generator=g)
    ratings[movies >= ORDINARY] += torch.where(likes[users[movies >= ORDINARY]], 1.5, -1.5)
    return RatingTensors(users, movies, ratings, n, there.shape[1]), (users < SCORED) & (movies >= ORDINARY)


def error_on_a(data: RatingTensors, held: Tensor, leaks: bool) -> float:
    train, rest = split(data, held)
    of_a = split(rest, rest.movies < ORDINARY + MARKED)[1]
    config = GibbsConfig(rank=2, epochs=30, burn_in=15)
    training = start(train, of_a, config)
    if leaks:
        sides, rng = by_user_and_movie(data, 2, Workers(CPU, 1)), generator(0, 0)
        bases = (
            who_rated(sides[0], sides[1], 128, training.workers, rng),
            who_rated(sides[1], sides[0], 128, training.workers, rng),
        )
        training = Gibbs(train, of_a, config, training.ratings, bases, training.workers, training.rank, training.scale)
    return rmse(run(training)[0], of_a)


def test_held_out_pairs_do_not_leak_into_the_basis() -> None:
    data, held = marked()
    # Who does not know the half can only answer 3.5, and is wrong by 1.5, and by the noise of 0.5.
    assert error_on_a(data, held, leaks=False) > 1.5
    assert error_on_a(data, held, leaks=True) < 0.8
