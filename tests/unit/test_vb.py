"""Variational Bayes: the bound it climbs, computed anew in float64, and planted ratings whose noise floor is known."""

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from mf.errors import ConfigError
from mf.model import MatrixFactorization
from mf.solvers import loop, vb
from mf.solvers.base import EpochReport, RatingTensors, generator
from mf.solvers.base import rmse as rmse_of
from mf.solvers.gaussian import PosteriorMoments, by_user_and_movie
from mf.solvers.vb import MeanFieldPosterior, VBConfig, empirical_prior
from mf.workers import Workers

CPU = torch.device("cpu")
USERS, MOVIES, RANK, NOISE = 300, 200, 3, 0.5


@pytest.fixture(scope="module")
def planted() -> tuple[RatingTensors, RatingTensors]:
    """12,000 ratings to train on and 3,000 held out: rank 3 and biases, unrounded, noise of 0.5."""
    g = torch.Generator().manual_seed(0)
    p, q = 0.8 * torch.randn(USERS, RANK, generator=g), 0.8 * torch.randn(MOVIES, RANK, generator=g)
    b_u, b_m = 0.4 * torch.randn(USERS, generator=g), 0.4 * torch.randn(MOVIES, generator=g)
    pairs = torch.randperm(USERS * MOVIES, generator=g)[:15_000]
    users, movies = pairs // MOVIES, pairs % MOVIES
    ratings = 3.5 + b_u[users] + b_m[movies] + (p[users] * q[movies]).sum(1) + NOISE * torch.randn(15_000, generator=g)
    held_out, train = slice(0, 3_000), slice(3_000, 15_000)
    whole, part = (RatingTensors(users[x], movies[x], ratings[x], USERS, MOVIES) for x in (train, held_out))
    return whole, part


def fitted(
    planted: tuple[RatingTensors, RatingTensors], **options: Any
) -> tuple[MatrixFactorization, list[EpochReport]]:
    reports: list[EpochReport] = []
    with torch.no_grad():
        training = vb.start(*planted, VBConfig.of(**options))
        model = loop.run(training, len(planted[0]), True, [reports.append])
    return model, reports


def second_moments(side: PosteriorMoments) -> Tensor:
    """E[z zᵀ] float64[n, D, D]."""
    n, d = side.mean.shape
    return side.table[:, side.square].view(n, d, d).double()


def bound(fit: MeanFieldPosterior, data: RatingTensors, values: Tensor) -> float:
    """The evidence's lower bound, less constants, of Gaussians, priors and noise, with the two rows and the rating
    that keep priors and noise proper."""
    noise = fit.noise.double()
    total = -(len(data) + 1) / 2 * noise.log() - (squared_error(fit, data, values) + 1) / (2 * noise)
    for side, prior in ((fit.users, fit.user_prior), (fit.movies, fit.movie_prior)):
        mean, precision = side.mean.double(), prior.precision.double()
        covariance = second_moments(side) - mean.unsqueeze(2) * mean.unsqueeze(1)
        apart = mean - prior.mean.double()
        around = covariance.sum(0) + apart.T @ apart + 0.1 * torch.eye(mean.shape[1])
        total += covariance.logdet().sum() / 2
        total += (len(mean) + 1) / 2 * precision.logdet() - (precision * around).sum() / 2
    return float(total)


def squared_error(fit: MeanFieldPosterior, data: RatingTensors, values: Tensor) -> Tensor:
    """Σ E[(y - b_u - b_m - p·q)²], term by term."""
    z, w = fit.users.mean.double()[data.users], fit.movies.mean.double()[data.movies]
    zz, ww = second_moments(fit.users)[data.users], second_moments(fit.movies)[data.movies]
    p, b_u, q, b_m, y = z[:, :-1], z[:, -1], w[:, :-1], w[:, -1], values.double()
    product = (zz[:, :-1, :-1] * ww[:, :-1, :-1]).sum((1, 2)) + zz[:, -1, -1] + ww[:, -1, -1] + 2 * b_u * b_m
    product += 2 * (zz[:, -1, :-1] * q).sum(1) + 2 * (ww[:, -1, :-1] * p).sum(1)
    return (y * y - 2 * y * ((p * q).sum(1) + b_u + b_m) + product).sum()


def test_no_step_of_a_sweep_lowers_the_bound(planted: tuple[RatingTensors, RatingTensors]) -> None:
    train = planted[0]
    values = train.ratings - train.ratings.mean()
    fit, workers = MeanFieldPosterior(train, RANK, generator(0, 0)), Workers(CPU, 1)
    by_user, by_movie = by_user_and_movie(train, RANK, workers)
    fit.sweep(by_user, by_movie, workers)
    bounds = [bound(fit, train, values)]
    for _ in range(8):
        fit.movie_prior = fit._update(by_movie, fit.movies, fit.users, fit.movie_prior, workers)
        bounds.append(bound(fit, train, values))
        fit.user_prior = fit._update(by_user, fit.users, fit.movies, fit.user_prior, workers)
        bounds.append(bound(fit, train, values))
    assert all(later > earlier - 0.05 for earlier, later in pairwise(bounds))
    assert bounds[-1] > bounds[0] + 1000


def test_planted_ratings_are_predicted_to_within_a_few_percent_of_their_noise(
    planted: tuple[RatingTensors, RatingTensors],
) -> None:
    model, reports = fitted(planted, rank=RANK, fits=1, factors=RANK + 2, epochs=30)
    # 12,000 ratings tell 2,000 numbers: the best that can be is about √(1 + 2000/12000) of the noise.
    assert NOISE < rmse_of(model, planted[1]) < 1.12 * NOISE
    assert reports[-1].validation_rmse == pytest.approx(rmse_of(model, planted[1]), abs=1e-5)
    assert reports[-1].train_rmse == pytest.approx(rmse_of(model, planted[0]), abs=1e-3)


def test_the_noise_is_learned(planted: tuple[RatingTensors, RatingTensors]) -> None:
    training = vb.start(*planted, VBConfig(rank=RANK, factors=RANK))
    with torch.no_grad():
        for number in range(1, 16):
            training.epoch(number)
    assert training.noise() == pytest.approx(NOISE, rel=0.03)


def test_a_rank_far_above_the_truth_costs_little(planted: tuple[RatingTensors, RatingTensors]) -> None:
    right, _ = fitted(planted, rank=RANK, factors=16, fits=1, epochs=30)
    generous, _ = fitted(planted, rank=12, factors=16, fits=1, epochs=30)
    assert rmse_of(generous, planted[1]) < 1.05 * rmse_of(right, planted[1])


def test_it_stops_when_it_has_converged_and_says_so(planted: tuple[RatingTensors, RatingTensors]) -> None:
    _, reports = fitted(planted, rank=RANK, factors=RANK, epochs=200)
    assert 5 < len(reports) < 60
    assert "converged" in reports[-1].note
    assert not any("converged" in report.note for report in reports[:-1])
    assert reports[0].note == "1 fit of 3 factors"


def test_the_fits_are_averaged(planted: tuple[RatingTensors, RatingTensors]) -> None:
    train, held_out = planted
    with torch.no_grad():
        training = vb.start(train, held_out, VBConfig(rank=RANK, fits=3))
        for number in range(1, 5):
            training.epoch(number)
        predictions = [
            train.ratings.mean()
            + training.scale
            * (
                (fit.users.mean[held_out.users, :-1] * fit.movies.mean[held_out.movies, :-1]).sum(1)
                + fit.users.mean[held_out.users, -1]
                + fit.movies.mean[held_out.movies, -1]
            )
            for fit in training.fits
        ]
        assert (predictions[0] - predictions[1]).abs().max() > 0.05
        mean = torch.stack(predictions).mean(0)
        found = training.model()(held_out.users, held_out.movies)
        torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-4)


def test_vectors_weighed_by_ratings_are_orthogonal_and_of_equal_length_on_both_sides_and_padded_with_zeros(
    planted: tuple[RatingTensors, RatingTensors],
) -> None:
    model, _ = fitted(planted, rank=RANK, fits=1, factors=8, epochs=10)
    users, movies = (
        table.weight.double().T @ (counts.double().unsqueeze(1) * table.weight.double())
        for table, counts in zip((model.user_factors, model.movie_factors), planted[0].counts(), strict=True)
    )
    torch.testing.assert_close(users, users.diag().diag(), rtol=0, atol=0.02)
    torch.testing.assert_close(users, movies, rtol=1e-4, atol=0.02)
    # Two factors more than were fitted: they hold how the fitted biases differ from the damped ones.
    assert (users.diag()[: RANK + 2].diff() < 0).all()
    assert not model.user_factors.weight[:, RANK + 2 :].any()


def test_the_empirical_prior_is_that_of_the_rows_and_how_uncertain_they_are() -> None:
    side = PosteriorMoments(torch.zeros(3, 2))
    covariance = torch.tensor([[0.5, 0.1], [0.1, 0.2]])
    side.set_rows(slice(0, 3), torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]]), covariance.expand(3, 2, 2))
    prior = empirical_prior(side)
    torch.testing.assert_close(prior.mean, torch.tensor([2.0, 1.0]))
    # Scatter of the means around (2, 1): [[2, 0], [0, 6]]; plus three covariances and 0.1; over four rows.
    expected = torch.tensor([[2 + 1.5 + 0.1, 0.3], [0.3, 6 + 0.6 + 0.1]]) / 4
    torch.testing.assert_close(torch.linalg.inv(prior.precision), expected)


def test_a_resumed_fit_ends_with_the_same_bits(planted: tuple[RatingTensors, RatingTensors]) -> None:
    config = VBConfig(rank=RANK, fits=2, epochs=6)
    with torch.no_grad():
        whole, resumed = (vb.start(*planted, config) for _ in range(2))
        for number in range(1, 4):
            whole.epoch(number)
        resumed.load_state(copy.deepcopy(whole.state()))
        assert resumed.validation_rmse() == whole.validation_rmse()
        for number in range(4, 7):
            assert whole.epoch(number) == resumed.epoch(number)
        for name, table in whole.model().state_dict().items():
            assert torch.equal(table, resumed.model().state_dict()[name])


def test_a_resumed_fit_that_had_converged_stays_so(planted: tuple[RatingTensors, RatingTensors]) -> None:
    config = VBConfig(rank=RANK, epochs=9)
    converged, resumed = (vb.start(*planted, config) for _ in range(2))
    with torch.no_grad():
        converged.epoch(1)
        converged.epochs = 4
        resumed.load_state(converged.state())
    assert resumed.epochs == 4


def test_a_seed_gives_one_result_and_another_seed_another(planted: tuple[RatingTensors, RatingTensors]) -> None:
    first, again, other = (fitted(planted, rank=RANK, epochs=2, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first.user_factors.weight, again.user_factors.weight)
    assert not torch.allclose(first.user_factors.weight, other.user_factors.weight, atol=0.1)


def test_ratings_that_are_all_the_same_are_predicted_as_such(planted: tuple[RatingTensors, RatingTensors]) -> None:
    same = RatingTensors(planted[0].users, planted[0].movies, torch.full((12_000,), 4.0), USERS, MOVIES)
    model, reports = fitted((same, same), epochs=12)
    assert all(math.isfinite(report.train_rmse) for report in reports)
    torch.testing.assert_close(model(same.users, same.movies), same.ratings, rtol=0, atol=0.01)


def test_one_rating_is_enough_to_fit() -> None:
    one = RatingTensors(torch.tensor([0]), torch.tensor([0]), torch.tensor([4.0]), 1, 1)
    model, _ = fitted((one, one), epochs=3)
    assert model.predict(torch.tensor([0, -1]), torch.tensor([0, 0])).tolist() == pytest.approx([4.0, 4.0])


@pytest.mark.parametrize(("factors", "ratings", "fits"), [(64, 100_000, 4), (40, 100_000, 2), (64, 23_600_000, 1)])
def test_the_default_number_of_fits_fills_the_vectors_and_is_one_for_many_ratings(
    factors: int, ratings: int, fits: int
) -> None:
    assert vb.derived_fits(ratings, 16, factors) == fits


def test_a_rank_above_the_factors_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank: found 32, expected at most factors \\(16\\)"):
        VBConfig.of(rank=32, factors=16)
