"""What a fitted ranking model answers: user vectors, lists, reasons, recency."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from mf.errors import DataError
from mf.ranking import Interactions, RankingModel
from mf.ranking.recency import recency_weights

MOVIES, FACTORS = 12_000, 8


def model(movies: int = MOVIES, seed: int = 0) -> RankingModel:
    rng = np.random.default_rng(seed)
    tables = (rng.normal(0, 1, (movies, FACTORS)).astype(np.float32) for _ in range(3))
    return RankingModel(
        rng.normal(0, 1, movies).astype(np.float32), *tables, mu=3.5, sd=1.1, rho=0.5, regularization=1.0,
        teacher_rank=8, energy_beyond=0.1, relevance_threshold=4.0,
    )  # fmt: skip


def busy_user(ratings: int) -> tuple[Interactions, np.ndarray, np.ndarray]:
    """A user with so many ratings, between two with none, and one with a single rating."""
    rng = np.random.default_rng(1)
    movies = rng.choice(MOVIES, ratings, replace=False)
    stars = rng.integers(1, 11, ratings) / 2
    users = np.r_[np.full(ratings, 1), 3]
    given = Interactions(
        torch.tensor(users), torch.tensor(np.r_[movies, 7]), torch.tensor(np.r_[stars, 2.0]).float(), 4, MOVIES
    )
    return given, movies, stars


def exact(m: RankingModel, movies: np.ndarray, stars: np.ndarray) -> np.ndarray:
    like = 0.5 * (stars - 3.5) / 1.1
    return (m.history[movies].astype(np.float64) + like[:, None] * m.liking[movies]).sum(0)


@pytest.mark.parametrize("ratings", [1, 127, 128, 129, 10_000])
def test_vectors_of_all_users_are_the_exact_sums(ratings: int) -> None:
    m = model()
    given, movies, stars = busy_user(ratings)
    found = m.user_vectors(given)
    wanted = exact(m, movies, stars)
    assert np.abs(found[1] - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert np.abs(m.user_vector(movies, stars) - wanted).max() < 1e-6 * np.abs(wanted).max()
    assert not found[[0, 2]].any()
    assert np.allclose(found[3], m.user_vector([7], [2.0]), rtol=1e-6)


def test_a_cancelling_sum_of_ten_thousand_ratings_keeps_five_digits() -> None:
    """Large terms that nearly cancel: added up in float32 one after another they would keep two digits."""
    m = model()
    given, movies, stars = busy_user(10_000)
    history = m.history.copy()
    history[: MOVIES // 2] += 30
    history[MOVIES // 2 :] -= 30
    m = replace(m, history=history)
    wanted = exact(m, movies, stars)
    assert np.abs(m.user_vectors(given)[1] - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert np.abs(m.user_vector(movies, stars) - wanted).max() < 1e-6 * np.abs(wanted).max()


def test_one_rating_more_is_one_term_more() -> None:
    m = model()
    _, movies, stars = busy_user(200)
    before, after = m.user_vector(movies[:-1], stars[:-1]), m.user_vector(movies, stars)
    assert np.allclose(after - before, m.user_vector(movies[-1:], stars[-1:]), atol=1e-5)


def test_movies_that_the_model_does_not_know_count_nothing() -> None:
    m = model()
    assert np.array_equal(m.user_vector([-1, 4, -1], [5, 3, 1]), m.user_vector([4], [3]))
    given = Interactions(torch.tensor([0, 0, -1]), torch.tensor([-1, 4, 5]), torch.tensor([5.0, 3.0, 1.0]), 1, MOVIES)
    assert np.allclose(m.user_vectors(given)[0], m.user_vector([4], [3]), rtol=1e-6)
    assert not m.user_vector([], []).any()


def test_a_list_is_the_highest_scores_in_order_without_what_is_excluded() -> None:
    m = model(movies=500)
    vectors = np.random.default_rng(2).normal(0, 1, (40, FACTORS)).astype(np.float32)
    excluded = np.random.default_rng(3).random((40, 500)) < 0.3
    movies, scores = m.recommend(vectors, 10, csr_array(excluded))
    expected = vectors @ m.embedding.T + m.bias
    expected[excluded] = -np.inf
    order = np.argsort(-expected, axis=1, kind="stable")[:, :10]
    assert np.array_equal(movies, order)
    assert np.allclose(scores, np.take_along_axis(expected, order, 1), atol=1e-5)


def test_equal_scores_come_in_the_order_of_the_rows_and_short_lists_end_with_nothing() -> None:
    m = replace(model(movies=6), bias=np.array([1, 2, 2, 0, 2, 1], np.float32))
    nobody = np.zeros((2, FACTORS), np.float32)
    assert m.recommend(nobody, 2)[0].tolist() == [[1, 2]] * 2
    assert m.recommend(nobody, 5)[0].tolist() == [[1, 2, 4, 0, 5]] * 2
    all_but_one = csr_array(np.array([[1, 1, 0, 1, 1, 1], [0] * 6]))
    movies, scores = m.recommend(nobody, 8, all_but_one)
    assert movies.tolist() == [[2, -1, -1, -1, -1, -1, -1, -1], [1, 2, 4, 0, 5, 3, -1, -1]]
    assert np.isneginf(scores[0, 1:]).all()


def test_because_is_the_liked_rating_with_the_largest_term() -> None:
    m = model(movies=300)
    rng = np.random.default_rng(4)
    rated, stars = rng.choice(300, 40, replace=False), rng.integers(1, 11, 40) / 2
    wanted = np.array([5, 17, 250])
    terms = (m.history[rated] + (0.5 * (stars - 3.5) / 1.1)[:, None] * m.liking[rated]) @ m.embedding[wanted].T
    terms[stars < 3.5] = -np.inf
    assert m.because(wanted, rated, stars).tolist() == rated[terms.argmax(0)].tolist()
    assert m.because(wanted, [1, 2], [1.0, 3.0]).tolist() == [-1, -1, -1]
    assert m.because(wanted, [-1], [5.0]).tolist() == [-1, -1, -1]
    same = replace(m, history=np.ones_like(m.history), liking=np.zeros_like(m.liking))
    assert same.because([0], [9, 4, 6], [5, 5, 5]).tolist() == [4]


def test_without_ratings_each_click_is_one_history_vector() -> None:
    m = replace(model(), mu=None, sd=None, rho=0.0, liking=np.zeros((MOVIES, FACTORS), np.float32))
    wanted = m.history[[3, 8]].sum(0)
    assert np.allclose(m.user_vector([3, 8]), wanted, rtol=1e-6)
    assert np.allclose(m.user_vector([3, 8], [1, 400]), wanted, rtol=1e-6)
    given = Interactions(torch.tensor([0, 0]), torch.tensor([3, 8]), None, 1, MOVIES)
    assert np.allclose(m.user_vectors(given)[0], wanted, rtol=1e-6)
    assert m.because([5], [3, 8])[0] in (3, 8)


def test_recency_weights_halve_every_ten_newer_ratings_down_to_a_quarter() -> None:
    users, times = np.array([0] * 30 + [1]), np.r_[np.arange(30), 5]
    weights = recency_weights(users, times)
    assert weights[29] == weights[30] == 1
    assert weights[19] == pytest.approx(0.5)
    assert weights[24] == pytest.approx(2**-0.5)
    assert (weights[:10] == 0.25).all()
    order = np.random.default_rng(0).permutation(31)
    assert np.array_equal(recency_weights(users[order], times[order]), weights[order])
    # Three ratings of the same second weigh the same: as many ratings are newer.
    assert recency_weights(np.zeros(4, int), np.array([7, 9, 7, 7])).tolist() == pytest.approx(
        [2**-0.1, 1] + [2**-0.1] * 2
    )
    assert not len(recency_weights(np.empty(0, int), np.empty(0, int)))


def test_recency_weighs_the_terms_of_the_sum_and_the_reasons() -> None:
    m = replace(model(), recency=True)
    given, movies, stars = busy_user(300)
    times = np.r_[np.random.default_rng(5).permutation(300), 1]
    weights = recency_weights(np.zeros(300, int), times[:300])
    like = 0.5 * (stars - 3.5) / 1.1
    wanted = weights @ (m.history[movies] + like[:, None] * m.liking[movies])
    assert np.abs(m.user_vector(movies, stars, times[:300]) - wanted).max() < 1e-5 * np.abs(wanted).max()
    found = m.user_vectors(replace(given, times=torch.tensor(times)))[1]
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    # Without times, and without the option, all ratings weigh the same.
    plain = replace(m, recency=False)
    assert np.array_equal(m.user_vector(movies, stars), plain.user_vector(movies, stars, times[:300]))
    assert np.array_equal(m.user_vectors(given), plain.user_vectors(replace(given, times=torch.tensor(times))))
    same = replace(
        m, history=np.ones_like(m.history), liking=np.zeros_like(m.liking), embedding=np.ones_like(m.embedding)
    )
    assert same.because([0], [9, 4, 6], [5, 5, 5], [1, 2, 3]).tolist() == [6]


@pytest.mark.parametrize(
    ("movies", "ratings", "message"),
    [
        ([1, 2], None, "found no ratings"),
        ([1, 2], [3.0], "found 1 ratings, expected 2"),
        ([1], [float("inf")], "not finite"),
        ([MOVIES], [3.0], "found movie rows 12000 to 12000, expected -1 to 11999"),
        ([-2], [3.0], "found movie rows -2 to -2"),
    ],
)
def test_ratings_that_cannot_be_are_refused(movies: list[int], ratings: list[float] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        model().user_vector(movies, ratings)


def test_clicks_for_a_model_of_ratings_are_refused() -> None:
    given, _, _ = busy_user(5)
    with pytest.raises(DataError, match="found no ratings"):
        model().user_vectors(replace(given, ratings=None))
    with pytest.raises(DataError, match="found 20,000 movies"):
        model().user_vectors(replace(given, n_movies=20_000))
