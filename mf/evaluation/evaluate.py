"""A model's error on the test part, beside what two baselines get there, and where it errs."""

import json
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from mf.biases import BiasModel, Floats, Ints
from mf.errors import DataError
from mf.ratings.schema import MOVIE, RATING, USER
from mf.ratings.vocabulary import Vocabulary

MAX_RATING_BINS = 20


@dataclass(frozen=True)
class Score:
    """Errors over a set of test ratings, in rating units."""

    rmse: float  # root mean squared error
    mae: float  # mean absolute error


@dataclass(frozen=True)
class Unseen:
    """The test part's users, or movies, that have no rating in the training part."""

    ids: int  # distinct ids
    rows: int  # test ratings with one of them
    rmse: float | None  # of the model on those ratings; None when there are none


@dataclass(frozen=True)
class ActivityBin:
    """Users of the test part that are alike in how many ratings they have in the training part."""

    from_ratings: int  # the least active user's training ratings
    to_ratings: int  # the most active user's
    rows: int  # test ratings of these users
    rmse: float  # of the model
    baseline_rmse: float  # of user + movie biases


@dataclass(frozen=True)
class RatingBin:
    """What the model predicted where the actual rating was ``from_rating`` to ``to_rating`` (equal for one value)."""

    from_rating: float
    to_rating: float
    rows: int  # test ratings
    mean: float  # of the predictions
    p10: float  # their 10th percentile
    p90: float  # their 90th percentile


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found."""

    train_rows: int
    test_rows: int
    model: Score
    global_mean: Score  # baseline: every prediction is the mean of the training ratings
    user_movie_bias: Score  # baseline: BiasModel, clipped
    unseen_users: Unseen
    unseen_movies: Unseen
    by_activity: tuple[ActivityBin, ...]  # deciles of the test part's users, the least active first; equal ones are one
    by_rating: tuple[RatingBin, ...]  # ascending

    def to_json(self) -> str:
        """The fields as one JSON object."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)


def evaluate(
    train: pa.Table,
    test: pa.Table,
    predictions: npt.NDArray[np.float32],
    *,
    rating_min: float,
    rating_max: float,
) -> Evaluation:
    """Scores ``predictions`` for ``test`` beside the baselines fitted to ``train``.

    Args:
        train: a table of ratings with ids of the same types as ``test``; what the model learned from.
        test: a table of ratings that the model has not seen.
        predictions: float32[len(test)], the model's own, in the order of ``test``; scored as they are.
        rating_min: the baselines are clipped to ``rating_min`` … ``rating_max``, as the model is.
        rating_max: see ``rating_min``.

    Raises:
        DataError: a part is empty, or the predictions are not one finite number for each test rating.
    """
    _check(train, test, predictions)
    user_ids, train_users = Vocabulary.encode(train[USER])
    movie_ids, train_movies = Vocabulary.encode(train[MOVIE])
    bias_model = BiasModel.fit(train_users, train_movies, train[RATING].to_numpy(), len(user_ids), len(movie_ids))
    users, movies = user_ids.rows(test[USER]), movie_ids.rows(test[MOVIE])
    # In float64: scikit-learn would otherwise sum millions of squares in float32.
    actual, predicted = test[RATING].to_numpy().astype(np.float64), predictions.astype(np.float64)
    baseline = np.clip(bias_model.predict(users, movies), rating_min, rating_max)
    unseen_users = _unseen(test[USER], users, actual, predicted)

    # Row -1, an unseen user, reads the zero that is appended.
    ratings_of = np.append(np.bincount(train_users, minlength=len(user_ids)), 0)
    of_each_user = np.append(ratings_of[np.unique(users[users >= 0])], np.zeros(unseen_users.ids, np.int64))
    return Evaluation(
        train_rows=len(train),
        test_rows=len(test),
        model=_score(actual, predicted),
        global_mean=_score(actual, np.full(len(test), bias_model.mean)),
        user_movie_bias=_score(actual, baseline),
        unseen_users=unseen_users,
        unseen_movies=_unseen(test[MOVIE], movies, actual, predicted),
        by_activity=_by_activity(ratings_of[users], of_each_user, actual, predicted, baseline),
        by_rating=_by_rating(actual, predicted),
    )


def _check(train: pa.Table, test: pa.Table, predictions: npt.NDArray[np.float32]) -> None:
    if len(test) == 0:
        raise DataError(f"the test part is empty (the training part has {len(train):,} ratings): raise test_size")
    if len(train) == 0:
        raise DataError(f"the training part is empty (the test part has {len(test):,} ratings): lower test_size")
    if predictions.shape != (len(test),):
        raise DataError(
            f"predictions of shape {predictions.shape} for {len(test):,} test ratings: expected one for each, in the "
            "order of the test part"
        )
    bad = np.flatnonzero(~np.isfinite(predictions))
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{len(bad):,} of {len(test):,} predictions are not finite, the first is {predictions[row]} for {USER} "
            f"{test[USER][row]}, {MOVIE} {test[MOVIE][row]}: the training diverged, train again with a lower lr"
        )


def _score(actual: Floats, predicted: Floats) -> Score:
    return Score(
        float(root_mean_squared_error(actual, predicted)),
        float(mean_absolute_error(actual, predicted)),
    )


def _unseen(ids: pa.ChunkedArray, rows: Ints, actual: Floats, predicted: Floats) -> Unseen:
    unseen = rows < 0
    if not unseen.any():
        return Unseen(0, 0, None)
    return Unseen(
        ids=pc.count_distinct(ids.filter(pa.array(unseen))).as_py(),
        rows=int(unseen.sum()),
        rmse=_score(actual[unseen], predicted[unseen]).rmse,
    )


def _by_activity(
    activity: Ints, of_each_user: Ints, actual: Floats, predicted: Floats, baseline: Floats
) -> tuple[ActivityBin, ...]:
    """Bins by training ratings: ``activity`` of each test rating's user, ``of_each_user`` of each user once."""
    # Each edge is the most active user of its decile; users with equal counts stay together.
    edges = np.unique(np.quantile(of_each_user, np.arange(1, 11) / 10, method="inverted_cdf"))
    bins = np.searchsorted(edges, activity)
    found = []
    for i in range(len(edges)):
        here = bins == i
        found.append(
            ActivityBin(
                from_ratings=int(activity[here].min()),
                to_ratings=int(activity[here].max()),
                rows=int(here.sum()),
                rmse=_score(actual[here], predicted[here]).rmse,
                baseline_rmse=_score(actual[here], baseline[here]).rmse,
            )
        )
    return tuple(found)


def _by_rating(actual: Floats, predicted: Floats) -> tuple[RatingBin, ...]:
    """One bin for each actual value or, when there are more than ``MAX_RATING_BINS``, bins of equal width."""
    values = np.unique(actual)
    if len(values) > MAX_RATING_BINS:
        bins = np.digitize(actual, np.linspace(values[0], values[-1], MAX_RATING_BINS + 1)[1:-1])
    else:
        bins = np.searchsorted(values, actual)
    found = []
    for i in np.unique(bins):
        here = bins == i
        p10, p90 = np.percentile(predicted[here], [10, 90])
        found.append(
            RatingBin(
                from_rating=float(actual[here].min()),
                to_rating=float(actual[here].max()),
                rows=int(here.sum()),
                mean=float(predicted[here].mean()),
                p10=float(p10),
                p90=float(p90),
            )
        )
    return tuple(found)
