"""The fold-in of a new user, against what it minimises and what it is for."""

import numpy as np
import pytest

from mf.fold_in import fold_in, prior


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def test_one_rating_of_a_movie_without_a_vector_gives_a_shrunken_bias():
    # w = [p ; b]: the prior variance of the bias is 2, the noise 1: b = 1.5 * 2 / (2 + 1).
    p, b = fold_in(np.zeros((1, 3)), [0.5], [5.5], mu=3.5, covariance=np.diag([1.0, 1.0, 1.0, 2.0]))
    np.testing.assert_allclose([*p, b], [0, 0, 0, 1.0])


def test_without_ratings_it_is_the_unseen_user():
    p, b = fold_in(np.zeros((0, 3)), [], [], mu=3.5, covariance=np.eye(4))
    assert (*p, b) == (0, 0, 0, 0)


@pytest.mark.parametrize("k", [3, 40])
def test_it_minimises_the_objective(rng, k):
    q, b_m, r = rng.normal(size=(k, 5)), rng.normal(size=k), rng.uniform(1, 5, k)
    covariance = prior(rng.normal(size=(50, 5)), rng.normal(size=50), noise_variance=0.7)
    p, b = fold_in(q, b_m, r, 3.5, covariance)
    w, x = np.append(p, b), np.column_stack([q, np.ones(k)])
    slope = -2 * x.T @ (r - 3.5 - b_m - x @ w) + 2 * np.linalg.solve(covariance, w)
    np.testing.assert_allclose(slope, 0, atol=1e-10)


def test_the_prior_is_the_second_moment_over_the_noise(rng):
    p, b = rng.normal(1, 2, (7, 3)).astype(np.float32), rng.normal(size=7).astype(np.float32)
    expected = sum(np.outer(w, w) for w in np.column_stack([p, b]).astype(np.float64)) / 7 / 0.5
    np.testing.assert_allclose(prior(p, b, 0.5), expected)


def test_a_factor_that_no_known_user_has_stays_zero(rng):
    known = rng.normal(size=(50, 3))
    known[:, 1] = 0
    p, _ = fold_in(rng.normal(size=(9, 3)), np.zeros(9), rng.uniform(1, 5, 9), 3.5, prior(known, np.zeros(50), 1.0))
    assert p[1] == 0
    assert p[0] != 0


def test_a_new_users_other_ratings_are_predicted_better_than_by_the_movies_biases_and_almost_as_by_the_truth(rng):
    factors, movies, noise = 6, 400, 0.6
    q, b_m = rng.normal(0, 0.5, (movies, factors)), rng.normal(0, 0.4, movies)
    users, biases = rng.normal(0, 0.6, (2000, factors)), rng.normal(0, 0.4, 2000)
    covariance = prior(users[200:], biases[200:], noise**2)

    def rmse(k: int) -> float:
        errors = []
        for p, b in zip(users[:200], biases[:200], strict=True):
            truth = 3.5 + b + b_m + q @ p
            ratings = truth + rng.normal(0, noise, movies)
            w, bias = fold_in(q[:k], b_m[:k], ratings[:k], 3.5, covariance)
            errors.append((3.5 + bias + b_m + q @ w - ratings)[50:])
        return float(np.sqrt(np.mean(np.square(errors))))

    without, *with_k = rmse(0), rmse(5), rmse(10), rmse(50)
    # Without ratings the error is that of mu + b_m: noise, bias and p.q, whose variances are 0.36, 0.16 and 0.54.
    assert without == pytest.approx(np.sqrt(0.36 + 0.16 + 0.54), abs=0.05)
    assert without > with_k[0] + 0.05 > with_k[1] + 0.1 > with_k[2] + 0.15
    assert noise < with_k[2] < noise + 0.06
