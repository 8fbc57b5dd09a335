import numpy as np
import pytest
from scipy import stats

from mf.biases import Floats, Ints
from mf.evaluation.bootstrap import Interval, bootstrap_ratios, paired_difference, percentile_interval, sum_per_user


def planted(rng: np.random.Generator, users: int, each: int) -> tuple[Ints, Floats]:
    """Errors of variance 1.25, of which 1 is the user's own: the errors of one user are correlated."""
    rows = np.repeat(np.arange(users), each)
    return rows, rng.normal(0, 1, users)[rows] + rng.normal(0, 0.5, len(rows))


def rmse_interval(rows: Ints, errors: Floats, seed: int) -> Interval:
    weights = sum_per_user(rows)
    draws = np.sqrt(bootstrap_ratios(sum_per_user(rows, errors**2)[:, None], weights, 300, seed))
    found = percentile_interval(draws, len(weights))
    assert found is not None
    return found


def test_two_users_are_drawn_in_three_ways() -> None:
    # Twice the first, one of each, twice the second: 1 / 1, (1 + 6) / (1 + 3), 6 / 3.
    draws = bootstrap_ratios(np.array([[1.0], [6.0]]), np.array([1.0, 3.0]), 4000, 0)
    values, counts = np.unique(draws.round(12), return_counts=True)
    assert values.tolist() == [1, 1.75, 2]
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_all_columns_share_the_draws() -> None:
    sums = np.random.default_rng(0).random((50, 1))
    draws = bootstrap_ratios(np.column_stack([sums, 2 * sums]), np.ones(50), 100, 0)
    assert draws[:, 1] == pytest.approx(2 * draws[:, 0])


def test_the_same_seed_draws_the_same_users() -> None:
    rows, errors = planted(np.random.default_rng(0), 30, 4)
    other = errors[::-1]
    assert paired_difference(rows, errors, other, 7) == paired_difference(rows, errors, other, 7)
    assert paired_difference(rows, errors, other, 7) != paired_difference(rows, errors, other, 8)


def test_the_interval_of_a_mean_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).exponential(1, 400)
    found = percentile_interval(bootstrap_ratios(values[:, None], np.ones(400), 4000, 0), 400)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert found is not None
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_many_users_are_drawn_in_groups_with_intervals_of_the_same_width(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, errors = planted(np.random.default_rng(0), 6000, 3)

    def width() -> float:
        return float(np.mean([(found := rmse_interval(rows, errors, seed)).high - found.low for seed in range(10)]))

    apart = width()
    monkeypatch.setattr("mf.evaluation.bootstrap.MOST_DRAWN", 1000)
    assert width() == pytest.approx(apart, rel=0.05)


def test_95_percent_of_the_intervals_contain_the_true_rmse() -> None:
    held = 0
    for seed in range(200):
        found = rmse_interval(*planted(np.random.default_rng(seed), 150, 3), seed)
        held += found.low <= np.sqrt(1.25) <= found.high
    assert 0.91 <= held / 200 <= 0.98


def test_resampling_ratings_instead_of_users_gives_an_interval_that_is_too_narrow() -> None:
    rows, errors = planted(np.random.default_rng(0), 150, 10)
    by_users, by_ratings = rmse_interval(rows, errors, 0), rmse_interval(np.arange(len(rows)), errors, 0)
    assert by_ratings.high - by_ratings.low < 0.6 * (by_users.high - by_users.low)


def test_a_paired_difference_is_significant_where_two_intervals_overlap() -> None:
    rows, errors = planted(np.random.default_rng(0), 100, 10)
    worse = 1.02 * errors
    assert rmse_interval(rows, errors, 0).high > rmse_interval(rows, worse, 0).low
    difference = paired_difference(rows, errors, worse, 0)
    assert difference is not None
    assert difference.low < difference.high < 0
    assert difference.low == pytest.approx(-0.02 * np.sqrt(np.mean(errors**2)), rel=0.2)


def test_user_numbers_may_be_any_integers() -> None:
    rows, errors = planted(np.random.default_rng(0), 20, 3)
    shuffled = np.random.default_rng(1).permutation(len(rows))
    found = paired_difference((rows * 1000 + 7)[shuffled], errors[shuffled], errors[::-1][shuffled], 0)
    expected = paired_difference(rows, errors, errors[::-1], 0)
    assert found is not None
    assert expected is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_one_user_has_no_interval() -> None:
    assert paired_difference(np.zeros(5, int), np.ones(5), np.zeros(5), 0) is None


def test_without_draws_there_is_no_interval() -> None:
    assert paired_difference(np.arange(5), np.ones(5), np.zeros(5), 0, samples=0) is None


def test_equal_errors_have_a_difference_of_zero() -> None:
    rows, errors = planted(np.random.default_rng(0), 20, 3)
    assert paired_difference(rows, errors, errors, 0) == Interval(0, 0)
