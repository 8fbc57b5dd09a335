"""Whether the movies that a model puts first are those that users like: top-k lists over the whole catalogue."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from scipy.sparse import csr_array

from mf.biases import Floats, Ints
from mf.evaluation.accuracy import deciles
from mf.evaluation.bootstrap import Interval, interval, resampled
from mf.evaluation.config import EvaluateConfig
from mf.evaluation.parts import Parts
from mf.evaluation.topk import by_order, by_vectors
from mf.model_directory import TrainedModel

METRICS = ("ndcg", "recall", "map", "hit_rate")
# Of the range of the training ratings: 4 of 1 to 5 and of half stars, 8 of 1 to 10, 1 of 0 and 1. The mean would do as
# well, but on half stars it lies near 3.5 and would let it in at one run and not at the next.
UPPER_QUARTER = 0.75


@dataclass(frozen=True)
class RankingScore:
    """How good lists of k movies are: means over users, and intervals that the bootstrap over users gives.

    ``quality`` has the definitions. Coverage has no interval: fewer different users always find fewer movies.
    """

    ndcg: float
    recall: float
    map: float
    hit_rate: float
    coverage: float  # movies that stand in at least one list, as a share of the catalogue
    ndcg_interval: Interval | None = None  # None with one user alone, and without bootstrap
    recall_interval: Interval | None = None
    map_interval: Interval | None = None
    hit_rate_interval: Interval | None = None


@dataclass(frozen=True)
class Ranking:
    """Top-k lists for one set of users, by the model and by two baselines.

    The global mean is no baseline here: it ranks nothing.
    """

    k: int  # length of the lists
    relevance_threshold: float  # a test movie rated so or higher is relevant
    movies: int  # the catalogue: those with a training rating
    left_out: str  # the parts whose movies a user's own list leaves out: "training", or "training and validation"
    users: int  # with a relevant test movie: those that are counted
    users_without: int  # test users without one, who are left out
    relevant: int  # relevant test ratings
    out_of_reach: int  # those of movies outside the catalogue: no list can have them
    model: RankingScore | None = None  # None when there are no users
    user_movie_bias: RankingScore | None = None  # by movie bias: a user's own changes no order
    popularity: RankingScore | None = None  # by number of training ratings
    reason: str = ""  # why there are no scores


@dataclass(frozen=True)
class ExposureBin:
    """Movies that are alike in how many training ratings they have, and what they get of the lists' places."""

    from_ratings: int
    to_ratings: int
    movies: int
    ratings: float  # share of the training ratings
    model: float  # share of the places
    user_movie_bias: float
    popularity: float


def rankings(
    parts: Parts, model: TrainedModel, movie_bias: Floats, config: EvaluateConfig
) -> tuple[Ranking, Ranking, tuple[ExposureBin, ...]]:
    """Lists for the users seen in training, for the unseen ones, and what movies get of the former's places.

    A list is made of the whole catalogue, not of a sample of it, which would give other figures (Krichene and Rendle,
    "On Sampled Metrics for Item Recommendation", 2020), but for the movies that the user is known to have rated.
    """
    threshold = config.relevance_threshold
    if threshold is None:
        low, high = (float(end) for end in (parts.train_ratings.min(), parts.train_ratings.max()))
        # In the ratings' own float32: from 0.1 to 0.5 it is 0.4, and not a little more.
        threshold = float(np.float32(low + UPPER_QUARTER * (high - low)))
    rated, relevant, wanted = parts.rated(), parts.relevant(threshold), parts.wanted(threshold)
    counts = np.bincount(parts.movies.train, minlength=rated.shape[1])
    found = []
    for unseen in (False, True):
        group = (parts.users.rows < 0) == unseen
        users = np.flatnonzero(group & (wanted > 0))
        theirs = rated[users]
        lists = {
            "model": _by_model(model, parts, users, theirs, config.k),
            "user_movie_bias": by_order(movie_bias, theirs, config.k),
            "popularity": by_order(counts, theirs, config.k),
        }
        scores = _scores(lists, relevant[users], wanted[users], config) if len(users) else {}
        ranking = Ranking(
            k=config.k,
            relevance_threshold=threshold,
            movies=len(counts),
            left_out="training" if parts.validation is None else "training and validation",
            users=len(users),
            users_without=int(group.sum()) - len(users),
            relevant=int(wanted[users].sum()),
            out_of_reach=int(wanted[users].sum()) - relevant[users].nnz,
            reason="" if len(users) else _reason(int(group.sum()), unseen, threshold),
            **scores,
        )
        found.append((ranking, exposure(counts, lists) if len(users) else ()))
    (seen, places), (unseen_users, _) = found
    return seen, unseen_users, places


def _by_model(model: TrainedModel, parts: Parts, users: Ints, rated: csr_array, k: int) -> Ints:
    device = model.module.mu.device
    user_rows = torch.from_numpy(model.users.rows(parts.users.ids.take(pa.array(users)))).to(device)
    movie_rows = torch.from_numpy(model.movies.rows(parts.movies.seen.ids)).to(device)
    with torch.no_grad():
        p, q, _, b_m = model.module.embed(user_rows.clamp(min=0), movie_rows.clamp(min=0))
    # What the model has not seen has bias 0 and a zero vector.
    user_known, movie_known = (user_rows >= 0).unsqueeze(1), (movie_rows >= 0).unsqueeze(1)
    return by_vectors(p * user_known, q * movie_known, b_m * movie_known.squeeze(1), rated, k)


def _scores(
    lists: Mapping[str, Ints], relevant: csr_array, wanted: Ints, config: EvaluateConfig
) -> dict[str, RankingScore]:
    """Of each ranker's lists, with intervals from the same draws of users."""
    figures = {name: quality(found_in(top, relevant), wanted) for name, top in lists.items()}
    draws = resampled(np.column_stack(list(figures.values())), np.ones(len(wanted)), config.bootstrap, config.seed)
    scores = {}
    for i, (name, top) in enumerate(lists.items()):
        own = draws[:, i * len(METRICS) :]
        values: dict[str, Any] = dict(zip(METRICS, figures[name].mean(axis=0).tolist(), strict=True))
        values |= {f"{metric}_interval": interval(own[:, j], len(top)) for j, metric in enumerate(METRICS)}
        scores[name] = RankingScore(**values, coverage=len(np.unique(top[top >= 0])) / relevant.shape[1])
    return scores


def _reason(users: int, unseen: bool, threshold: float) -> str:
    """Why there are no scores."""
    kind = "unseen" if unseen else "seen"
    if not users:
        return f"no test user is {kind} in training"
    return f"none of the {users:,} test users {kind} in training rated a test movie {threshold:g} or higher"


def quality(hits: npt.NDArray[np.bool_], relevant: Ints) -> Floats:
    """NDCG, recall, average precision and hit of each user's list, float64[users, 4] in the order of ``METRICS``.

    With h_i = 1 where place i of the k holds a relevant movie and R ≥ 1 relevant test movies:

    - NDCG@k = Σ h_i / log2(i + 1), divided by that of the ideal list, whose first min(k, R) places are all relevant
      (Järvelin and Kekäläinen, "Cumulated Gain-Based Evaluation of IR Techniques", 2002; binary gain, and the discount
      log2(i + 1) of Burges et al. 2005, which is in general use).
    - recall@k = Σ h_i / R (Manning, Raghavan and Schütze, "Introduction to Information Retrieval", 2008, chapter 8).
    - AP@k = Σ h_i · precision@i / min(k, R), whose mean is MAP@k (McFee et al., "The Million Song Dataset Challenge",
      2012).
    - hit = 1 if any h_i is, whose mean is the hit rate (Deshpande and Karypis, "Item-Based Top-N Recommendation
      Algorithms", 2004, for more than one relevant movie).

    Args:
        hits: bool[users, k], the places of each list that hold a relevant movie.
        relevant: int[users], R.
    """
    places = np.arange(1, hits.shape[1] + 1)
    discounts = 1 / np.log2(places + 1)
    attainable = np.minimum(relevant, hits.shape[1])
    found = hits.cumsum(axis=1)
    return np.column_stack(
        [
            hits @ discounts / np.cumsum(discounts)[attainable - 1],
            found[:, -1] / relevant,
            (hits * found / places).sum(axis=1) / attainable,
            found[:, -1] > 0,
        ]
    )


def found_in(lists: Ints, relevant: csr_array) -> npt.NDArray[np.bool_]:
    """bool[users, k], which places of the ``lists`` hold a movie that is ``relevant`` (users × movies) for the user."""
    users, movies = relevant.shape
    rows = np.arange(users, dtype=np.int64)[:, None]
    pairs = np.repeat(rows[:, 0], np.diff(relevant.indptr)) * movies + relevant.indices
    return np.isin(rows * movies + lists, pairs) & (lists >= 0)


def exposure(counts: Ints, lists: Mapping[str, Ints]) -> tuple[ExposureBin, ...]:
    """Deciles of the catalogue by training ratings, the least rated first; movies with equal counts stay together.

    Args:
        counts: int[movies], training ratings.
        lists: int[users, k], those of the model and of each baseline.
    """
    bins = np.searchsorted(deciles(counts), counts)
    places = {name: np.bincount(top[top >= 0], minlength=len(counts)) for name, top in lists.items()}
    shares = {
        name: np.bincount(bins, weights) / max(weights.sum(), 1)
        for name, weights in {"ratings": counts, **places}.items()
    }
    return tuple(
        ExposureBin(
            from_ratings=int(counts[bins == i].min()),
            to_ratings=int(counts[bins == i].max()),
            movies=int((bins == i).sum()),
            **{name: float(share[i]) for name, share in shares.items()},
        )
        for i in np.unique(bins)
    )
