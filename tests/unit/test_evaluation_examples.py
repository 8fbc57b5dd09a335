from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mf.evaluation.examples import Movie, examples
from mf.model import MatrixFactorization
from mf.model_directory import TrainedModel, TrainedRanking
from mf.ranking import RankingModel
from mf.ratings.vocabulary import Vocabulary


def ratings(*rows: tuple[Any, Any, float]) -> pa.Table:
    users, movies, values = zip(*rows, strict=True)
    return pa.table({"user_id": users, "movie_id": movies, "rating": pa.array(values, pa.float32())})


def model(train: pa.Table, movie_bias: dict[int, float]) -> TrainedModel:
    """Predicts 3 + the movie's bias, between 1 and 5."""
    users, movies = Vocabulary.of(train["user_id"]), Vocabulary.of(train["movie_id"])
    module = MatrixFactorization(len(users), len(movies), 1, rating_min=1, rating_max=5, mu=3)
    with torch.no_grad():
        for row, movie in enumerate(movies.ids.to_pylist()):
            module.movie_bias.weight[row] = movie_bias.get(movie, 0.0)
    return TrainedModel(module, users, movies, "run", "none", {}, {})


TRAIN = ratings(("ann", 1, 2), ("ann", 2, 5), ("bob", 1, 4), ("bob", 3, 4), ("bob", 4, 1), ("bob", 5, 3), ("eve", 6, 5))
VALIDATION = ratings(("ann", 3, 4))
TEST = ratings(("ann", 5, 1.5), ("new", 1, 3), ("ann", 77, 4))
MODEL = model(TRAIN, {3: 1.9, 4: 2.5, 5: 3.5, 6: -1})


def test_recommended_movies_are_unrated_and_ordered_by_unclipped_prediction() -> None:
    (ann,) = examples(TRAIN, VALIDATION, TEST, MODEL, {"5": "Five"})
    # 3, which the validation part has, is left out; 5 and 4 are both predicted 5, and 5 is ahead before clipping.
    assert ann.recommended == (Movie(5, "Five", 1.5, 5), Movie(4, None, None, 5), Movie(6, None, None, 2))


def test_with_a_ranking_model_recommended_movies_are_in_its_order() -> None:
    arrays = [
        np.array(part, np.float32) for part in ([0, 0, 0, 0.3, 0, 0.2, 0], *[[[0], [0], [0], [0], [1], [0], [0]]] * 3)
    ]
    fitted = RankingModel(*arrays, 3.0, 1.0, 0.5, 1.0, 1, 0.0, 4.0)
    movies = Vocabulary(pa.array([1, 2, 3, 4, 5, 6, 7]))
    ranking = TrainedRanking(fitted, MODEL.users, movies, np.array([[1.0], [0], [0]], np.float32), {})
    (ann,) = examples(TRAIN, VALIDATION, TEST, replace(MODEL, ranking=ranking), {})
    # Movie 7, which the star model does not know, comes last.
    assert [(movie.movie_id, movie.predicted) for movie in ann.recommended] == [(5, 5), (4, 5), (6, 2), (7, 3)]


def test_the_best_rated_movies_are_from_training_and_validation() -> None:
    (ann,) = examples(TRAIN, VALIDATION, TEST, MODEL, {"2": "Two"})
    assert (ann.user_id, ann.ratings) == ("ann", 3)
    assert [(movie.movie_id, movie.title, movie.actual) for movie in ann.best] == [
        (2, "Two", 5), (3, None, 4), (1, None, 2),
    ]  # fmt: skip
    assert [round(movie.predicted, 4) for movie in ann.best] == [3, 4.9, 3]


def test_of_equal_ratings_the_newest_comes_first() -> None:
    times = pa.array([10, 30, None, 20], pa.timestamp("us", tz="UTC"))
    train = ratings((1, 1, 5), (1, 2, 5), (1, 3, 5), (1, 4, 5)).append_column("rated_at", times)
    (user,) = examples(train, train[:0], train[:1], model(train, {}), {})
    assert [movie.movie_id for movie in user.best] == [2, 4, 1, 3]
    assert user.recommended == ()


def test_users_go_from_light_to_heavy_whatever_the_order_of_the_rows() -> None:
    train = ratings(*((user, movie, 3) for user in range(1, 12) for movie in range(user)))
    test = ratings(*((user, 99, 3) for user in (11, 3, 1, 2, 4, 5, 6, 7, 8, 9, 10, 12)))
    fitted = model(train, {})
    found = examples(train, train[:0], test, fitted, {})
    assert [(user.user_id, user.ratings) for user in found] == [(2, 2), (6, 6), (10, 10)]
    shuffled = train.take(list(reversed(range(len(train)))))
    assert examples(shuffled, train[:0], test, fitted, {}) == found


def test_without_a_user_in_both_parts_there_is_no_example() -> None:
    assert examples(TRAIN, VALIDATION, ratings(("new", 1, 3)), MODEL, {}) == ()
