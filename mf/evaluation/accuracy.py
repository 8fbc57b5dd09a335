"""Errors of predicted ratings beside two baselines: overall, per group of ratings, calibration, distribution."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from mf.biases import Floats, Ints
from mf.evaluation.bootstrap import Interval, bootstrap_ratios, percentile_interval, sum_per_user
from mf.evaluation.encoded import EncodedIds
from mf.evaluation.metrics import RATING_METRICS, RMSE, Scores

MAX_RATING_BINS = 20


@dataclass(frozen=True)
class ColdStart:
    """Test ratings of users, or of movies, without a training rating."""

    ids: int  # distinct users, or movies
    rows: int  # their test ratings
    rmse: float | None  # of the model on these ratings; None without any, as are the next two
    baseline_rmse: float | None = None  # of user + movie biases
    global_mean_rmse: float | None = None

    @classmethod
    def counted(cls, ids: EncodedIds) -> Self:
        """The counts alone, without predictions."""
        return cls(int((ids.train_counts == 0).sum()), int(ids.is_cold.sum()), None)


@dataclass(frozen=True)
class CountBin:
    """Test ratings of users, or of movies, with similar numbers of training ratings."""

    from_ratings: int  # least number of training ratings in this bin
    to_ratings: int  # largest number
    rows: int  # test ratings
    rmse: float  # of the model
    baseline_rmse: float  # of user + movie biases


@dataclass(frozen=True)
class RatingBin:
    """Predictions for test ratings of ``from_rating`` to ``to_rating`` (equal where the bin is one value)."""

    from_rating: float
    to_rating: float
    rows: int  # test ratings
    mean: float  # of the model's predictions
    p10: float  # their 10th percentile
    p90: float  # their 90th percentile
    rmse: float  # of the model
    baseline_mean: float  # of the predictions of user + movie biases
    baseline_rmse: float


@dataclass(frozen=True)
class CalibrationBin:
    """Test ratings with similar predictions: a calibrated model's predictions are right on average in every bin (the
    reliability diagram of Murphy and Winkler, 1977, for a mean in place of a probability)."""

    from_predicted: float
    to_predicted: float
    rows: int  # test ratings
    predicted: float  # mean
    actual: float  # mean


@dataclass(frozen=True)
class Distribution:
    """Histograms of actual and predicted ratings with the same bins: ``edges[i]`` ≤ rating < ``edges[i + 1]``; the
    last bin includes its upper edge."""

    edges: tuple[float, ...]
    actual: tuple[int, ...]
    predicted: tuple[int, ...]
    baseline: tuple[int, ...]  # predicted by user + movie biases


def score_ratings(
    users: Ints, actual: Floats, predictions: list[Floats], samples: int, seed: int
) -> tuple[list[Scores], Interval | None]:
    """The rating metrics of several predictors, all intervals from the same draws of users (Herlocker et al.,
    "Evaluating Collaborative Filtering Recommender Systems", 2004, section 4.1).

    Args:
        users: int[N], the user of each rating, 0 … users - 1, each of whom occurs.
        actual: float64[N].
        predictions: float64[N] per predictor; scored unchanged.
        samples: bootstrap samples; 0: no intervals.
        seed: seed of the bootstrap.

    Returns:
        The scores of each predictor, and the interval of the first one's RMSE minus the last one's.
    """
    n = len(RATING_METRICS)
    losses = [metric.loss(predicted - actual) for predicted in predictions for metric in RATING_METRICS]
    weights = sum_per_user(users)
    sums = np.column_stack([sum_per_user(users, loss) for loss in losses])
    mean_losses = bootstrap_ratios(sums, weights, samples, seed)
    draws = [RATING_METRICS[i % n].outer(mean_losses[:, i]) for i in range(len(losses))]
    scores = [
        Scores(
            {metric.name: metric.of(actual, predicted) for metric in RATING_METRICS},
            {
                metric.name: percentile_interval(draws[i * n + j], len(weights))
                for j, metric in enumerate(RATING_METRICS)
            },
        )
        for i, predicted in enumerate(predictions)
    ]
    first, last = (i * n + RATING_METRICS.index(RMSE) for i in (0, len(predictions) - 1))
    return scores, percentile_interval(draws[first] - draws[last], len(weights))


def cold_start(ids: EncodedIds, actual: Floats, predicted: Floats, baseline: Floats, global_mean: Floats) -> ColdStart:
    """RMSE on the ratings of users, or of movies, without a training rating."""
    cold = ids.is_cold
    counted = ColdStart.counted(ids)
    if not cold.any():
        return counted
    rmses = [RMSE.of(actual[cold], predictions[cold]) for predictions in (predicted, baseline, global_mean)]
    return ColdStart(counted.ids, counted.rows, *rmses)


def deciles(values: Floats | Ints) -> Floats | Ints:
    """The highest value of each tenth of ``values``, ascending; at most ten, since equal values stay together."""
    return np.unique(np.quantile(values, np.arange(1, 11) / 10, method="inverted_cdf"))


def by_count(ids: EncodedIds, actual: Floats, predicted: Floats, baseline: Floats) -> tuple[CountBin, ...]:
    """Deciles of the test part's users, or of its movies, by number of training ratings."""
    counts = ids.train_counts[ids.test_index]
    bins = np.searchsorted(deciles(ids.train_counts), counts)
    return tuple(
        CountBin(
            from_ratings=int(counts[here].min()),
            to_ratings=int(counts[here].max()),
            rows=int(here.sum()),
            rmse=RMSE.of(actual[here], predicted[here]),
            baseline_rmse=RMSE.of(actual[here], baseline[here]),
        )
        for here in _masks(bins)
    )


def by_rating(actual: Floats, predicted: Floats, baseline: Floats) -> tuple[RatingBin, ...]:
    """One bin per actual value or, with more than ``MAX_RATING_BINS`` values, bins of equal width."""
    values = np.unique(actual)
    if len(values) > MAX_RATING_BINS:
        bins = np.digitize(actual, np.linspace(values[0], values[-1], MAX_RATING_BINS + 1)[1:-1])
    else:
        bins = np.searchsorted(values, actual)
    return tuple(_rating_bin(actual[here], predicted[here], baseline[here]) for here in _masks(bins))


def _rating_bin(actual: Floats, predicted: Floats, baseline: Floats) -> RatingBin:
    p10, p90 = np.percentile(predicted, [10, 90])
    return RatingBin(
        from_rating=float(actual.min()),
        to_rating=float(actual.max()),
        rows=len(actual),
        mean=float(predicted.mean()),
        p10=float(p10),
        p90=float(p90),
        rmse=RMSE.of(actual, predicted),
        baseline_mean=float(baseline.mean()),
        baseline_rmse=RMSE.of(actual, baseline),
    )


def calibration(actual: Floats, predicted: Floats) -> tuple[CalibrationBin, ...]:
    """Mean prediction and mean actual rating per decile of the predictions."""
    bins = np.searchsorted(deciles(predicted), predicted)
    return tuple(
        CalibrationBin(
            from_predicted=float(predicted[here].min()),
            to_predicted=float(predicted[here].max()),
            rows=int(here.sum()),
            predicted=float(predicted[here].mean()),
            actual=float(actual[here].mean()),
        )
        for here in _masks(bins)
    )


def distribution(
    actual: Floats, predicted: Floats, baseline: Floats, rating_min: float, rating_max: float
) -> Distribution:
    """One bin around each actual value or, with more than ``MAX_RATING_BINS`` values, bins of equal width; all
    predictions lie between ``rating_min`` and ``rating_max``."""
    values = np.unique(np.concatenate([actual, [rating_min, rating_max]]))
    if len(values) > MAX_RATING_BINS:
        edges = np.linspace(values[0], values[-1], MAX_RATING_BINS + 1)
    elif len(values) == 1:
        edges = values[0] + np.array([-0.5, 0.5])
    else:
        between = (values[1:] + values[:-1]) / 2
        edges = np.concatenate([[2 * values[0] - between[0]], between, [2 * values[-1] - between[-1]]])
    counts = (tuple(np.histogram(part, edges)[0].tolist()) for part in (actual, predicted, baseline))
    return Distribution(tuple(edges.tolist()), *counts)


def _masks(bins: npt.NDArray[np.intp]) -> list[npt.NDArray[np.bool_]]:
    """bool[N] per bin that is not empty, in the order of the bins."""
    return [bins == i for i in np.unique(bins)]
