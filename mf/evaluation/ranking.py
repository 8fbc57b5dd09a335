"""Quality of top-k lists over the whole catalogue: the published ones and their baselines."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from scipy.sparse import csr_array
from torch import Tensor

from mf.biases import Floats, Ints
from mf.evaluation.accuracy import deciles
from mf.evaluation.bootstrap import Interval, bootstrap_ratios, percentile_interval
from mf.evaluation.config import EvaluateConfig
from mf.evaluation.encoded import EncodedRatings, pairs, take_rows
from mf.evaluation.metrics import CATALOGUE_METRICS, LIST_METRICS, NDCG, Hits, Scores
from mf.evaluation.topk import top_k_by_product, top_k_in_one_order
from mf.model_directory import TrainedModel
from mf.ranking import Interactions, RankingModel
from mf.ranking.relevance import default_threshold
from mf.ratings.schema import MOVIE, RATING, USER, times
from mf.ratings.vocabulary import Vocabulary

RECENT = 0.1  # the newest tenth of the training ratings, which recent popularity counts
FOLDED_IN = (1, 3, 10)  # training ratings per user in the cold-start curve
FOLDED_IN_USERS = 2000  # users of the cold-start curve, at most
# Users for whom lists are made beside the published ones, at most: NDCG's interval is then about 0.005 wide.
LISTED_USERS = 20_000
SCORED_USERS = 20_000  # users whose lists are scored, at most; more make the interval narrower and nothing else
EXPOSED = ("model", "user_movie_bias", "popularity")
RANKING_MODEL, PREDICTED_RATING = "ranking model", "predicted rating"


@dataclass(frozen=True)
class Ranking:
    """Scores of top-k lists for one group of users: by the model and by baselines.

    The global mean is no baseline here, since it gives every movie the same score.
    """

    k: int  # length of the lists
    relevance_threshold: float | None  # a test movie rated this or higher is relevant; None: clicks, each one is
    movies: int  # size of the catalogue: movies that the ranking model knows; without one, with a training rating
    left_out: str  # parts whose movies are left out of the user's own list: "training", or "training and validation"
    users: int  # users with a relevant test movie; the metrics are means over them
    users_without: int  # test users without one; not counted
    relevant: int  # relevant test ratings
    out_of_reach: int  # relevant test ratings of movies outside the catalogue, which no list can hold
    model: Scores | None = None  # of the lists that are published; None when there are no users
    user_movie_bias: Scores | None = None  # by movie bias: the user's bias does not change the order; None for clicks
    popularity: Scores | None = None  # by number of training ratings
    reason: str = ""  # why there are no scores
    ordered_by: str = PREDICTED_RATING  # order of the lists that are published; "ranking model" where there is one
    drawn_from: int = 0  # users with a relevant test movie, of whom ``users`` are a sample
    predicted_rating: Scores | None = None  # by the star model's prediction; only where there are both models
    predicted_rating_users: int = 0  # whose lists by predicted rating are scored: at most LISTED_USERS, a sample
    recent_popularity: Scores | None = None  # by number of recent ratings; only beside a ranking model, with times
    recent_since: str | None = None  # ISO 8601, the oldest rating that recent popularity counts
    ndcg_difference: Interval | None = None  # of NDCG(model) - NDCG(popularity) over the same draws of users

    @property
    def has_ranking_model(self) -> bool:
        return self.ordered_by == RANKING_MODEL

    def scores(self) -> dict[str, Scores]:
        """Scores by the name of the model or baseline; empty when there are no users."""
        rankers = {
            "model": self.model,
            "popularity": self.popularity,
            "recent_popularity": self.recent_popularity,
            "predicted_rating": self.predicted_rating,
            "user_movie_bias": self.user_movie_bias,
        }
        return {name: scores for name, scores in rankers.items() if scores}

    def line(self) -> str:
        """``lists  NDCG@10 0.256, popularity 0.124``, or why there are no figures."""
        if self.model is None or self.popularity is None:
            return f"lists  no figure: {self.reason}"
        name = NDCG.name
        return f"lists  {NDCG.heading(self.k)} {self.model[name]:.3f}, popularity {self.popularity[name]:.3f}"


@dataclass(frozen=True)
class CurvePoint:
    """Scores of the lists of users folded in with a few ratings each."""

    ratings: int  # per user, drawn at random from the user's training ratings
    model: Scores


@dataclass(frozen=True)
class ColdStartCurve:
    """Lists of test users whom the ranking model is given as new users, with few of their training ratings.

    The lists leave out everything that the user has rated in training and validation, so that the same test movies are
    to be found at every point.
    """

    users: int  # drawn at random, the same at every point
    drawn_from: int  # users with a relevant test movie and at least as many training ratings as the last point has
    points: tuple[CurvePoint, ...] = ()
    popularity: Scores | None = None  # of the same users; None when there are none


@dataclass(frozen=True)
class ExposureBin:
    """Movies with similar numbers of training ratings, and their share of all list positions."""

    from_ratings: int
    to_ratings: int
    movies: int
    ratings: float  # share of the training ratings
    model: float  # share of the list positions, as are the next two
    user_movie_bias: float | None  # None for clicks
    popularity: float


@dataclass(frozen=True)
class PublishedLists:
    """The lists of users seen in training that the model would publish, to be compared with another model's."""

    k: int
    threshold: float | None  # relevance threshold; None: clicks, each one is relevant
    users: pa.Array  # ids of the users with a relevant test movie, sorted
    movies: Vocabulary  # the catalogue
    rated: csr_array  # bool[users, movies], what the lists leave out
    lists: Ints  # int64[users, k], rows of ``movies``; -1: empty position
    known: pa.Table  # their ratings of the training and the validation part, and some other users'
    device: torch.device  # where lists are computed


@dataclass(frozen=True)
class ListResults:
    """Everything that is known of the lists of the test users."""

    seen: Ranking  # users seen in training
    unseen: Ranking  # cold-start users
    exposure: tuple[ExposureBin, ...]  # in the lists of ``seen``
    curve: ColdStartCurve | None = None  # None without a ranking model, as is the next one
    published: PublishedLists | None = None


@dataclass(frozen=True)
class _Task:
    """Everything that the lists of both groups of users are made and scored with."""

    model: TrainedModel
    ratings: EncodedRatings
    config: EvaluateConfig
    threshold: float
    catalogue: Vocabulary
    relevant: csr_array  # bool[test users, catalogue]
    relevant_counts: Ints  # [test users], movies outside the catalogue included
    train_counts: Ints  # [catalogue], training ratings
    orders: dict[str, Floats | Ints]  # [catalogue], scores by which a baseline orders the movies for everybody
    recent_since: str | None
    trained: pa.Table  # training ratings of the users whose lists are scored
    known: pa.Table  # these and their validation ratings

    @property
    def device(self) -> torch.device:
        return self.model.device


@dataclass(frozen=True)
class _Group:
    """Test users with a relevant test movie, seen in training or not, and their lists by the ranker's name."""

    users: Ints  # rows of the test part's users
    ids: pa.Array
    rated: csr_array  # bool[users, catalogue]
    relevant: csr_array  # bool[users, catalogue]
    relevant_counts: Ints  # movies outside the catalogue included
    lists: dict[str, Ints]  # int64[users, k]


def score_lists(
    ratings: EncodedRatings, model: TrainedModel, movie_bias: Floats | None, config: EvaluateConfig
) -> ListResults:
    """Scores the lists of users seen in training, those of cold-start users, and the exposure in the former.

    A list is taken from the whole catalogue, less the movies that the user has already rated. A sample of the catalogue
    would give other results (Krichene and Rendle, "On Sampled Metrics for Item Recommendation", 2020).

    Args:
        ratings: training and test part.
        model: the model to score.
        movie_bias: float64[training movies], b_m of the bias baseline; None for clicks.
        config: k, threshold, bootstrap and seed.
    """
    threshold = config.relevance_threshold
    if threshold is None or not ratings.has_ratings:
        threshold = default_threshold(ratings.range)
    counts = ratings.relevant_counts(threshold)
    is_seen = ratings.users.train_counts > 0
    if model.ranking:
        is_seen = model.ranking.users.rows(ratings.users.test_ids) >= 0
    some_seen, some_unseen = (
        sample(np.flatnonzero(here & (counts > 0)), SCORED_USERS, config.seed) for here in (is_seen, ~is_seen)
    )
    ids = ratings.users.test_ids.take(pa.array([*some_seen, *some_unseen], pa.int64()))
    task = _task(ratings, model, movie_bias, config, threshold, counts, ids)
    seen, group = _score_group(task, is_seen, some_seen, "seen")
    unseen, _ = _score_group(task, ~is_seen, some_unseen, "unseen")
    shown = {name: group.lists[name] for name in EXPOSED if name in group.lists}
    exposed = exposure(task.train_counts, shown) if seen.users else ()
    if not model.ranking:
        return ListResults(seen, unseen, exposed)
    published = PublishedLists(
        config.k,
        seen.relevance_threshold,
        group.ids,
        task.catalogue,
        group.rated,
        group.lists["model"],
        task.known,
        task.device,
    )
    return ListResults(seen, unseen, exposed, _cold_start_curve(task, model.ranking.model, group), published)


def _task(
    ratings: EncodedRatings,
    model: TrainedModel,
    movie_bias: Floats | None,
    config: EvaluateConfig,
    threshold: float,
    relevant_counts: Ints,
    users: pa.Array,
) -> _Task:
    catalogue = model.ranking.movies if model.ranking else ratings.catalogue
    train_counts = ratings.in_catalogue(ratings.movie_counts, catalogue)
    orders: dict[str, Floats | Ints] = {"popularity": train_counts}
    if movie_bias is not None:
        orders["user_movie_bias"] = ratings.in_catalogue(movie_bias, catalogue)
    since = None
    if model.ranking and (recent := ratings.recent_counts(RECENT)):
        newest, micros = recent
        since = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)).isoformat()
        # Of movies with equally many recent ratings the more popular one comes first.
        recently = ratings.in_catalogue(newest, catalogue)
        orders["recent_popularity"] = recently + train_counts / (train_counts.max() + 1)
    trained = ratings.train.of_users(users)
    return _Task(
        model=model,
        ratings=ratings,
        config=config,
        threshold=threshold,
        catalogue=catalogue,
        relevant=ratings.relevant(threshold, catalogue),
        relevant_counts=relevant_counts,
        train_counts=train_counts,
        orders=orders,
        recent_since=since,
        trained=trained,
        known=pa.concat_tables([trained, ratings.validation.of_users(users)]) if ratings.validation else trained,
    )


def _score_group(task: _Task, everybody: npt.NDArray[np.bool_], users: Ints, kind: str) -> tuple[Ranking, _Group]:
    """Scores of the test users ``everybody`` bool[test users], who are "seen" or "unseen" in training, by the lists of
    ``users``, a sample of those with a relevant test movie."""
    own, config, ratings = task.model.ranking, task.config, task.ratings
    eligible = int((everybody & (task.relevant_counts > 0)).sum())
    ids = ratings.users.test_ids.take(pa.array(users))
    cells = Vocabulary(ids).rows(task.known[USER]), task.catalogue.rows(task.known[MOVIE])
    rated = pairs(*cells, (len(ids), len(task.catalogue)))
    if own:
        p = torch.from_numpy(take_rows(own.vectors, own.users.rows(ids))).to(task.device)
        lists = {"model": ranking_lists(own.model, p, rated, config.k)}
    else:
        lists = {"model": _star_lists(task, ids, rated)}
    lists |= {name: top_k_in_one_order(order, rated, config.k) for name, order in task.orders.items()}
    group = _Group(users, ids, rated, task.relevant[users], task.relevant_counts[users], lists)
    scores: dict[str, Scores] = {}
    difference, sampled = None, sample(np.arange(len(users)), LISTED_USERS, config.seed)
    if len(users):
        scores, difference = _scores(lists, group.relevant, group.relevant_counts, config)
        if own and task.model.module:
            stars = {"predicted_rating": _star_lists(task, ids.take(pa.array(sampled)), rated[sampled])}
            scores |= _scores(stars, group.relevant[sampled], group.relevant_counts[sampled], config)[0]
    total = int(group.relevant_counts.sum())
    ranking = Ranking(
        k=config.k,
        relevance_threshold=task.threshold if ratings.has_ratings else None,
        movies=len(task.catalogue),
        left_out="training" if ratings.validation is None else "training and validation",
        users=len(users),
        users_without=int(everybody.sum()) - eligible,
        drawn_from=eligible,
        relevant=total,
        out_of_reach=total - group.relevant.nnz,
        reason="" if len(users) else _reason(int(everybody.sum()), kind, task.threshold),
        ordered_by=RANKING_MODEL if own else PREDICTED_RATING,
        predicted_rating_users=len(sampled) if own and task.model.module else 0,
        recent_since=task.recent_since,
        ndcg_difference=difference,
        **scores,
    )
    return ranking, group


def sample(rows: Ints, most: int, seed: int) -> Ints:
    """At most ``most`` of ``rows``, drawn at random, in their order."""
    return rows if len(rows) <= most else np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def ranking_lists(model: RankingModel, p: Tensor, rated: csr_array, k: int) -> Ints:
    """int64[users, k], the lists of users with the vectors ``p`` [users, factors], computed on its device."""
    # Copies, since PyTorch warns of arrays that cannot be written.
    q, b_m = (torch.tensor(part, device=p.device) for part in (model.embedding, model.bias))
    return top_k_by_product(p, q, b_m, rated, k)


def _star_lists(task: _Task, ids: pa.Array, rated: csr_array) -> Ints:
    """int64[users, k], lists by predicted rating; an id that the star model does not know has bias 0 and a zero
    vector."""
    model, k = task.model, task.config.k
    user_rows = torch.from_numpy(model.users.rows(ids)).to(task.device)
    movie_rows = torch.from_numpy(model.movies.rows(task.catalogue.ids)).to(task.device)
    with torch.no_grad():
        p, q, _, b_m = model.star_model().embed(user_rows.clamp(min=0), movie_rows.clamp(min=0))
    user_known, movie_known = (user_rows >= 0).unsqueeze(1), (movie_rows >= 0).unsqueeze(1)
    return top_k_by_product(p * user_known, q * movie_known, b_m * movie_known.squeeze(1), rated, k)


def _cold_start_curve(task: _Task, model: RankingModel, group: _Group) -> ColdStartCurve:
    """The curve for a sample of the users of ``group``."""
    ratings, config = task.ratings, task.config
    rng, most = np.random.default_rng(config.seed), FOLDED_IN[-1]
    suitable = np.flatnonzero(ratings.users.train_counts[group.users] >= most)
    chosen = sample(suitable, FOLDED_IN_USERS, config.seed)
    if not len(chosen):
        return ColdStartCurve(0, 0)
    number = Vocabulary(group.ids.take(pa.array(chosen))).rows(task.trained[USER])
    rows = rng.permutation(np.flatnonzero(number >= 0))
    rows = rows[np.argsort(number[rows], kind="stable")]  # each user's in a random order
    users, trained = number[rows], task.trained
    place = np.arange(len(rows)) - np.searchsorted(users, users)
    movies = task.catalogue.rows(trained[MOVIE])
    stars = trained[RATING].to_numpy() if ratings.has_ratings else None
    rated_at = times(trained) if ratings.train.has_times else None
    rated, relevant, counts = (part[chosen] for part in (group.rated, group.relevant, group.relevant_counts))
    lists = {}
    for n in FOLDED_IN:
        first = place < n
        at = rows[first]
        some = Interactions(
            torch.from_numpy(users[first]),
            torch.from_numpy(movies[at]),
            None if stars is None else torch.from_numpy(stars[at]),
            len(chosen),
            len(model.bias),
            None if rated_at is None else torch.from_numpy(rated_at[at]),
        )
        p = torch.from_numpy(model.user_vectors(some)).to(task.device)
        lists[str(n)] = ranking_lists(model, p, rated, config.k)
    scores, _ = _scores({**lists, "popularity": group.lists["popularity"][chosen]}, relevant, counts, config)
    points = tuple(CurvePoint(n, scores[str(n)]) for n in FOLDED_IN)
    return ColdStartCurve(len(chosen), len(suitable), points, scores["popularity"])


def _scores(
    lists: Mapping[str, Ints], relevant: csr_array, relevant_counts: Ints, config: EvaluateConfig
) -> tuple[dict[str, Scores], Interval | None]:
    """Scores of each ranker's lists, all intervals from the same draws of users, and the interval of the first
    ranker's NDCG minus popularity's, if both are there."""
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
    if "popularity" not in lists:
        return scores, None
    first, popularity = (rank * n + LIST_METRICS.index(NDCG) for rank in (0, list(lists).index("popularity")))
    return scores, percentile_interval(draws[:, first] - draws[:, popularity], len(relevant_counts))


def _reason(users: int, kind: str, threshold: float) -> str:
    """Why there are no scores."""
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
    biases = shares.pop("user_movie_bias", None)
    return tuple(
        ExposureBin(
            from_ratings=int(train_counts[bins == i].min()),
            to_ratings=int(train_counts[bins == i].max()),
            movies=int((bins == i).sum()),
            user_movie_bias=None if biases is None else float(biases[i]),
            **{name: float(share[i]) for name, share in shares.items()},
        )
        for i in np.unique(bins)
    )
