"""Models that answer as the damped bias model does where a row is unseen, against dense algebra in float64."""

from functools import cache

import pytest
import torch
from torch import Tensor

from mf.biases import BiasModel
from mf.model import MatrixFactorization
from mf.solvers.base import Interactions
from mf.solvers.unseen import BiasFallback

USERS, MOVIES, RATINGS, K = 40, 30, 500, 4

Parameters = tuple[Tensor, Tensor, Tensor, Tensor]


@cache
def ratings() -> Interactions:
    """Every user and every movie has some, the first ones many more than the last."""
    g = torch.Generator().manual_seed(0)
    users, movies = (
        torch.cat([torch.arange(n), (n * torch.rand(RATINGS - n, generator=g) ** 3).long()]) for n in (USERS, MOVIES)
    )
    return Interactions(users, movies, 3 + torch.randn(RATINGS, generator=g), USERS, MOVIES)


@cache
def fallback() -> BiasFallback:
    train = ratings()
    none = Interactions(train.users[:0], train.movies[:0], train.ratings[:0], USERS, MOVIES)
    return BiasFallback(train, none)


@cache
def fitted() -> Parameters:
    g = torch.Generator().manual_seed(1)
    p, q = torch.randn(USERS, K, generator=g) + 0.5, torch.randn(MOVIES, K, generator=g) - 0.3
    return p, q, torch.randn(USERS, generator=g), torch.randn(MOVIES, generator=g)


@cache
def biases() -> tuple[Tensor, Tensor]:
    train = ratings()
    model = BiasModel.fit(train.users.numpy(), train.movies.numpy(), train.ratings.numpy(), USERS, MOVIES)
    return torch.from_numpy(model.user_bias), torch.from_numpy(model.movie_bias)


def known(p: Tensor, q: Tensor, b_u: Tensor, b_m: Tensor) -> Tensor:
    """Every user's answer for every movie, float64."""
    return ratings().ratings.double().mean() + b_u.double().unsqueeze(1) + b_m.double() + p.double() @ q.double().T


def answers(model: MatrixFactorization) -> Tensor:
    m = model.double()
    tables = (m.user_factors, m.movie_factors, m.user_bias, m.movie_bias)
    p, q, b_u, b_m = (table.weight.detach() for table in tables)
    return m.mu + b_u + b_m.T + p @ q.T


@pytest.mark.parametrize("factors", [K + 2, K + 5, USERS + 10])
def test_with_room_for_two_more_factors_predictions_stay_and_biases_are_the_damped_ones(
    factors: int,
) -> None:
    model = fallback().to_model(*fitted(), factors, K)
    assert model.user_factors.weight.shape == (USERS, factors)
    torch.testing.assert_close(answers(model), known(*fitted()), rtol=0, atol=2e-5)
    for table, bias in zip((model.user_bias, model.movie_bias), biases(), strict=True):
        torch.testing.assert_close(table.weight.squeeze(1), bias, rtol=0, atol=1e-6)
    assert model.mu.item() == pytest.approx(ratings().ratings.mean().item(), abs=1e-6)


@pytest.mark.parametrize("factors", [K, K + 1, K + 5])
def test_without_room_predictions_stay_and_biases_come_near_the_damped_ones(factors: int) -> None:
    model = fallback().to_model(*fitted(), factors, factors)
    assert model.user_factors.weight.shape == (USERS, factors)
    torch.testing.assert_close(answers(model), known(*fitted()), rtol=0, atol=2e-5)
    p, q, b_u, b_m = (x.double() for x in fitted())
    for table, vectors, bias, target, counts in (
        (model.user_bias, p, b_u, biases()[0], ratings().counts()[0]),
        (model.movie_bias, q, b_m, biases()[1], ratings().counts()[1]),
    ):
        # What no c and a reach, as numpy's least squares have it.
        root = counts.double().sqrt().unsqueeze(1)
        columns = root * torch.cat([vectors, torch.ones(len(vectors), 1)], 1)
        wanted = root * (target - bias).unsqueeze(1)
        least = (columns @ torch.linalg.lstsq(columns, wanted).solution - wanted).square().sum()
        found = (counts * (table.weight.squeeze(1) - target).square()).sum()
        assert found.item() == pytest.approx(least.item(), rel=1e-4)


def test_too_many_factors_are_truncated_to_the_best_weighted_approximation() -> None:
    found = answers(fallback().to_model(*fitted(), 3, 1))
    base = ratings().ratings.double().mean() + biases()[0].unsqueeze(1) + biases()[1]
    roots = [counts.double().sqrt() for counts in ratings().counts()]
    weights = torch.outer(*roots)
    best = torch.linalg.svdvals(weights * (known(*fitted()) - base))[3:].square().sum().item()
    assert best > 100
    assert (weights * (found - known(*fitted()))).square().sum().item() == pytest.approx(best, rel=1e-4)


def test_truncated_factors_do_not_depend_on_the_solvers_axes() -> None:
    p, q, b_u, b_m = fitted()
    turn = torch.randn(K, K, generator=torch.Generator().manual_seed(2)) + 2 * torch.eye(K)
    one, other = (
        fallback().to_model(*parts, b_u, b_m, 8, K) for parts in ((p, q), (p @ turn, q @ torch.linalg.inv(turn).T))
    )
    for a, b in ((one.user_factors, other.user_factors), (one.movie_factors, other.movie_factors)):
        torch.testing.assert_close(a.weight.abs(), b.weight.abs(), rtol=0, atol=1e-4)
