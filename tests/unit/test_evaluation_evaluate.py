import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from mf.errors import DataError
from mf.evaluation.accuracy import ColdStart, CountBin, RatingBin
from mf.evaluation.bootstrap import Interval, paired_difference
from mf.evaluation.config import EvaluateConfig
from mf.evaluation.evaluate import Evaluation, evaluate
from mf.evaluation.metrics import MAE, RMSE, Scores
from mf.model import MatrixFactorization
from mf.model_directory import TrainedModel
from mf.ratings.vocabulary import Vocabulary


def ratings(*rows: tuple[Any, Any, float]) -> pa.Table:
    users, movies, values = zip(*rows, strict=True)
    return pa.table({"user_id": users, "movie_id": movies, "rating": pa.array(values, pa.float32())})


class FixedPredictions(TrainedModel):
    """A model with the given predictions, whose ranking score is 0 for every movie."""

    def __init__(self, train: pa.Table, predictions: Sequence[float], rating_min: float, rating_max: float) -> None:
        users, movies = Vocabulary.of(train["user_id"]), Vocabulary.of(train["movie_id"])
        module = MatrixFactorization(len(users), len(movies), 1, rating_min=rating_min, rating_max=rating_max)
        super().__init__(module, users, movies, "run", "none", {}, {})
        self.predictions = np.array(predictions, np.float32)

    def predict(self, user_ids: Any, movie_ids: Any) -> npt.NDArray[np.float32]:
        return self.predictions


def scored(
    train: pa.Table, test: pa.Table, predictions: Sequence[float], rating_max: float = 5, bootstrap: int = 0
) -> Evaluation:
    model = FixedPredictions(train, predictions, 1, rating_max)
    return evaluate(train, test, model, EvaluateConfig(bootstrap=bootstrap))


TRAIN = ratings((1, 10, 5), (1, 20, 3), (2, 10, 1))


def test_errors_are_those_computed_by_hand() -> None:
    found = scored(TRAIN, ratings((1, 10, 4), (2, 20, 2)), [5, 4])
    assert (found.train_rows, found.test_rows) == (3, 2)
    assert found.model.values == {"rmse": math.sqrt((1 + 4) / 2), "mae": 1.5}
    # The training ratings' mean is 3; the movies' biases are 0, the users' are 2/(2+3) and -2/(1+3).
    assert found.global_mean.values == {"rmse": 1, "mae": 1}
    assert found.user_movie_bias["rmse"] == pytest.approx(math.sqrt((0.6**2 + 0.5**2) / 2))
    assert found.user_movie_bias["mae"] == pytest.approx((0.6 + 0.5) / 2)


def test_rating_metrics_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    actual, predicted = rng.uniform(1, 5, 500), rng.uniform(1, 5, 500)
    assert RMSE.of(actual, predicted) == pytest.approx(root_mean_squared_error(actual, predicted), rel=1e-12)
    assert MAE.of(actual, predicted) == pytest.approx(mean_absolute_error(actual, predicted), rel=1e-12)


def test_the_bias_baseline_is_clipped_to_the_rating_range() -> None:
    generous = ratings(*((1, movie, 5) for movie in range(50)), *((2, movie, 3) for movie in range(50)), (3, 99, 4))
    generous = pa.concat_tables([generous, ratings(*((3, 0, 5) for _ in range(50)))])
    unclipped = scored(generous, ratings((1, 0, 5)), [5], rating_max=9)
    assert unclipped.user_movie_bias["rmse"] > 0.1
    assert scored(generous, ratings((1, 0, 5)), [5]).user_movie_bias["rmse"] == 0


def test_cold_start_users_and_movies_are_counted_once_each_and_scored_separately() -> None:
    test = ratings((1, 10, 4), (8, 10, 4), (8, 20, 3), (9, 20, 2), (2, 77, 1))
    found = scored(TRAIN, test, [4, 3, 3, 4, 4])
    both_baselines = math.sqrt((1 + 0 + 1) / 3)
    assert found.unseen_users == ColdStart(2, 3, math.sqrt((1 + 0 + 4) / 3), both_baselines, both_baselines)
    assert found.unseen_movies == ColdStart(ids=1, rows=1, rmse=3, baseline_rmse=1.5, global_mean_rmse=2)


def test_without_cold_start_there_is_no_cold_start_rmse() -> None:
    found = scored(TRAIN, ratings((1, 10, 4)), [4])
    assert found.unseen_users == found.unseen_movies == ColdStart(0, 0, None)


def test_text_ids_give_the_same_as_integer_ids() -> None:
    text = ratings(("ann", "m1", 5), ("ann", "m2", 3), ("bob", "m1", 1))
    found = scored(text, ratings(("bob", "m2", 2), ("eve", "m1", 4)), [4, 5])
    assert found == scored(TRAIN, ratings((2, 20, 2), (9, 10, 4)), [4, 5])


def test_each_decile_holds_a_tenth_of_the_users() -> None:
    # User u has u training ratings; each of the 20 users has one test rating, predicted u/10 too high.
    train = ratings(*((user, movie, 3) for user in range(1, 21) for movie in range(user)))
    test = ratings(*((user, 0, 3) for user in range(1, 21)))
    found = scored(train, test, [3 + user / 10 for user in range(1, 21)]).by_activity
    assert [(b.from_ratings, b.to_ratings, b.rows) for b in found] == [(u, u + 1, 2) for u in range(1, 21, 2)]
    assert found[0].rmse == pytest.approx(math.sqrt((0.1**2 + 0.2**2) / 2), rel=1e-5)
    assert found[9].rmse == pytest.approx(math.sqrt((1.9**2 + 2.0**2) / 2), rel=1e-5)
    assert [b.baseline_rmse for b in found] == [0] * 10


def test_deciles_are_of_users_and_not_of_their_test_ratings() -> None:
    # Ten users with 1 to 10 training ratings; the last has 30 test ratings, which still make one decile.
    train = ratings(*((user, movie, 3) for user in range(1, 11) for movie in range(user)))
    test = ratings(*((user, 0, 3) for user in range(1, 10)), *((10, 0, 3) for _ in range(30)))
    found = scored(train, test, [3] * 39).by_activity
    assert [(b.from_ratings, b.rows) for b in found] == [(user, 1) for user in range(1, 10)] + [(10, 30)]


def test_equally_active_users_share_one_bin_and_cold_start_users_have_zero_ratings() -> None:
    found = scored(TRAIN, ratings((7, 10, 3), (8, 10, 3), (2, 10, 3)), [3, 3, 4]).by_activity
    assert found == (CountBin(0, 0, 2, 0, 0), CountBin(1, 1, 1, 1, 0.5))


def test_each_decile_holds_a_tenth_of_the_movies_and_cold_start_movies_have_zero_ratings() -> None:
    # Movie m has m training ratings, movies 1 to 10; in the test part each is predicted m/10 too high, movie 77 by 1.
    train = ratings(*((user, movie, 3) for movie in range(1, 11) for user in range(movie)))
    test = ratings(*((0, movie, 3) for movie in (*range(1, 10), 77)))
    found = scored(train, test, [*(3 + movie / 10 for movie in range(1, 10)), 4]).by_popularity
    assert [(b.from_ratings, b.to_ratings, b.rows) for b in found] == [(n, n, 1) for n in range(10)]
    assert [b.rmse for b in found] == pytest.approx([1, *(n / 10 for n in range(1, 10))], rel=1e-5)
    assert [b.baseline_rmse for b in found] == [0] * 10


def test_calibration_is_the_mean_actual_rating_of_each_tenth_of_the_predictions() -> None:
    predicted = np.linspace(1, 4.8, 20)
    test = ratings(*((1, 10, value) for value in [3] * 18 + [2, 5]))
    found = scored(TRAIN, test, predicted)
    assert [bin.rows for bin in found.calibration] == [2] * 10
    assert [bin.actual for bin in found.calibration] == [3] * 9 + [3.5]
    assert [bin.predicted for bin in found.calibration] == pytest.approx(predicted.reshape(10, 2).mean(1))
    assert (found.calibration[0].from_predicted, found.calibration[0].to_predicted) == pytest.approx((1, 1.2))
    # User 1 and movie 10 have one bias: equal predictions are one bin.
    (alike,) = found.baseline_calibration
    assert (alike.rows, alike.predicted, alike.actual) == (20, pytest.approx(3.4), pytest.approx(61 / 20))


def test_ratings_and_predictions_are_counted_around_each_actual_rating() -> None:
    found = scored(TRAIN, ratings((1, 10, 2), (1, 10, 4), (1, 10, 4)), [1, 3.1, 5]).distribution
    # Around 1 and 5, which bound the predictions, and around 2 and 4.
    assert found.edges == (0.5, 1.5, 3, 4.5, 5.5)
    assert (found.actual, found.predicted, found.baseline) == ((0, 1, 2, 0), (1, 0, 1, 1), (0, 0, 3, 0))


def test_many_different_ratings_are_counted_in_twenty_bins() -> None:
    values = np.linspace(1, 5, 41)
    found = scored(TRAIN, ratings(*((1, 10, value) for value in values)), values).distribution
    assert (len(found.edges), found.edges[0], found.edges[-1]) == (21, 1, 5)
    assert sum(found.actual) == sum(found.predicted) == sum(found.baseline) == 41


def test_one_rating_for_everything_is_one_bin() -> None:
    model = FixedPredictions(TRAIN, [3], 3, 3)
    found = evaluate(TRAIN, ratings((1, 10, 3)), model, EvaluateConfig(bootstrap=0)).distribution
    assert (found.edges, found.actual, found.predicted) == ((2.5, 3.5), (1,), (1,))


def test_intervals_come_from_resampling_users() -> None:
    # Users 1 and 2 with errors 1 and 2, and 3 rows and 1: a resample has the one, the other, or both.
    found = scored(TRAIN, ratings((1, 10, 3), (1, 20, 3), (1, 77, 3), (2, 20, 3)), [4, 4, 4, 5], bootstrap=200)
    assert found.model["rmse"] == pytest.approx(math.sqrt((3 + 4) / 4))
    assert found.model.interval("rmse") == Interval(1, 2)
    assert found.model.interval("mae") == Interval(1, 2)
    # User 2 is at 2.5, or 0.5 off; user 1 at 3.4. Both errors are taken from the same draw.
    assert found.rmse_difference is not None
    assert found.rmse_difference.low == pytest.approx(1 - 0.4)
    assert found.rmse_difference.high == pytest.approx(2 - 0.5)


def test_the_rmse_difference_is_paired() -> None:
    test = ratings(*((user, 10, 1 + user % 5) for user in range(30)))
    predicted = np.linspace(2, 4, 30)
    actual = test["rating"].to_numpy()
    baseline = np.where(np.arange(30) == 1, 3.4, np.where(np.arange(30) == 2, 2.5, 3))
    expected = paired_difference(np.arange(30), predicted - actual, baseline - actual, seed=0, samples=200)
    found = scored(TRAIN, test, predicted, bootstrap=200).rmse_difference
    assert found is not None
    assert expected is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_a_single_user_has_no_intervals() -> None:
    found = scored(TRAIN, ratings((1, 10, 3), (1, 20, 3)), [4, 4], bootstrap=200)
    assert found.model == Scores({"rmse": 1, "mae": 1}, {"rmse": None, "mae": None})
    assert found.rmse_difference is None


def test_predictions_are_summarised_per_actual_rating() -> None:
    test = ratings(*((1, 10, 2) for _ in range(11)), (1, 20, 4.5))
    found = scored(TRAIN, test, [*np.linspace(2, 3, 11), 4]).by_rating
    assert [(b.from_rating, b.to_rating, b.rows) for b in found] == [(2, 2, 11), (4.5, 4.5, 1)]
    assert [found[0].mean, found[0].p10, found[0].p90] == pytest.approx([2.5, 2.1, 2.9])
    assert found[0].rmse == pytest.approx(math.sqrt(sum((i / 10) ** 2 for i in range(11)) / 11))
    assert (found[0].baseline_mean, found[0].baseline_rmse) == pytest.approx((3.4, 1.4))
    assert found[1] == RatingBin(4.5, 4.5, 1, 4, 4, 4, 0.5, pytest.approx(3.4), pytest.approx(1.1))


def test_more_than_twenty_actual_ratings_are_put_in_twenty_bins_of_equal_width() -> None:
    values = [0, *range(50, 101)]
    found = scored(TRAIN, ratings(*((1, 10, value) for value in values)), values).by_rating
    assert [(b.from_rating, b.to_rating) for b in found] == [
        (0, 0), *((low, low + 4) for low in range(50, 95, 5)), (95, 100),
    ]  # fmt: skip
    assert sum(b.rows for b in found) == len(values)


def test_a_million_float32_errors_are_summed_without_loss_of_precision() -> None:
    test = ratings((1, 10, 4.1)).take(pa.array(np.zeros(1_000_000, np.int64)))
    found = scored(TRAIN, test, np.full(1_000_000, 4.0))
    assert found.model["rmse"] == pytest.approx(float(np.float32(4.1)) - 4, rel=1e-12)


def test_an_empty_test_part_says_to_raise_test_size() -> None:
    with pytest.raises(DataError, match=r"^the test part is empty .*3 ratings.*: raise test_size$"):
        scored(TRAIN, TRAIN.slice(0, 0), [])


def test_an_empty_training_part_says_to_lower_test_size() -> None:
    with pytest.raises(DataError, match=r"^the training part is empty .*: lower test_size$"):
        scored(TRAIN.slice(0, 0), TRAIN, [3, 3, 3])


def test_a_prediction_that_is_not_finite_is_named_with_its_ids() -> None:
    with pytest.raises(
        DataError, match=r"^2 of 3 predictions are not finite, the first is nan for user_id 1, movie_id 20:"
    ):
        scored(TRAIN, TRAIN, [3, math.nan, math.inf])


def test_parts_with_ids_of_different_types_are_refused() -> None:
    with pytest.raises(DataError, match="ids of type string"):
        scored(TRAIN, ratings(("1", "10", 3)), [3])
