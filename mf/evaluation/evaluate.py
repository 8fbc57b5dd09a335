"""Evaluation of a model on the test part, beside baselines."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mf.biases import Floats
from mf.errors import DataError
from mf.evaluation.accuracy import (
    CalibrationBin,
    ColdStart,
    CountBin,
    Distribution,
    RatingBin,
    by_count,
    by_rating,
    calibration,
    cold_start,
    distribution,
    score_ratings,
)
from mf.evaluation.bootstrap import Interval
from mf.evaluation.config import EvaluateConfig
from mf.evaluation.encoded import EncodedRatings, Part, scored_part
from mf.evaluation.metrics import METRICS, RATING_METRICS, Scores
from mf.evaluation.ranking import ColdStartCurve, ExposureBin, PublishedLists, Ranking, score_lists
from mf.model_directory import TrainedModel
from mf.ratings.batches import Batches
from mf.ratings.schema import MOVIE, RATING, USER, has_ratings

LABELS = {
    "model": "this model",
    "predicted_rating": "by predicted rating",
    "user_movie_bias": "user + movie biases",
    "global_mean": "global mean",
    "popularity": "popularity",
    "recent_popularity": "recent popularity",
}


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model and of the baselines; "baseline" alone means user + movie biases."""

    train_rows: int
    test_rows: int  # scored
    test_users: int
    model: Scores  # rating metrics, as are the next two; none of the three has any where the data are clicks
    global_mean: Scores  # baseline: every prediction is the mean of the training ratings
    user_movie_bias: Scores  # baseline: BiasModel, clipped
    rmse_difference: Interval | None  # of RMSE(model) - RMSE(user + movie biases) over the same draws of users
    unseen_users: ColdStart
    unseen_movies: ColdStart
    by_activity: tuple[CountBin, ...]  # deciles of the test part's users, the least active first
    by_popularity: tuple[CountBin, ...]  # deciles of its movies, the least rated first
    by_rating: tuple[RatingBin, ...]  # ascending
    calibration: tuple[CalibrationBin, ...]  # of the model, ascending
    baseline_calibration: tuple[CalibrationBin, ...]
    distribution: Distribution | None  # None for clicks
    ranking: Ranking  # list metrics for users seen in training
    ranking_unseen_users: Ranking  # for cold-start users, whose lists are ordered by movie bias
    exposure: tuple[ExposureBin, ...]  # deciles of the catalogue, the least rated first; empty without lists
    cold_start_curve: ColdStartCurve | None = None  # None without a ranking model
    test_rows_drawn_from: int = 0  # test ratings, of which ``test_rows`` are those of a random sample of users
    constant: tuple[str, ...] = ()  # which of predicted ratings and ranking scores are the same for all test ratings

    @property
    def has_ratings(self) -> bool:
        """Whether ratings were predicted; clicks, plays and purchases are scored by lists alone."""
        return bool(self.model.values)

    @property
    def rows_are(self) -> str:
        """What a row of the parts is: ``ratings`` or ``clicks``."""
        return "ratings" if self.has_ratings else "clicks"

    @property
    def of_all(self) -> str:
        """``of 98,000,000 `` where a sample of the test part is scored."""
        return f"of {self.test_rows_drawn_from:,} " if self.test_rows < self.test_rows_drawn_from else ""

    def scores(self) -> dict[str, Scores]:
        """Rating and list metrics together, by the name of the model or baseline (``LABELS``); the model first."""
        ratings = {"model": self.model, "user_movie_bias": self.user_movie_bias, "global_mean": self.global_mean}
        lists = self.ranking.scores()
        return {name: ratings.get(name, Scores()) | lists.get(name, Scores()) for name in LABELS}

    def headline(self) -> str:
        """The lists beside popularity, where there is a ranking model; then the first metric that has a figure, and how
        much better or worse the baseline is."""
        lists = f"{self.ranking.line()}; " if self.ranking.has_ranking_model else ""
        scores = self.scores()
        metric = next((metric for metric in METRICS if scores["model"].get(metric.name) is not None), None)
        if metric is None:
            return f"{lists}no metric could be computed: {self.ranking.reason}"
        value, baseline = scores["model"][metric.name], scores[metric.baseline][metric.name]
        gain = metric.gain(value, baseline)
        difference = f"{metric.text(abs(gain))} {'better' if gain > 0 else 'worse'} than" if gain else "no better than"
        on = (
            f"on {self.test_rows:,} {self.of_all}test {self.rows_are}"
            if metric in RATING_METRICS
            else f"for {self.ranking.users:,} users"
        )
        return (
            f"{lists}{metric.heading(self.ranking.k)} {metric.text(value)} {on}: {difference} "
            f"{LABELS[metric.baseline]} ({metric.text(baseline)})"
        )

    def log_line(self) -> str:
        """Every metric of the model, its baseline in brackets: ``RMSE 0.8412 (user + movie biases 0.8683), …``."""
        scores = self.scores()
        return ", ".join(
            f"{metric.heading(self.ranking.k)} {metric.text(scores['model'][metric.name])} "
            f"({LABELS[metric.baseline]} {metric.text(scores[metric.baseline].get(metric.name))})"
            for metric in METRICS
            if scores["model"].get(metric.name) is not None
        )


def evaluate(
    train: Part,
    test: Part,
    model: TrainedModel,
    config: EvaluateConfig | None = None,
    validation: Part | None = None,
) -> Evaluation:
    """As ``evaluate_with_lists``, without the lists."""
    return evaluate_with_lists(train, test, model, config, validation)[0]


def evaluate_with_lists(
    train: Part,
    test: Part,
    model: TrainedModel,
    config: EvaluateConfig | None = None,
    validation: Part | None = None,
    *,
    drawn_from: int = 0,
) -> tuple[Evaluation, PublishedLists | None]:
    """Scores ``model`` on ``test`` beside baselines fitted to ``train``, on the model's device.

    A model of clicks is scored by its lists alone, in which every test pair is relevant: ratings of the parts, and
    ``config.relevance_threshold``, are not looked at. Of a large test part a sample is scored (``scored_part``). Memory
    does not grow with the other parts: they are read in batches.

    Args:
        train: the ratings that the model was trained on; the ranking model on ``validation`` too.
        test: ratings that it was not trained on, with ids of the same types.
        model: its predictions are scored unchanged; the baselines are clipped to its rating range.
        config: options; default: ``EvaluateConfig()``.
        validation: ratings that steered the training; a user's list leaves out the movies that the user has rated in
            ``train`` or here.
        drawn_from: the number of test ratings where ``test`` is a sample of them already.

    Returns:
        The evaluation, and the lists of the ranking model; ``None`` without one.

    Raises:
        DataError: a part is empty, ids are of different types, the parts have no ratings to compare the model's with,
            or a number of the model is not finite.
    """
    config = config or EvaluateConfig()
    drawn_from, test = drawn_from or len(Batches(test)), scored_part(test, config.seed)
    if model.module is None:
        train, test = Batches(train).clicks(), _clicks(test)
        validation = None if validation is None else Batches(validation).clicks()
    ratings = EncodedRatings.of(train, test, validation)
    if model.module and not ratings.has_ratings:
        raise DataError(f"the test part has no ratings to score model {model.run_id} on, which predicts ratings")
    accuracy, movie_bias = _accuracy(ratings, test, model, config) if model.module else (_no_accuracy(ratings), None)
    constant = accuracy.pop("constant")
    lists = score_lists(ratings, model, movie_bias, config)
    evaluation = Evaluation(
        train_rows=len(ratings.train),
        test_rows=len(test),
        test_rows_drawn_from=drawn_from,
        test_users=len(ratings.users.test_ids),
        **accuracy,
        ranking=lists.seen,
        ranking_unseen_users=lists.unseen,
        exposure=lists.exposure,
        cold_start_curve=lists.curve,
        constant=constant + _constant_scores(model),
    )
    return evaluation, lists.published


def _constant_scores(model: TrainedModel) -> tuple[str, ...]:
    if not model.ranking:
        return ()
    lists = model.ranking.model
    constant = len(lists.bias) > 1 and not lists.embedding.any() and not np.ptp(lists.bias)
    return ("ranking scores",) if constant else ()


def _clicks(part: pa.Table) -> pa.Table:
    """The part without ratings."""
    return part.drop_columns([RATING]) if has_ratings(part) else part


def _accuracy(
    ratings: EncodedRatings, test: pa.Table, model: TrainedModel, config: EvaluateConfig
) -> tuple[dict[str, Any], Floats]:
    """The fields of ``Evaluation`` about predicted ratings, and float64[training movies], the baseline's b_m."""
    users, movies = ratings.users, ratings.movies
    predictions = model.predict(test[USER], test[MOVIE])
    _check_finite(test, predictions)
    biases = ratings.biases()
    module = model.star_model()
    low, high = module.rating_min.item(), module.rating_max.item()
    actual, predicted = ratings.test_ratings.astype(np.float64), predictions.astype(np.float64)
    baseline = np.clip(biases.predict(users.test_index, ratings.movie_rows), low, high)
    mean = np.full(len(test), biases.mean)
    (model_scores, mean_scores, baseline_scores), difference = score_ratings(
        users.test_index, actual, [predicted, mean, baseline], config.bootstrap, config.seed
    )
    fields = {
        "model": model_scores,
        "global_mean": mean_scores,
        "user_movie_bias": baseline_scores,
        "rmse_difference": difference,
        "unseen_users": cold_start(users, actual, predicted, baseline, mean),
        "unseen_movies": cold_start(movies, actual, predicted, baseline, mean),
        "by_activity": by_count(users, actual, predicted, baseline),
        "by_popularity": by_count(movies, actual, predicted, baseline),
        "by_rating": by_rating(actual, predicted, baseline),
        "calibration": calibration(actual, predicted),
        "baseline_calibration": calibration(actual, baseline),
        "distribution": distribution(actual, predicted, baseline, low, high),
        "constant": ("predicted ratings",) if len(test) > 1 and not np.ptp(predictions) else (),
    }
    return fields, biases.movie_bias


def _no_accuracy(ratings: EncodedRatings) -> dict[str, Any]:
    """The fields of ``Evaluation`` about predicted ratings where there are none."""
    bins = ("by_activity", "by_popularity", "by_rating", "calibration", "baseline_calibration")
    return {
        **dict.fromkeys(("model", "global_mean", "user_movie_bias"), Scores()),
        **dict.fromkeys(bins, ()),
        "rmse_difference": None,
        "distribution": None,
        "constant": (),
        "unseen_users": ColdStart.counted(ratings.users),
        "unseen_movies": ColdStart.counted(ratings.movies),
    }


def _check_finite(test: pa.Table, predictions: npt.NDArray[np.float32]) -> None:
    bad = np.flatnonzero(~np.isfinite(predictions))
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{len(bad):,} of {len(test):,} predictions are not finite, the first is {predictions[row]} for {USER} "
            f"{test[USER][row]}, {MOVIE} {test[MOVIE][row]}: the training diverged, train again with a lower lr"
        )
