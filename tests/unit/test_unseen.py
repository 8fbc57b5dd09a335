"""Models that answer as the damped bias model does where a row is unseen, against dense algebra in float64."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mf.biases import BiasModel
from mf.model import MatrixFactorization
from mf.sample import write_sample
from mf.solvers import SOLVERS, EpochReport, configure, fit
from mf.solvers.base import RatingTensors, Share, rmse
from mf.solvers.config import ORIGINAL
from mf.solvers.unseen import BiasFallback, _ridge_regressions

USERS, MOVIES, RATINGS, K = 40, 30, 500, 4

Parameters = tuple[Tensor, Tensor, Tensor, Tensor]


@cache
def ratings() -> RatingTensors:
    """Every user and every movie has some, the first ones many more than the last."""
    g = torch.Generator().manual_seed(0)
    users, movies = (
        torch.cat([torch.arange(n), (n * torch.rand(RATINGS - n, generator=g) ** 3).long()]) for n in (USERS, MOVIES)
    )
    return RatingTensors(users, movies, 3 + torch.randn(RATINGS, generator=g), USERS, MOVIES)


@cache
def fallback() -> BiasFallback:
    train = ratings()
    none = RatingTensors(train.users[:0], train.movies[:0], train.ratings[:0], USERS, MOVIES)
    return BiasFallback(Share.of(train), none)


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


def test_a_refit_moves_each_row_to_its_ridge_regression() -> None:
    """One sweep for the movies, as numpy's least squares have it: the prior is two average rows of made-up ratings."""
    p, q, b_u, b_m = fitted()
    bias = fallback()
    model = bias.truncated(bias.widened_model(p, q, b_u, b_m), 2)
    users, movies = (table.weight.detach() for table in (model.user_factors, model.movie_factors))
    train, (beta_u, beta_m) = ratings(), biases()
    values = train.ratings.double() - train.ratings.double().mean() - beta_u[train.users] - beta_m[train.movies]
    x = users.double()[train.users]
    prior = torch.linalg.cholesky(2 * RATINGS / MOVIES * x.T @ x / RATINGS).T
    found = _ridge_regressions(
        bias.residuals_by_row(2)[1], movies, users, bias.train.users, bias.counts[0], bias.workers
    )
    for movie in range(MOVIES):
        own = train.movies == movie
        start = movies[movie].double()
        expected = torch.linalg.lstsq(torch.cat([x[own], prior]), torch.cat([values[own], prior @ start]).unsqueeze(1))
        torch.testing.assert_close(found[movie].double(), expected.solution.squeeze(1), rtol=0, atol=1e-4)


# Every solver, with few factors and many, after few epochs and many.


def interactions(rows: Sequence[tuple[Any, Any, float]]) -> tuple[RatingTensors, RatingTensors]:
    """Every tenth rating is held out; users and movies that only these have get row -1."""
    train, held_out = [row for i, row in enumerate(rows) if i % 10], rows[::10]
    users, movies = ({key: i for i, key in enumerate(sorted({row[c] for row in train}))} for c in (0, 1))
    whole, part = (
        RatingTensors(
            torch.tensor([users.get(u, -1) for u, _, _ in data]),
            torch.tensor([movies.get(m, -1) for _, m, _ in data]),
            torch.tensor([rating for _, _, rating in data]),
            len(users),
            len(movies),
        )
        for data in (train, held_out)
    )
    return whole, part


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[RatingTensors, RatingTensors]]:
    """Training and validation ratings of a small file without noise, and of the sample."""
    pairs = [(u, m) for u in range(1, 61) for m in range(1, 41) if u * m % 3]
    with write_sample(tmp_path_factory.mktemp("sample")).ratings_csv.open(newline="") as file:
        sample = [(row["userId"], row["movieId"], float(row["rating"])) for row in csv.DictReader(file)]
    grid = [(u, m, 1 + (7 * u + 3 * m) % 9 / 2) for u, m in pairs]
    return {"grid": interactions(grid), "sample": interactions(sample)}


def smallest_rmse(train: RatingTensors, values: Tensor, factors: int) -> float:
    """RMSE of the best vectors p, q float64[n, factors] for ``values`` on all training ratings, by least squares."""
    known = torch.zeros(train.n_users, train.n_movies, dtype=torch.float64)
    known[train.users, train.movies] = 1
    wanted = known.clone()
    wanted[train.users, train.movies] = values
    q = torch.linalg.svd(wanted, full_matrices=False)[2][:factors].T
    for _ in range(50):
        p = torch.linalg.solve(torch.einsum("um,mk,ml->ukl", known, q, q), (wanted @ q).unsqueeze(2)).squeeze(2)
        q = torch.linalg.solve(torch.einsum("um,uk,ul->mkl", known, p, p), (wanted.T @ p).unsqueeze(2)).squeeze(2)
    return float((known * (wanted - p @ q.T)).square().sum().div(len(train)).sqrt())


@pytest.mark.parametrize("epochs", [1, 3, None])
@pytest.mark.parametrize("solver", ["original", *SOLVERS])
@pytest.mark.parametrize("file", ["grid", "sample"])
def test_unseen_rows_get_the_bias_model_and_known_pairs_lose_little(
    file: str,
    solver: str,
    epochs: int | None,
    files: dict[str, tuple[RatingTensors, RatingTensors]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, validation = files[file]
    model_of_biases = BiasModel.fit(
        train.users.numpy(), train.movies.numpy(), train.ratings.numpy(), train.n_users, train.n_movies
    )
    mean, *damped = model_of_biases.mean, model_of_biases.user_bias, model_of_biases.movie_bias
    beta_u, beta_m = (torch.from_numpy(bias) for bias in damped)
    values = train.ratings - mean - beta_u[train.users] - beta_m[train.movies]
    losses: list[tuple[float, float]] = []  # training RMSE with all factors of the solver and two more, and after
    reduced = BiasFallback.reduced

    def recorded(self: BiasFallback, model: MatrixFactorization, factors: int) -> MatrixFactorization:
        result = reduced(self, model, factors)
        losses.append((rmse(model, train), rmse(result, train)))
        return result

    monkeypatch.setattr(BiasFallback, "reduced", recorded)
    options: dict[str, Any] = {**(ORIGINAL if solver == "original" else {}), "seed": 1}
    options |= {"epochs": epochs} if epochs else {}
    for factors in (1, 2, 8, 16, 33, 64):
        losses.clear()
        reports: list[EpochReport] = []
        config = configure("adam" if solver == "original" else solver, {**options, "factors": factors})
        model = fit(train, validation, config, torch.device("cpu"), [reports.append])
        low, high = model.rating_min.item(), model.rating_max.item()
        assert low <= model.mu.item() <= high
        for rows, bias in (((-1, torch.arange(train.n_movies)), beta_m), ((torch.arange(train.n_users), -1), beta_u)):
            users, movies = (torch.as_tensor(x).expand(len(bias)) for x in rows)
            wanted = (mean + bias).clamp(low, high)
            torch.testing.assert_close(model.predict(users, movies).double(), wanted, rtol=0, atol=1e-4)
        kept = [report for report in reports if report.kept][-1]
        assert kept.validation_rmse == pytest.approx(rmse(model, validation), rel=1e-5)
        assert losses or factors > 32 or solver not in ("adam", "sgd", "original")
        for exact, found in losses:
            assert found <= exact + 0.01 or found <= smallest_rmse(train, values, factors) + 0.005, (factors, exact)


@pytest.mark.parametrize("factors", [3, 16, 36, 64])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_validation_and_the_best_epoch_need_no_finished_model(
    solver: str, factors: int, files: dict[str, tuple[RatingTensors, RatingTensors]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The RMSE is the finished model's all the same, also where users and movies are unseen."""
    train, validation = files["sample"]
    number = torch.arange(len(validation))
    hidden = (rows.where(number % n > 0, -1) for rows, n in ((validation.users, 5), (validation.movies, 7)))
    validation = replace(validation, users=next(hidden), movies=next(hidden))
    made: list[MatrixFactorization] = []
    to_model = BiasFallback.to_model

    def count(fallback: BiasFallback, *arguments: Any) -> MatrixFactorization:
        made.append(to_model(fallback, *arguments))
        return made[-1]

    monkeypatch.setattr(BiasFallback, "to_model", count)
    training = SOLVERS[solver].start(Share.of(train), validation, configure(solver, {"factors": factors}))
    with torch.no_grad():
        for epoch in (1, 2):
            training.epoch(epoch)
            found = training.validation_rmse()
            # With few factors the model may have to be refitted.
            assert len(made) <= (factors == 3)
            made.clear()
            second = training.model()
            assert rmse(made.pop(), validation) == pytest.approx(found, rel=1e-6)
        training.keep()
        training.epoch(3)
        training.validation_rmse()
        for kept, expected in zip(training.model().parameters(), second.parameters(), strict=True):
            assert torch.equal(kept, expected)
