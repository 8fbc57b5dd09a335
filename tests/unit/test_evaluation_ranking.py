import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.metrics import ndcg_score
from torchmetrics.functional.retrieval import retrieval_average_precision
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalNormalizedDCG, RetrievalRecall

from mf.evaluation.config import EvaluateConfig
from mf.evaluation.evaluate import Evaluation, evaluate
from mf.evaluation.metrics import Scores, plain
from mf.evaluation.ranking import ExposureBin, exposure, find_hits, score_users
from mf.evaluation.topk import top_k_by_product
from mf.model import MatrixFactorization
from mf.model_directory import TrainedModel
from mf.ratings.vocabulary import Vocabulary

Row = tuple[Any, Any, float]


def ratings(*rows: Row) -> pa.Table:
    users, movies, values = zip(*rows, strict=True)
    return pa.table({"user_id": users, "movie_id": movies, "rating": pa.array(values, pa.float32())})


def model(users: Sequence[Any], movies: Sequence[Any], p: Any, q: Any, b_m: Any = 0.0) -> TrainedModel:
    module = MatrixFactorization(len(users), len(movies), np.shape(q)[1], rating_min=1, rating_max=5, mu=3)
    with torch.no_grad():
        module.user_factors.weight.copy_(torch.as_tensor(p))
        module.movie_factors.weight.copy_(torch.as_tensor(q))
        module.movie_bias.weight.copy_(torch.as_tensor(b_m).reshape(-1, 1))
    return TrainedModel(module, Vocabulary(pa.array(users)), Vocabulary(pa.array(movies)), "run", "none", {}, {})


# Movies 1 to 4 have 3, 2, 1 and 1 training ratings; what the users rate in the test part they have not rated before.
TRAIN = ratings((1, 1, 5), (2, 1, 5), (3, 1, 2), (1, 2, 3), (2, 2, 3), (3, 3, 5), (4, 4, 1))
TEST = ratings((1, 3, 5), (1, 4, 2), (2, 3, 1), (2, 4, 4), (3, 2, 1), (3, 4, 2), (4, 1, 4), (4, 3, 4), (4, 9, 5))


def evaluated(train: pa.Table = TRAIN, test: pa.Table = TEST, **options: Any) -> Evaluation:
    # For all users movie 4 comes first, then 3, 2 and 1.
    fitted = model([1, 2, 3, 4], [1, 2, 3, 4], np.zeros((4, 1)), np.zeros((4, 1)), [-0.3, -0.2, -0.1, 0.0])
    config = EvaluateConfig(**{"k": 2, "relevance_threshold": 4, "bootstrap": 0, **options})
    return evaluate(train, test, fitted, config)


def test_list_metrics_are_those_computed_by_hand() -> None:
    hits = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
    ndcg, recall, precision, hit = score_users(hits, np.array([4, 1, 2])).T
    assert ndcg == pytest.approx([(1 + 1 / 2) / (1 + 1 / math.log2(3) + 1 / 2), 1 / math.log2(3), 0])
    assert recall == pytest.approx([2 / 4, 1, 0])
    assert precision == pytest.approx([(1 + 2 / 3) / 3, 1 / 2, 0])
    assert hit.tolist() == [1, 1, 0]


def test_a_list_of_only_relevant_movies_is_perfect_even_if_there_are_more() -> None:
    perfect = score_users(np.array([[1, 1, 0], [1, 1, 1]], bool), np.array([2, 30]))
    assert perfect == pytest.approx(np.array([[1, 1, 1, 1], [1, 0.1, 1, 1]]))


def test_a_hit_is_relevant_to_the_list_s_own_user() -> None:
    relevant = csr_array(np.array([[0, 0, 1], [1, 0, 0]], bool))
    found = find_hits(np.array([[2, 0, -1], [2, 0, -1]]), relevant)
    assert found.tolist() == [[True, False, False], [False, True, False]]


def test_an_evaluation_s_list_metrics_are_those_computed_by_hand() -> None:
    # Lists of the model: user 1 [4, 3], user 2 [4, 3], user 3 likes nothing, user 4 [3, 2]; liked: {3}, {4}, {1, 3, 9}.
    found = evaluated().ranking
    assert (found.k, found.relevance_threshold, found.movies) == (2, 4, 4)
    assert (found.users, found.users_without, found.relevant, found.out_of_reach) == (3, 1, 5, 1)
    both = 1 + 1 / math.log2(3)
    ndcg, precision = [1 / math.log2(3), 1, 1 / both], [1 / 2, 1, 1 / 2]
    assert found.model is not None
    assert found.model.values == pytest.approx(
        {
            "ndcg": sum(ndcg) / 3,
            "recall": (1 + 1 + 1 / 3) / 3,
            "map": sum(precision) / 3,
            "hit_rate": 1,
            "coverage": 3 / 4,
        }
    )


def test_popularity_ranks_by_training_ratings_then_by_id() -> None:
    # Lists: user 1 [3, 4], user 2 [3, 4], user 4 [1, 2].
    found = evaluated().ranking.popularity
    assert found is not None
    both = 1 + 1 / math.log2(3)
    assert found["ndcg"] == pytest.approx((1 + 1 / math.log2(3) + 1 / both) / 3)
    assert found["coverage"] == 1


def test_the_bias_baseline_ranks_by_the_damped_biases_of_movies() -> None:
    # The mean is 24/7. Movie 1 has (12 - 72/7)/6, 2 (6 - 48/7)/5, 3 (5 - 24/7)/4, 4 (1 - 24/7)/4: 3, 1, 2, 4.
    found = evaluated().ranking.user_movie_bias
    assert found is not None
    # Lists: user 1 [3, 4], user 2 [3, 4], user 4 [3, 1].
    assert found["map"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert found["coverage"] == 3 / 4


def test_every_list_metric_agrees_with_torchmetrics_and_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.linspace(0.01, 1, 80), (60, 1)), axis=1).astype(np.float32)
    relevant = rng.random((60, 80)) < rng.random((60, 1)) * 0.3
    relevant[relevant.sum(1) == 0, 5] = True
    wanted = relevant.sum(1)

    def ours(k: int) -> npt.NDArray[np.float64]:
        nothing = csr_array((60, 80), dtype=np.bool_)
        lists = top_k_by_product(torch.from_numpy(scores), torch.eye(80), torch.zeros(80), nothing, k)
        return score_users(find_hits(lists, csr_array(relevant)), wanted)

    flat = torch.from_numpy(scores.ravel()), torch.from_numpy(relevant.ravel())
    users = torch.arange(60).repeat_interleave(80)
    for column, metric in ((0, RetrievalNormalizedDCG), (1, RetrievalRecall), (3, RetrievalHitRate)):
        for k in (1, 10, 80):
            theirs = float(metric(top_k=k)(*flat, indexes=users))
            assert ours(k)[:, column].mean() == pytest.approx(theirs, abs=1e-6)
    assert ours(80)[:, 2].mean() == pytest.approx(float(RetrievalMAP()(*flat, indexes=users)), abs=1e-6)
    assert ours(10)[:, 0].mean() == pytest.approx(ndcg_score(relevant, scores, k=10, ignore_ties=True))
    # Over the first k places torchmetrics divides by the relevant ones among them, not by those that could be.
    each = [
        float(retrieval_average_precision(*(torch.from_numpy(x[user]) for x in (scores, relevant)), top_k=10))
        for user in range(60)
    ]
    among = ours(10)[:, 1] * wanted
    assert ours(10)[:, 2] == pytest.approx(each * among / np.minimum(wanted, 10), abs=1e-6)


def test_ndcg_averaged_over_the_orders_of_tied_movies_is_scikit_learns() -> None:
    scores, relevant = np.array([3.0, 1, 1, 1]), np.array([0, 1, 0, 1])
    found = []
    for order in itertools.permutations(range(4)):
        q, own = torch.tensor(scores[list(order)], dtype=torch.float32)[:, None], csr_array([relevant[list(order)] > 0])
        lists = top_k_by_product(torch.ones(1, 1), q, torch.zeros(4), csr_array((1, 4), dtype=np.bool_), 3)
        found.append(score_users(find_hits(lists, own), np.array([2]))[0, 0])
    assert np.mean(found) == pytest.approx(ndcg_score([relevant], [scores], k=3))


def test_an_evaluation_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    users, movies = list(range(50)), list(range(120))
    p, q, b_m = rng.standard_normal((50, 4)), rng.standard_normal((120, 4)), rng.standard_normal(120)
    part = rng.random((50, 120))
    values = rng.integers(1, 6, (50, 120))
    train, test = (
        ratings(*((int(u), int(m), float(values[u, m])) for u, m in np.argwhere(chosen)))
        for chosen in (part < 0.3, part > 0.85)
    )
    found = evaluate(train, test, model(users, movies, p, q, b_m), EvaluateConfig(relevance_threshold=4, bootstrap=0))
    liked = (part > 0.85) & (values >= 4)
    some = liked.any(1)
    scores = np.where(part < 0.3, -100, p @ q.T + b_m)
    assert found.ranking.model is not None
    assert found.ranking.model["ndcg"] == pytest.approx(ndcg_score(liked[some], scores[some], k=10), abs=1e-6)
    popular = np.where(part < 0.3, -100, (part < 0.3).sum(0) - np.arange(120) * 1e-6)
    assert found.ranking.popularity is not None
    assert found.ranking.popularity["ndcg"] == pytest.approx(ndcg_score(liked[some], popular[some], k=10), abs=1e-6)


def test_movies_rated_in_training_or_validation_are_left_out() -> None:
    # What the model puts first are the 5 movies of each user's training part; the next 5 are in the validation part.
    q = np.linspace(2, 0, 16)[:, None]
    train = ratings(*((user, movie, 3) for user, last in ((1, 5), (2, 5), (9, 16)) for movie in range(last)))
    validation = ratings(*((user, movie, 3) for user in (1, 2) for movie in range(5, 10)), (77, 1, 3), (1, 99, 3))
    test = ratings(*((user, movie, 5) for user in (1, 2) for movie in range(10, 13)))
    fitted, config = model([1, 2, 9], list(range(16)), np.ones((3, 1)), q), EvaluateConfig(k=5, bootstrap=0)
    without, together = evaluate(train, test, fitted, config), evaluate(train, test, fitted, config, validation)
    assert (without.ranking.left_out, together.ranking.left_out) == ("training", "training and validation")
    assert without.ranking.model is not None
    assert without.ranking.model["hit_rate"] == 0
    assert together.ranking.model is not None
    assert together.ranking.model["ndcg"] == pytest.approx(1)


def test_cold_start_users_get_the_order_of_movie_biases_and_are_scored_separately() -> None:
    test = pa.concat_tables([TEST, ratings((7, 4, 5), (8, 3, 5), (8, 1, 5), (9, 1, 1))])
    found = evaluated(test=test)
    assert found.ranking == evaluated().ranking
    apart = found.ranking_unseen_users
    assert (apart.users, apart.users_without, apart.relevant) == (2, 1, 3)
    assert apart.model is not None
    assert apart.model["recall"] == pytest.approx((1 + 1 / 2) / 2)  # [4, 3] for both
    assert apart.popularity is not None
    assert apart.popularity["recall"] == pytest.approx((0 + 1 / 2) / 2)  # [1, 2] for both


def test_movies_outside_the_training_part_are_not_ranked_and_movies_unknown_to_the_model_have_bias_0() -> None:
    # The other model knows movies 1, 3 and 50, and user 2 alone. Movie 2 and 4 count as 0: 3, 2, 4, 1.
    other = model([2], [1, 3, 50], np.ones((1, 1)), [[-1.0], [1.0], [9.0]], [-1.0, 1.0, 9.0])
    found = evaluate(TRAIN, TEST, other, EvaluateConfig(k=2, relevance_threshold=4, bootstrap=0)).ranking
    assert found.model is not None
    # Lists: user 1 [3, 4], user 2 [3, 4], user 4 [3, 2].
    assert found.model["map"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found.model["coverage"] == 3 / 4


@pytest.mark.parametrize(
    ("lowest", "highest", "threshold"),
    [(1, 5, 4), (0.5, 5, 3.875), (0, 1, 0.75), (1, 10, 7.75), (-1, 1, 0.5), (3, 3, 3)],
)
def test_the_default_threshold_is_three_quarters_up_the_range(lowest: float, highest: float, threshold: float) -> None:
    train = pa.concat_tables([ratings((1, 1, lowest)), ratings((2, 1, highest))])
    assert evaluated(train, relevance_threshold=None).ranking.relevance_threshold == threshold


def test_any_number_is_a_threshold_also_one_below_zero() -> None:
    train = pa.concat_tables([ratings((1, 1, -10)), ratings((2, 1, 10))])
    test = ratings((1, 2, -1), (2, 2, -1.5))
    found = evaluated(train, test, relevance_threshold=-1).ranking
    assert (found.relevance_threshold, found.relevant) == (-1, 1)


def test_a_float32_rating_equal_to_the_threshold_counts() -> None:
    train, test = ratings((1, 1, 0.1), (1, 2, 0.5)), ratings((1, 3, 0.4))
    assert evaluated(train, test, relevance_threshold=None).ranking.relevant == 1
    assert evaluated(train, test, relevance_threshold=0.4).ranking.relevant == 1


def test_where_all_ratings_are_equal_every_movie_is_relevant() -> None:
    train, test = (table.set_column(2, "rating", pa.array([3.3] * len(table), pa.float32())) for table in (TRAIN, TEST))
    found = evaluated(train, test, relevance_threshold=None, bootstrap=50)
    assert (found.ranking.users, found.ranking.relevant) == (4, len(TEST))
    assert json.dumps(plain(found), allow_nan=False)


def test_without_a_relevant_movie_there_is_a_reason_and_no_score() -> None:
    found = evaluated(relevance_threshold=5.5, bootstrap=50)
    assert (found.ranking.model, found.ranking.user_movie_bias, found.ranking.popularity) == (None, None, None)
    assert found.ranking.reason == "none of the 4 test users seen in training rated a test movie 5.5 or higher"
    assert found.ranking_unseen_users.reason == "no test user is unseen in training"
    assert found.exposure == ()
    assert json.dumps(plain(found), allow_nan=False)


def test_one_user_and_one_movie_have_scores_without_intervals() -> None:
    found = evaluate(
        ratings((1, 1, 4)), ratings((1, 2, 4)), model([1], [1], [[0.0]], [[0.0]]), EvaluateConfig(bootstrap=50)
    )
    nothing = dict.fromkeys(("ndcg", "recall", "map", "hit_rate"))
    expected = Scores({**dict.fromkeys(nothing, 0), "coverage": 0}, nothing)
    assert found.ranking.model == found.ranking.popularity == expected
    assert (found.ranking.relevant, found.ranking.out_of_reach) == (1, 1)
    assert json.dumps(plain(found), allow_nan=False)


def test_a_metric_lies_in_its_interval_and_more_users_make_it_narrower() -> None:
    rng = np.random.default_rng(0)

    def width(users: int) -> float:
        part = rng.random((users, 40))
        train, test = (
            ratings(*((int(u), int(m), 4.0) for u, m in np.argwhere(chosen))) for chosen in (part < 0.4, part > 0.8)
        )
        fitted = model(list(range(users)), list(range(40)), rng.random((users, 2)), rng.random((40, 2)))
        score = evaluate(train, test, fitted, EvaluateConfig(k=5, bootstrap=200)).ranking.model
        assert score is not None
        for metric in ("ndcg", "recall", "map", "hit_rate"):
            interval = score.interval(metric)
            assert interval is not None
            assert interval.low < score[metric] < interval.high
        ndcg = score.interval("ndcg")
        assert ndcg is not None
        return ndcg.high - ndcg.low

    assert width(400) < 0.7 * width(50)


def test_exposure_is_the_share_of_list_positions_per_decile_of_movies() -> None:
    # Ten movies, two of which have equally many ratings; one of six list positions is empty.
    counts = np.array([1, 2, 3, 3, 5, 6, 7, 8, 9, 56])
    lists = {
        "model": np.array([[9, 0], [9, -1], [9, 1]]),
        "user_movie_bias": np.array([[2, 3], [2, 3], [2, 3]]),
        "popularity": np.array([[9, 8], [9, 8], [9, 8]]),
    }
    found = exposure(counts, lists)
    assert [bin.movies for bin in found] == [1, 1, 2, 1, 1, 1, 1, 1, 1]
    assert found[2] == ExposureBin(3, 3, 2, ratings=0.06, model=0, user_movie_bias=1, popularity=0)
    assert found[-1] == ExposureBin(56, 56, 1, ratings=0.56, model=3 / 5, user_movie_bias=0, popularity=1 / 2)
    assert sum(bin.model for bin in found) == pytest.approx(1)
