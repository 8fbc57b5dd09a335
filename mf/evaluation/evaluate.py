"""A model on the test part, beside what baselines get there: how far its ratings are off, and how well it ranks."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mf.biases import BiasModel
from mf.errors import DataError
from mf.evaluation.accuracy import (
    CalibrationBin,
    CountBin,
    Distribution,
    RatingBin,
    Score,
    Unseen,
    by_count,
    by_rating,
    calibration,
    distribution,
    scores,
    unseen,
)
from mf.evaluation.bootstrap import Interval
from mf.evaluation.config import EvaluateConfig
from mf.evaluation.parts import Parts
from mf.evaluation.ranking import ExposureBin, Ranking, RankingScore, rankings
from mf.model_directory import TrainedModel
from mf.ratings.schema import MOVIE, USER

__all__ = [
    "CalibrationBin",
    "CountBin",
    "Distribution",
    "EvaluateConfig",
    "Evaluation",
    "ExposureBin",
    "Interval",
    "Ranking",
    "RankingScore",
    "RatingBin",
    "Score",
    "Unseen",
    "evaluate",
]


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found. "Baseline" alone is user + movie biases."""

    train_rows: int
    test_rows: int
    test_users: int
    model: Score
    global_mean: Score  # baseline: every prediction is the mean of the training ratings
    user_movie_bias: Score  # baseline: BiasModel, clipped
    rmse_difference: Interval | None  # of RMSE(model) - RMSE(user + movie biases) over the same draws of users
    unseen_users: Unseen
    unseen_movies: Unseen
    by_activity: tuple[CountBin, ...]  # deciles of the test part's users, the least active first; equal ones are one
    by_popularity: tuple[CountBin, ...]  # deciles of its movies, the least rated first; equal ones are one
    by_rating: tuple[RatingBin, ...]  # ascending
    calibration: tuple[CalibrationBin, ...]  # of the model, ascending
    baseline_calibration: tuple[CalibrationBin, ...]
    distribution: Distribution
    ranking: Ranking  # for users seen in training
    ranking_unseen_users: Ranking  # who get the order of the movies' biases
    exposure: tuple[ExposureBin, ...]  # deciles of the catalogue, the least rated first; empty without lists


def evaluate(
    train: pa.Table,
    test: pa.Table,
    model: TrainedModel,
    config: EvaluateConfig | None = None,
    validation: pa.Table | None = None,
) -> Evaluation:
    """Scores ``model`` on ``test`` beside the baselines fitted to ``train``, on the device that the model is on.

    Args:
        train: a table of ratings with ids of the same types as ``test``; what the model learned from.
        test: a table of ratings that the model has not seen.
        model: its predictions are scored as they are; the baselines are clipped to its rating range, too.
        config: the ranking and the intervals; the defaults when None.
        validation: what steered training. A user's list leaves out what the user has rated in ``train`` and in this.

    Raises:
        DataError: a part is empty, its ids are of other types, or a number of the model is not finite.
    """
    config = config or EvaluateConfig()
    parts = Parts.of(train, test, validation)
    predictions = model.predict(test[USER], test[MOVIE])
    _check(test, predictions)
    biases = BiasModel.fit(
        parts.users.train, parts.movies.train, parts.train_ratings, len(parts.users.seen), len(parts.movies.seen)
    )
    low, high = model.module.rating_min.item(), model.module.rating_max.item()
    actual, predicted = parts.test_ratings.astype(np.float64), predictions.astype(np.float64)
    baseline = np.clip(biases.predict(parts.users.test_rows, parts.movies.test_rows), low, high)
    mean = np.full(len(test), biases.mean)
    (of_model, of_mean, of_baseline), difference = scores(
        parts.users.test, actual, [predicted, mean, baseline], config.bootstrap, config.seed
    )
    seen, unseen_users, places = rankings(parts, model, biases.movie_bias, config)
    return Evaluation(
        train_rows=len(train),
        test_rows=len(test),
        test_users=len(parts.users.ids),
        model=of_model,
        global_mean=of_mean,
        user_movie_bias=of_baseline,
        rmse_difference=difference,
        unseen_users=unseen(parts.users, actual, predicted, baseline, mean),
        unseen_movies=unseen(parts.movies, actual, predicted, baseline, mean),
        by_activity=by_count(parts.users, actual, predicted, baseline),
        by_popularity=by_count(parts.movies, actual, predicted, baseline),
        by_rating=by_rating(actual, predicted, baseline),
        calibration=calibration(actual, predicted),
        baseline_calibration=calibration(actual, baseline),
        distribution=distribution(actual, predicted, baseline, low, high),
        ranking=seen,
        ranking_unseen_users=unseen_users,
        exposure=places,
    )


def _check(test: pa.Table, predictions: npt.NDArray[np.float32]) -> None:
    bad = np.flatnonzero(~np.isfinite(predictions))
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{len(bad):,} of {len(test):,} predictions are not finite, the first is {predictions[row]} for {USER} "
            f"{test[USER][row]}, {MOVIE} {test[MOVIE][row]}: the training diverged, train again with a lower lr"
        )
