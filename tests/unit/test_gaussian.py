"""The Gaussian engine against textbook sums in float64, rating by rating."""

import pytest
import torch
from torch import Tensor

from mf.solvers import gaussian
from mf.solvers.base import RatingTensors
from mf.solvers.gaussian import GaussianConfig, PosteriorMoments, Prior, RatingsByRow, update
from mf.solvers.gibbs import GibbsConfig
from mf.solvers.vb import VBConfig
from mf.workers import Workers

USERS, MOVIES, RANK = 40, 30, 3
D = RANK + 1
CPU = torch.device("cpu")


@pytest.fixture
def ratings() -> RatingTensors:
    """Every user has between none and all of the movies; movie 0 has all users."""
    g = torch.Generator().manual_seed(0)
    rated = torch.rand(USERS, MOVIES, generator=g) < torch.linspace(0, 1, USERS).unsqueeze(1)
    rated[1:, 0] = True
    users, movies = rated.nonzero(as_tuple=True)
    shuffled = torch.randperm(len(users), generator=g)
    return RatingTensors(
        users[shuffled], movies[shuffled], torch.randn(len(users), generator=g), n_users=USERS, n_movies=MOVIES
    )


def gaussians(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Means float32[n, D] and covariances float32[n, D, D]."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(n, D, D, generator=g)
    return torch.randn(n, D, generator=g), 0.1 * root @ root.mT


def moments(mean: Tensor, covariance: Tensor) -> PosteriorMoments:
    out = PosteriorMoments(torch.zeros_like(mean))
    out.set_rows(slice(0, len(mean)), mean, covariance)
    return out


def prior() -> Prior:
    mean, covariance = gaussians(1, 7)
    return Prior(mean[0], covariance[0] + torch.eye(D))


def expectation(factor: Tensor, linear: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    return torch.cholesky_solve(linear.unsqueeze(2), factor).squeeze(2), torch.cholesky_inverse(factor)


def textbook(
    data: RatingTensors, mean: Tensor, covariance: Tensor, alpha: Tensor, prior_mean: Tensor, precision: Tensor
) -> tuple[Tensor, Tensor]:
    """Means and covariances of the users given movies with these moments, all in float64; alpha is that of all ratings
    or one for each."""
    alpha = alpha.double().expand(len(data))
    mean, covariance, precision = mean.double(), covariance.double(), precision.double()
    q, b = mean[:, :RANK], mean[:, RANK]
    out = []
    for user in range(data.n_users):
        gram, linear = torch.zeros(D, D).double(), torch.zeros(D).double()
        for rating in (data.users == user).nonzero().squeeze(1):
            movie, y, a = data.movies[rating], data.ratings[rating], alpha[rating]
            x = torch.cat([q[movie], torch.ones(1).double()])
            gram += a * torch.outer(x, x)
            gram[:RANK, :RANK] += a * covariance[movie][:RANK, :RANK]
            linear += a * (y - b[movie]) * x
            linear[:RANK] -= a * covariance[movie][RANK, :RANK]
        spread = torch.linalg.inv(gram + precision)
        m = prior_mean if prior_mean.dim() == 1 else prior_mean[user]
        out.append((spread @ (linear + precision @ m.double()), spread))
    return torch.stack([m for m, _ in out]), torch.stack([s for _, s in out])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, and rows of several pieces."""
    monkeypatch.setattr(gaussian, "PIECE", 4)
    monkeypatch.setattr(gaussian, "BLOCK_BYTES", {"cpu": 5 * 4 * D * D})
    monkeypatch.setattr(gaussian, "BLOCK_RATINGS", {"cpu": 60})


def updated(data: RatingTensors, prior: Prior, workers: Workers) -> tuple[PosteriorMoments, Tensor, RatingsByRow]:
    side = RatingsByRow(data.users, data.movies, data.ratings, USERS, RANK)
    users = PosteriorMoments(torch.zeros(USERS, D))
    errors = update(side, users, moments(*gaussians(MOVIES, 1)), prior, torch.tensor(1.7), expectation, workers)
    return users, errors.sum(), side


@pytest.mark.usefixtures("small_blocks")
def test_every_row_gets_the_textbook_gaussian_whatever_its_ratings_and_its_block(ratings: RatingTensors) -> None:
    users, _, side = updated(ratings, prior(), Workers(CPU, 1))
    assert len(side.blocks) > 5
    assert {block.firsts is None for block in side.blocks} == {True, False}
    mean, covariance = textbook(ratings, *gaussians(MOVIES, 1), torch.tensor(1.7), prior().mean, prior().precision)
    torch.testing.assert_close(users.mean.double(), mean, rtol=1e-4, atol=1e-5)
    second = users.table[:, users.square].view(USERS, D, D).double()
    torch.testing.assert_close(second, covariance + mean.unsqueeze(2) * mean.unsqueeze(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(users.table[:, -D:], users.mean)


def test_a_row_without_ratings_gets_its_prior(ratings: RatingTensors) -> None:
    assert 0 not in ratings.users
    users, _, _ = updated(ratings, prior(), Workers(CPU, 1))
    torch.testing.assert_close(users.mean[0], prior().mean, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small_blocks")
def test_every_row_can_have_a_prior_mean_of_its_own(ratings: RatingTensors) -> None:
    own = Prior(gaussians(USERS, 3)[0], prior().precision)
    users, _, _ = updated(ratings, own, Workers(CPU, 1))
    mean, _ = textbook(ratings, *gaussians(MOVIES, 1), torch.tensor(1.7), own.mean, own.precision)
    torch.testing.assert_close(users.mean.double(), mean, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small_blocks")
def test_every_rating_can_have_a_precision_of_its_own_by_its_user_and_its_movie(ratings: RatingTensors) -> None:
    g = torch.Generator().manual_seed(4)
    by_user, by_movie = torch.rand(USERS, generator=g) + 0.5, torch.rand(MOVIES, generator=g) + 0.5
    side = RatingsByRow(ratings.users, ratings.movies, ratings.ratings, USERS, RANK)
    assert any(block.firsts is not None for block in side.blocks)
    users, movies = PosteriorMoments(torch.zeros(USERS, D)), moments(gaussians(MOVIES, 1)[0], torch.zeros(MOVIES, D, D))

    def points(factor: Tensor, linear: Tensor, rows: slice) -> tuple[Tensor, None]:
        return expectation(factor, linear, rows)[0], None

    errors = update(side, users, movies, prior(), by_user, points, Workers(CPU, 1), by_movie)

    alpha = by_user[ratings.users] * by_movie[ratings.movies]
    mean, _ = textbook(ratings, movies.mean, torch.zeros(MOVIES, D, D), alpha, prior().mean, prior().precision)
    torch.testing.assert_close(users.mean.double(), mean, rtol=1e-4, atol=1e-5)
    z, w = mean[ratings.users], movies.mean[ratings.movies].double()
    error = ratings.ratings - (z[:, :RANK] * w[:, :RANK]).sum(1) - z[:, RANK] - w[:, RANK]
    expected = torch.zeros(USERS).double().index_add_(0, ratings.users, error.square() * by_movie[ratings.movies])
    torch.testing.assert_close(errors.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("small_blocks")
def test_the_expected_squared_error_is_that_of_each_rating_added_up(ratings: RatingTensors) -> None:
    users, error, _ = updated(ratings, prior(), Workers(CPU, 1))
    (q, of_q), second = gaussians(MOVIES, 1), users.table[:, users.square].view(USERS, D, D)
    p, of_p = users.mean, second - users.mean.unsqueeze(2) * users.mean.unsqueeze(1)
    g = torch.Generator().manual_seed(5)
    u, m, draws = ratings.users, ratings.movies, 4000
    total = torch.zeros(draws, dtype=torch.float64)
    roots = [torch.linalg.cholesky(s + 1e-6 * torch.eye(D)) for s in (of_p, of_q)]
    for draw in range(draws):
        z, w = (
            mean + (root @ torch.randn(len(mean), D, 1, generator=g)).squeeze(2)
            for mean, root in zip((p, q), roots, strict=True)
        )
        predicted = (z[u, :RANK] * w[m, :RANK]).sum(1) + z[u, RANK] + w[m, RANK]
        total[draw] = (ratings.ratings - predicted).double().square().sum()
    assert abs(total.mean() - error) < 4 * total.std() / draws**0.5
    assert total.std() / draws**0.5 < 0.01 * error


@pytest.mark.usefixtures("small_blocks")
def test_the_number_of_workers_changes_no_bit(ratings: RatingTensors) -> None:
    one, two = (updated(ratings, prior(), Workers(CPU, threads))[:2] for threads in (1, 3))
    assert torch.equal(one[0].mean, two[0].mean)
    assert torch.equal(one[0].table, two[0].table)
    assert torch.equal(one[1], two[1])


def test_a_sum_over_a_hundred_thousand_ratings_is_ten_times_as_exact_as_one_run_of_float32_additions() -> None:
    n = 100_000
    table = torch.rand(50, D, generator=torch.Generator().manual_seed(0)) + 0.5
    columns = torch.randint(50, (n,), generator=torch.Generator().manual_seed(1))
    exact = table.double()[columns].sum(0)

    def error(sums: Tensor) -> Tensor:
        return ((sums.double() - exact) / exact).abs().max()

    side = RatingsByRow(torch.zeros(n, dtype=torch.int64), columns, torch.zeros(n), 1, RANK)
    one_run = torch.nn.functional.embedding_bag(columns, table, torch.zeros(1, dtype=torch.int64), mode="sum")
    assert error(side.blocks[0].sums(table)) < 5e-6
    assert error(side.blocks[0].sums(table)) < error(one_run) / 10


def test_int32_and_int64_rows_give_the_same_result(ratings: RatingTensors) -> None:
    wide = RatingsByRow(ratings.users, ratings.movies, ratings.ratings, USERS, RANK)
    narrow = RatingsByRow(ratings.users.int(), ratings.movies.int(), ratings.ratings, USERS, RANK)
    assert torch.equal(wide.blocks[0].columns, narrow.blocks[0].columns)
    assert torch.equal(wide.blocks[0].values, narrow.blocks[0].values)
    assert torch.equal(wide.blocks[0].pieces, narrow.blocks[0].pieces)


def test_the_total_of_the_second_moments_is_their_sum() -> None:
    mean, covariance = gaussians(USERS, 2)
    expected = (covariance + mean.unsqueeze(2) * mean.unsqueeze(1)).double().sum(0)
    torch.testing.assert_close(moments(mean, covariance).total(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "n", "rows", "factors", "expected"),
    [
        (VBConfig, 100_000, 10_000, 64, 16),
        (VBConfig, 100_000, 10_000, 8, 8),
        (VBConfig, 23_600_000, 219_000, 64, 16),
        (VBConfig, 50_000_000, 250_000, 64, 32),
        (GibbsConfig, 91_000, 10_334, 64, 16),  # latest-small
        (GibbsConfig, 1_800_000, 28_755, 64, 20),
        (GibbsConfig, 900_000, 10_000, 64, 32),
        (GibbsConfig, 900_000, 10_000, 24, 24),
        (GibbsConfig, 50_000_000, 250_000, 64, 32),
    ],
)
def test_the_default_rank_follows_the_ratings_per_row_up_to_the_factors(
    config: type[GaussianConfig], n: int, rows: int, factors: int, expected: int
) -> None:
    nothing = torch.empty(0)
    data = RatingTensors(nothing, nothing, nothing.expand(0), n_users=rows // 2, n_movies=rows - rows // 2)
    many = RatingTensors(nothing, nothing, torch.zeros(1).expand(n), data.n_users, data.n_movies)
    assert config(factors=factors).fitted_rank(many) == expected
    assert config(factors=factors, rank=3).fitted_rank(many) == 3
