"""How far predicted ratings are from the actual ones, beside two baselines: overall and where the errors lie."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from mf.biases import Floats, Ints
from mf.evaluation.bootstrap import Interval, interval, per_user, resampled
from mf.evaluation.encoded import Side

MAX_RATING_BINS = 20


@dataclass(frozen=True)
class Score:
    """Errors over a set of test ratings, in rating units (Herlocker et al., "Evaluating Collaborative Filtering
    Recommender Systems", 2004, section 4.1)."""

    rmse: float  # root mean squared error
    mae: float  # mean absolute error
    rmse_interval: Interval | None = None  # None with one user alone, and without bootstrap
    mae_interval: Interval | None = None


@dataclass(frozen=True)
class Unseen:
    """The test part's users, or movies, that have no rating in the training part (cold start)."""

    ids: int  # distinct ids
    rows: int  # test ratings with one of them
    rmse: float | None  # of the model on those ratings; None when there are none, as what follows
    baseline_rmse: float | None = None  # of user + movie biases
    global_mean_rmse: float | None = None


@dataclass(frozen=True)
class CountBin:
    """Test ratings of users, or of movies, that are alike in how many ratings they have in the training part."""

    from_ratings: int  # training ratings of the one that has least
    to_ratings: int  # and of the one that has most
    rows: int  # test ratings
    rmse: float  # of the model
    baseline_rmse: float  # of user + movie biases


@dataclass(frozen=True)
class RatingBin:
    """What was predicted where the actual rating was ``from_rating`` to ``to_rating`` (equal for one value)."""

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
    """Test ratings that were predicted alike: calibrated predictions are right on average wherever they lie (the
    reliability diagram, Murphy and Winkler 1977, for a mean in place of a probability)."""

    from_predicted: float
    to_predicted: float
    rows: int  # test ratings
    predicted: float  # mean
    actual: float  # mean


@dataclass(frozen=True)
class Distribution:
    """Test ratings and their predictions, counted in the same bins: ``edges[i]`` ≤ rating < ``edges[i + 1]``, the last
    edge included."""

    edges: tuple[float, ...]
    actual: tuple[int, ...]
    predicted: tuple[int, ...]
    baseline: tuple[int, ...]  # predicted by user + movie biases


def scores(
    users: Ints, actual: Floats, predictions: list[Floats], samples: int, seed: int
) -> tuple[list[Score], Interval | None]:
    """The errors of several predictions, and the interval of the first one's RMSE less the last one's, all from the
    same draws of users.

    Args:
        users: the user of each rating, 0 … users - 1, each of which occurs.
        predictions: float64[N] each; scored as they are.
        samples: draws for the intervals; 0: none.
        seed: of the draws.
    """
    errors = [predicted - actual for predicted in predictions]
    sums = np.column_stack([per_user(users, part) for error in errors for part in (error**2, np.abs(error))])
    weights = per_user(users)
    draws = resampled(sums, weights, samples, seed)
    rmses, maes = np.sqrt(draws[:, ::2]), draws[:, 1::2]
    found = [
        Score(
            rmse(actual, predicted),
            float(mean_absolute_error(actual, predicted)),
            interval(rmses[:, i], len(weights)),
            interval(maes[:, i], len(weights)),
        )
        for i, predicted in enumerate(predictions)
    ]
    return found, interval(rmses[:, 0] - rmses[:, -1], len(weights))


def rmse(actual: Floats, predicted: Floats) -> float:
    """Root mean squared error. In float64: scikit-learn would otherwise sum millions of squares in float32."""
    return float(root_mean_squared_error(actual, predicted))


def unseen(side: Side, actual: Floats, predicted: Floats, baseline: Floats, global_mean: Floats) -> Unseen:
    """Of the users, or of the movies."""
    here = side.test_rows < 0
    if not here.any():
        return Unseen(0, 0, None)
    found = [rmse(actual[here], predictions[here]) for predictions in (predicted, baseline, global_mean)]
    return Unseen(int((side.rows < 0).sum()), int(here.sum()), *found)


def deciles(values: Floats | Ints) -> Floats | Ints:
    """The highest value of each tenth of ``values``, ascending; equal values stay together, so that there may be fewer
    than ten."""
    return np.unique(np.quantile(values, np.arange(1, 11) / 10, method="inverted_cdf"))


def by_count(side: Side, actual: Floats, predicted: Floats, baseline: Floats) -> tuple[CountBin, ...]:
    """Deciles of the test part's users, or of its movies, by training ratings."""
    of_row = side.ratings[side.test]
    bins = np.searchsorted(deciles(side.ratings), of_row)
    return tuple(
        CountBin(
            from_ratings=int(of_row[here].min()),
            to_ratings=int(of_row[here].max()),
            rows=int(here.sum()),
            rmse=rmse(actual[here], predicted[here]),
            baseline_rmse=rmse(actual[here], baseline[here]),
        )
        for here in _members(bins)
    )


def by_rating(actual: Floats, predicted: Floats, baseline: Floats) -> tuple[RatingBin, ...]:
    """One bin for each actual value or, when there are more than ``MAX_RATING_BINS``, bins of equal width."""
    values = np.unique(actual)
    if len(values) > MAX_RATING_BINS:
        bins = np.digitize(actual, np.linspace(values[0], values[-1], MAX_RATING_BINS + 1)[1:-1])
    else:
        bins = np.searchsorted(values, actual)
    found = []
    for here in _members(bins):
        p10, p90 = np.percentile(predicted[here], [10, 90])
        found.append(
            RatingBin(
                from_rating=float(actual[here].min()),
                to_rating=float(actual[here].max()),
                rows=int(here.sum()),
                mean=float(predicted[here].mean()),
                p10=float(p10),
                p90=float(p90),
                rmse=rmse(actual[here], predicted[here]),
                baseline_mean=float(baseline[here].mean()),
                baseline_rmse=rmse(actual[here], baseline[here]),
            )
        )
    return tuple(found)


def calibration(actual: Floats, predicted: Floats) -> tuple[CalibrationBin, ...]:
    """Deciles by predicted rating."""
    bins = np.searchsorted(deciles(predicted), predicted)
    return tuple(
        CalibrationBin(
            from_predicted=float(predicted[here].min()),
            to_predicted=float(predicted[here].max()),
            rows=int(here.sum()),
            predicted=float(predicted[here].mean()),
            actual=float(actual[here].mean()),
        )
        for here in _members(bins)
    )


def distribution(
    actual: Floats, predicted: Floats, baseline: Floats, rating_min: float, rating_max: float
) -> Distribution:
    """Bins around each actual value or, when there are more than ``MAX_RATING_BINS``, of equal width; all predictions
    lie between ``rating_min`` and ``rating_max``."""
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


def _members(bins: npt.NDArray[np.intp]) -> list[npt.NDArray[np.bool_]]:
    """Which rows are in each bin that has some, in the order of the bins."""
    return [bins == i for i in np.unique(bins)]
