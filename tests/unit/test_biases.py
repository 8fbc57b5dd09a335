import numpy as np
import pytest

from mf.biases import BiasModel

USERS, MOVIES = np.array([0, 0, 1]), np.array([0, 1, 0])
RATINGS = np.array([5, 3, 1], np.float32)


def test_damped_biases_are_those_computed_by_hand() -> None:
    model = BiasModel.fit(USERS, MOVIES, RATINGS, n_users=2, n_movies=2, damping=1)
    assert model.mean == 3
    # Movie 0 was rated 2 above and 2 below the mean, movie 1 at the mean.
    assert model.movie_bias.tolist() == [0, 0]
    assert model.user_bias.tolist() == [(2 + 0) / (2 + 1), -2 / (1 + 1)]


def test_user_biases_are_what_the_movie_biases_leave() -> None:
    model = BiasModel.fit(np.array([0, 1]), np.array([0, 1]), np.array([5, 1], np.float32), 2, 2, damping=1)
    assert model.movie_bias.tolist() == [1, -1]
    assert model.user_bias.tolist() == [0.5, -0.5]


def test_an_unseen_user_or_movie_has_bias_zero() -> None:
    model = BiasModel(3.0, user_bias=np.array([0.5, -1.0]), movie_bias=np.array([0.25]))
    predicted = model.predict(np.array([0, -1, 1, -1]), np.array([0, 0, -1, -1]))
    assert predicted.tolist() == [3.75, 3.25, 2.0, 3.0]


def test_predictions_are_not_clipped() -> None:
    model = BiasModel(4.5, user_bias=np.array([1.0]), movie_bias=np.array([1.0]))
    assert model.predict(np.array([0]), np.array([0])).tolist() == [6.5]


def test_a_row_without_ratings_has_bias_zero_even_undamped() -> None:
    model = BiasModel.fit(USERS, MOVIES, RATINGS, n_users=3, n_movies=3, damping=0)
    assert (model.user_bias[2], model.movie_bias[2]) == (0, 0)


def test_many_ratings_recover_planted_biases() -> None:
    rng = np.random.default_rng(0)
    user_bias, movie_bias = rng.normal(0, 0.5, 300), rng.normal(0, 0.5, 200)
    users, movies = rng.integers(0, 300, 60_000), rng.integers(0, 200, 60_000)
    ratings = (3.5 + user_bias[users] + movie_bias[movies] + rng.normal(0, 0.3, 60_000)).astype(np.float32)
    model = BiasModel.fit(users, movies, ratings, 300, 200)
    error = model.predict(users, movies) - ratings
    assert np.sqrt(np.mean(error**2)) == pytest.approx(0.3, abs=0.02)
