"""Quality of top-k lists over the whole catalogue: the model's and two baselines'."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from scipy.sparse import csr_array

from mf.biases import Floats, Ints
from mf.evaluation.accuracy import deciles
from mf.evaluation.bootstrap import bootstrap_ratios, percentile_interval
from mf.evaluation.config import EvaluateConfig
from mf.evaluation.encoded import EncodedRatings
from mf.evaluation.metrics import CATALOGUE_METRICS, LIST_METRICS, Hits, Scores
from mf.evaluation.topk import top_k_by_product, top_k_in_one_order
from mf.model_directory import TrainedModel

# The default threshold, as a share of the range of the training ratings: 4 on scales of 1 to 5 and of half stars, 8 of
# 1 to 10, 1 of 0 and 1. The mean would do as well, but on half stars it is near 3.5, so that a rating of 3.5 would be
# relevant in one run and not in the next.
UPPER_QUARTER = 0.75


@dataclass(frozen=True)
class Ranking:
    """Scores of top-k lists for one group of users: by the model and by two baselines.

    The global mean is no baseline here, since it gives every movie the same score.
    """

    k: int  # length of the lists
    relevance_threshold: float  # a test movie rated this or higher is relevant
    movies: int  # size of the catalogue: movies with a training rating
    left_out: str  # parts whose movies are left out of the user's own list: "training", or "training and validation"
    users: int  # users with a relevant test movie; the metrics are means over them
    users_without: int  # test users without one; not counted
    relevant: int  # relevant test ratings
    out_of_reach: int  # relevant test ratings of movies outside the catalogue, which no list can hold
    model: Scores | None = None  # None when there are no users
    user_movie_bias: Scores | None = None  # by movie bias: the user's bias does not change the order
    popularity: Scores | None = None  # by number of training ratings
    reason: str = ""  # why there are no scores

    def scores(self) -> dict[str, Scores]:
        """Scores by the name of the model or baseline; empty when there are no users."""
        rankers = {"model": self.model, "user_movie_bias": self.user_movie_bias, "popularity": self.popularity}
        return {name: scores for name, scores in rankers.items() if scores}


@dataclass(frozen=True)
class ExposureBin:
    """Movies with similar numbers of training ratings, and their share of all list positions."""

    from_ratings: int
    to_ratings: int
    movies: int
    ratings: float  # share of the training ratings
    model: float  # share of the list positions, as are the next two
    user_movie_bias: float
    popularity: float


def score_lists(
    ratings: EncodedRatings, model: TrainedModel, movie_bias: Floats, config: EvaluateConfig
) -> tuple[Ranking, Ranking, tuple[ExposureBin, ...]]:
    """Scores the lists of users seen in training, those of cold-start users, and the exposure in the former.

    A list is taken from the whole catalogue, less the movies that the user has already rated. A sample of the catalogue
    would give other results (Krichene and Rendle, "On Sampled Metrics for Item Recommendation", 2020).

    Args:
        ratings: training and test part.
        model: the model to score.
        movie_bias: float64[training movies], b_m of the bias baseline.
        config: k, threshold and bootstrap.
    """
    threshold = config.relevance_threshold
    if threshold is None:
        low, high = (float(end) for end in (ratings.train_ratings.min(), ratings.train_ratings.max()))
        # In float32, as the ratings are: three quarters from 0.1 to 0.5 must not be a little more than 0.4.
        threshold = float(np.float32(low + UPPER_QUARTER * (high - low)))
    rated, relevant = ratings.already_rated(), ratings.relevant(threshold)
    relevant_counts = ratings.relevant_counts(threshold)
    train_counts = np.bincount(ratings.movies.train_rows, minlength=rated.shape[1])
    results = []
    for is_cold in (False, True):
        group = (ratings.users.test_id_rows < 0) == is_cold
        users = np.flatnonzero(group & (relevant_counts > 0))
        lists = {
            "model": _model_lists(model, ratings, users, rated[users], config.k),
            "user_movie_bias": top_k_in_one_order(movie_bias, rated[users], config.k),
            "popularity": top_k_in_one_order(train_counts, rated[users], config.k),
        }
        scores = _scores(lists, relevant[users], relevant_counts[users], config) if len(users) else {}
        total = int(relevant_counts[users].sum())
        ranking = Ranking(
            k=config.k,
            relevance_threshold=threshold,
            movies=len(train_counts),
            left_out="training" if ratings.validation is None else "training and validation",
            users=len(users),
            users_without=int(group.sum()) - len(users),
            relevant=total,
            out_of_reach=total - relevant[users].nnz,
            reason="" if len(users) else _reason(int(group.sum()), is_cold, threshold),
            **scores,
        )
        results.append((ranking, exposure(train_counts, lists) if len(users) else ()))
    (seen, seen_exposure), (cold, _) = results
    return seen, cold, seen_exposure


def _model_lists(model: TrainedModel, ratings: EncodedRatings, users: Ints, rated: csr_array, k: int) -> Ints:
    """int64[users, k], the model's lists; an id that the model does not know has bias 0 and a zero vector."""
    device = model.module.mu.device
    user_rows = torch.from_numpy(model.users.rows(ratings.users.test_ids.take(pa.array(users)))).to(device)
    movie_rows = torch.from_numpy(model.movies.rows(ratings.movies.vocabulary.ids)).to(device)
    with torch.no_grad():
        p, q, _, b_m = model.module.embed(user_rows.clamp(min=0), movie_rows.clamp(min=0))
    user_known, movie_known = (user_rows >= 0).unsqueeze(1), (movie_rows >= 0).unsqueeze(1)
    return top_k_by_product(p * user_known, q * movie_known, b_m * movie_known.squeeze(1), rated, k)


def _scores(
    lists: Mapping[str, Ints], relevant: csr_array, relevant_counts: Ints, config: EvaluateConfig
) -> dict[str, Scores]:
    """Scores of each ranker's lists, all intervals from the same draws of users."""
    per_user = {name: score_users(find_hits(top, relevant), relevant_counts) for name, top in lists.items()}
    draws = bootstrap_ratios(
        np.column_stack(list(per_user.values())), np.ones(len(relevant_counts)), config.bootstrap, config.seed
    )
    n = len(LIST_METRICS)
    scores = {}
    for i, (name, top) in enumerate(lists.items()):
        means = per_user[name].mean(axis=0)
        values = {metric.name: float(mean) for metric, mean in zip(LIST_METRICS, means, strict=True)}
        values |= {metric.name: metric.of_lists(top, relevant.shape[1]) for metric in CATALOGUE_METRICS}
        intervals = {
            metric.name: percentile_interval(draws[:, i * n + j], len(top)) for j, metric in enumerate(LIST_METRICS)
        }
        scores[name] = Scores(values, intervals)
    return scores


def _reason(users: int, is_cold: bool, threshold: float) -> str:
    """Why there are no scores."""
    kind = "unseen" if is_cold else "seen"
    if not users:
        return f"no test user is {kind} in training"
    return f"none of the {users:,} test users {kind} in training rated a test movie {threshold:g} or higher"


def score_users(hits: Hits, relevant_counts: Ints) -> Floats:
    """float64[users, len(LIST_METRICS)], every list metric of every user.

    Args:
        hits: bool[users, k].
        relevant_counts: int[users], 1 or more.
    """
    return np.column_stack([metric.of_users(hits, relevant_counts) for metric in LIST_METRICS])


def find_hits(lists: Ints, relevant: csr_array) -> Hits:
    """bool[users, k], the positions of ``lists`` that hold a movie ``relevant`` [users, movies] to the list's user."""
    users, movies = relevant.shape
    rows = np.arange(users, dtype=np.int64)[:, None]
    pairs = np.repeat(rows[:, 0], np.diff(relevant.indptr)) * movies + relevant.indices
    return np.isin(rows * movies + lists, pairs) & (lists >= 0)


def exposure(train_counts: Ints, lists: Mapping[str, Ints]) -> tuple[ExposureBin, ...]:
    """Deciles of the catalogue by training ratings, the least rated first; movies with equal counts stay together.

    Args:
        train_counts: int[movies], training ratings.
        lists: int[users, k] per ranker; -1 is an empty position.
    """
    bins = np.searchsorted(deciles(train_counts), train_counts)
    positions = {name: np.bincount(top[top >= 0], minlength=len(train_counts)) for name, top in lists.items()}
    shares = {
        name: np.bincount(bins, counts) / max(counts.sum(), 1)
        for name, counts in {"ratings": train_counts, **positions}.items()
    }
    return tuple(
        ExposureBin(
            from_ratings=int(train_counts[bins == i].min()),
            to_ratings=int(train_counts[bins == i].max()),
            movies=int((bins == i).sum()),
            **{name: float(share[i]) for name, share in shares.items()},
        )
        for i in np.unique(bins)
    )
