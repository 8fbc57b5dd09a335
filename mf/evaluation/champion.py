"""Champion and challenger: the published run and the new model, scored on the same test ratings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from scipy.sparse import csr_array

from mf.biases import Floats, Ints
from mf.evaluation.bootstrap import SAMPLES, Interval, bootstrap_ratios, paired_difference, percentile_interval
from mf.evaluation.encoded import take_rows
from mf.evaluation.metrics import CATALOGUE_METRICS, LIST_METRICS, NDCG, RATING_METRICS, RMSE
from mf.evaluation.ranking import (
    LISTED_USERS,
    PREDICTED_RATING,
    RANKING_MODEL,
    PublishedLists,
    find_hits,
    sample,
    score_users,
)
from mf.evaluation.topk import top_k_by_product
from mf.model import MatrixFactorization
from mf.model_directory import Embeddings, PublishedModel, PublishedRanking, TrainedModel, read_model
from mf.ranking import Interactions, RankingModel
from mf.ratings.schema import MOVIE, RATED_AT, RATING, TIMESTAMP, USER, TrainedOn, has_ratings, times
from mf.ratings.vocabulary import Vocabulary
from mf.supabase.target import PublishedRun, Target

NO_COMMON_USER = "not compared: no user seen in training has a relevant rating among the compared ones"
LEAST_USERS = 30  # with fewer users among the newer ratings the interval is too wide to be of use

NOT_HERE = (
    "not compared: the published run was trained on all ratings, the model that was judged is not here, and fewer than "
    f"{LEAST_USERS} users have newer test ratings"
)


@dataclass(frozen=True)
class PairedFigure:
    """A metric of champion and challenger, on the same ratings or lists."""

    model: float  # the challenger's
    champion: float
    difference: float  # model - champion
    interval: Interval | None = None  # of the difference; None: there is none


@dataclass(frozen=True)
class PairedRmse:
    """RMSE of champion and challenger on the same test ratings, in rating units."""

    rows: int  # test ratings that both were scored on
    rmse: float  # the challenger's
    champion_rmse: float
    difference: float  # rmse - champion_rmse: above 0 the challenger is worse
    interval: Interval | None  # of the difference, a paired bootstrap over users; None with one user
    clean: bool  # the champion was certainly not trained on these ratings; else its RMSE is too low
    others: Mapping[str, PairedFigure] = field(default_factory=dict)  # MAE


@dataclass(frozen=True)
class PairedNdcg:
    """NDCG@k of champion and challenger for the same users and test ratings."""

    k: int
    users: int  # with a relevant one among these test ratings; at most ``LISTED_USERS``, drawn at random
    ndcg: float  # the challenger's
    champion_ndcg: float
    difference: float  # ndcg - champion_ndcg: below 0 the challenger is worse
    interval: Interval | None  # of the difference, a paired bootstrap over users; None with one user
    clean: bool  # neither model was trained on these ratings, in its training or its validation part
    ordered_by: str  # the champion's lists: by its ranking model or, without one, by predicted rating
    note: str = ""  # one sentence: whether the comparison is clean, and why
    others: Mapping[str, PairedFigure] = field(default_factory=dict)  # the other metrics of lists, and coverage


@dataclass(frozen=True)
class Comparison:
    """Comparison of a new model with the published run."""

    run_id: str  # the champion's
    published_at: str  # ISO 8601
    note: str  # one sentence: what the RMSEs (of clicks, the lists) show, or why the runs are not compared
    figures: PairedRmse | None = None  # None: not comparable, or clicks
    lists: PairedNdcg | None = None  # None: not comparable, no ranking model, or no relevant test rating


def compare(
    model: TrainedModel, test: pa.Table, target: Target, seed: int = 0, lists: PublishedLists | None = None
) -> Comparison | None:
    """Scores the published run of ``target`` and ``model`` on the same ratings of ``test``.

    Runs of another source are not compared. The champion may have been trained on ratings that are test ratings now,
    which lowers its RMSE. The comparison is clean where that is ruled out: when both were trained on the same training
    part, when the champion held these ratings out too (``split = hash`` with the same seed), or on the test ratings
    that are newer than all of the champion's (with ``split = time`` on a growing source, all of them). Ranking models
    are trained on the validation part too, so that for lists both parts must be the same.

    A run that was fitted to all ratings after it was accepted is represented by the model that was judged, where its
    directory can be read, else it is compared on newer ratings alone. Clicks are compared by lists alone.

    Args:
        model: the challenger.
        test: ratings that the challenger was not trained on.
        target: where it would be published.
        seed: seed of the bootstrap.
        lists: of the challenger's ranking model, which are compared with the published run's; ``None``: they are not.

    Returns:
        ``None`` when no run is published.

    Raises:
        SupabaseError: Supabase cannot be reached, or refused.
        DataError: the published ids are of another type than those of ``test``.
    """
    run = target.published_run()
    if run is None:
        return None
    run_id, ours = run.header.run_id, model.trained_on
    champion = _judged_twin(run)
    theirs = champion.trained_on if champion else run.trained_on
    if ours is None or theirs is None:
        note = "not compared: the training ratings of this model, or of the published run, were not recorded"
        return Comparison(run_id, run.published_at, note)
    if not ours.is_same_source(theirs):
        other = "other columns of it" if ours.source == theirs.source else theirs.source
        note = f"not compared: this model was trained on {ours.source}, the published run on {other}"
        return Comparison(run_id, run.published_at, note)
    refitted = run.judged is not None and run.judged.run_id is not None
    only_newer = refitted and champion is None
    twin = ""
    if champion:
        twin = f"; compared with model {champion.header.run_id}, which was judged before it was fitted to all ratings"
        stars = (champion.users, champion.movies) if champion.users and champion.movies else None
    else:
        stars = target.embeddings(run) if run.header.has_stars else None
    same = ours.content_hash == theirs.content_hash
    figures, paired, note = None, None, NO_COMMON_USER
    if lists:
        ranking = champion.ranking if champion else target.ranking(run)
        # Without a ranking model its lists are the star model's, which was not trained on the validation part.
        seen_same = ours.seen_hash == theirs.seen_hash != "" if ranking else same
        part = _comparable_part(test, ours, theirs, seen_same, "raises its NDCG")
        if only_newer and not part.clean:
            return Comparison(run_id, run.published_at, NOT_HERE)
        paired = _paired_ndcg(lists, ranking, stars, part, seed)
        note = paired.note + twin if paired else note
    if model.module and stars:
        part = _comparable_part(test, ours, theirs, same, "lowers its RMSE")
        if only_newer and not part.clean:
            return Comparison(run_id, run.published_at, NOT_HERE)
        figures, note = _paired_rmse(model, champion or run, stars, part, seed), part.note + twin
    return Comparison(run_id, run.published_at, note, figures, paired)


def _judged_twin(run: PublishedRun) -> PublishedModel | None:
    """The model that was judged before it was fitted to all ratings and published, where its directory is at hand."""
    directory = run.judged and run.judged.directory()
    return read_model(directory) if directory else None


@dataclass(frozen=True)
class _Part:
    """The test ratings to compare on."""

    test: pa.Table
    clean: bool
    note: str  # whether the comparison is clean, as a sentence for people


def _comparable_part(test: pa.Table, ours: TrainedOn, theirs: TrainedOn, same: bool, effect: str) -> _Part:
    """Args:
    same: both models were trained on the same ratings.
    effect: what it does to the champion to have been trained on test ratings.
    """
    if theirs.held_out_too(ours):
        return _Part(test, True, "clean: the published run held these ratings out too (split=hash with the same seed)")
    if same:
        return _Part(test, True, "clean: the published run was trained on the same ratings as this model, not on these")
    newer = _newer(test, theirs)
    if len(pc.unique(newer[USER])) >= LEAST_USERS:
        note = f"clean: these ratings are newer than all that the published run has seen ({theirs.until})"
        return _Part(newer, True, note)
    return _Part(
        test,
        False,
        f"not clean: the published run may have been trained on some of these ratings, which {effect}; this can show "
        "that the new model is better, not that it is worse (split=time compares on newer ratings)",
    )


def _newer(test: pa.Table, champion: TrainedOn) -> pa.Table:
    """The test ratings newer than all of the champion's; a rating without a time is not known to be newer."""
    if champion.until is None or RATED_AT not in test.column_names:
        return test.slice(0, 0)
    return test.filter(pc.greater(test[RATED_AT], pa.scalar(datetime.fromisoformat(champion.until), TIMESTAMP)))


def _paired_rmse(
    model: TrainedModel,
    run: PublishedRun | PublishedModel,
    embeddings: tuple[Embeddings, Embeddings],
    part: _Part,
    seed: int,
) -> PairedRmse:
    test = part.test
    # In float64, as in the evaluation.
    actual = test[RATING].to_numpy().astype(np.float64)
    challenger = model.predict(test[USER], test[MOVIE]).astype(np.float64)
    champion = predict(run, *embeddings, test).astype(np.float64)
    _, users = Vocabulary.encode(test[USER])
    interval = paired_difference(users, challenger - actual, champion - actual, seed)
    ours, theirs = RMSE.of(actual, challenger), RMSE.of(actual, champion)
    others = {metric.name: (metric.of(actual, challenger), metric.of(actual, champion)) for metric in RATING_METRICS}
    del others[RMSE.name]
    figures = {name: PairedFigure(a, b, a - b) for name, (a, b) in others.items()}
    return PairedRmse(len(test), ours, theirs, ours - theirs, interval, part.clean, figures)


def _paired_ndcg(
    lists: PublishedLists,
    ranking: PublishedRanking | None,
    embeddings: tuple[Embeddings, Embeddings] | None,
    part: _Part,
    seed: int,
) -> PairedNdcg | None:
    """Both models' lists, each from its own catalogue; ``None`` without a relevant rating in the part."""
    test = part.test
    rows = Vocabulary(lists.users).rows(test[USER])
    liked = rows >= 0
    if lists.threshold is not None:
        liked &= test[RATING].to_numpy() >= lists.threshold
    rows, movies = rows[liked], test[MOVIE].filter(pa.array(liked))
    counts = np.bincount(rows, minlength=len(lists.users))
    chosen = sample(np.flatnonzero(counts), LISTED_USERS, seed)
    if not len(chosen):
        return None
    users, rated, counts = lists.users.take(pa.array(chosen)), lists.rated[chosen], counts[chosen]

    def score(top: Ints, catalogue: Vocabulary | Embeddings) -> Floats:
        columns = catalogue.rows(movies)
        there = columns >= 0
        pairs = np.ones(there.sum(), np.bool_), (rows[there], columns[there])
        relevant = csr_array(pairs, shape=(len(lists.users), len(catalogue)))[chosen]
        return score_users(find_hits(top, relevant), counts)

    if ranking:
        theirs = Embeddings(ranking.movie_ids, ranking.bias, ranking.embedding)
        p = _ranking_vectors(ranking, theirs, users, lists.known)
    else:
        assert embeddings is not None, "a run without a star model has a ranking model"
        theirs = embeddings[1]
        p = take_rows(embeddings[0].vectors, embeddings[0].rows(users))
    # Copies, since PyTorch warns of arrays that cannot be written.
    q, b_m = torch.tensor(theirs.vectors), torch.tensor(theirs.bias)
    left_out = _in_columns(rated, theirs.rows(lists.movies.ids), len(theirs))
    tops = lists.lists[chosen], top_k_by_product(torch.from_numpy(p), q, b_m, left_out, lists.k)
    challenger, champion = score(tops[0], lists.movies), score(tops[1], theirs)
    draws = bootstrap_ratios(np.hstack([challenger, champion]), np.ones(len(chosen)), SAMPLES, seed)
    figures = {}
    for i, metric in enumerate(LIST_METRICS):
        a, b = float(challenger[:, i].mean()), float(champion[:, i].mean())
        interval = percentile_interval(draws[:, i] - draws[:, len(LIST_METRICS) + i], len(chosen))
        figures[metric.name] = PairedFigure(a, b, a - b, interval)
    for whole in CATALOGUE_METRICS:
        a, b = whole.of_lists(tops[0], len(lists.movies)), whole.of_lists(tops[1], len(theirs))
        figures[whole.name] = PairedFigure(a, b, a - b)
    ndcg = figures.pop(NDCG.name)
    return PairedNdcg(
        k=lists.k,
        users=len(chosen),
        ndcg=ndcg.model,
        champion_ndcg=ndcg.champion,
        difference=ndcg.difference,
        interval=ndcg.interval,
        clean=part.clean,
        note=part.note,
        ordered_by=RANKING_MODEL if ranking else PREDICTED_RATING,
        others=figures,
    )


def _ranking_vectors(
    ranking: PublishedRanking, movies: Embeddings, users: pa.Array, known: pa.Table
) -> npt.NDArray[np.float32]:
    """float32[users, factors], p as the database has it: the stored vectors or, where it sums them up from its table of
    ratings, sums over the ratings of ``known``."""
    if len(ranking.user_ids):
        stored = Embeddings(ranking.user_ids, np.zeros(len(ranking.user_ids), np.float32), ranking.vectors)
        return take_rows(stored.vectors, stored.rows(users))
    numbers = ranking.numbers
    model = RankingModel(
        ranking.bias, ranking.embedding, ranking.history, ranking.liking,
        mu=numbers["mu"], sd=numbers["sd"], rho=numbers["rho"], recency=bool(numbers["recency"]),
        regularization=0.0, teacher_rank=0, energy_beyond=0.0, relevance_threshold=None,  # of the training alone
    )  # fmt: skip
    rows = Vocabulary(users).rows(known[USER])
    known, rows = known.filter(pa.array(rows >= 0)), rows[rows >= 0]
    return model.user_vectors(
        Interactions(
            torch.from_numpy(rows),
            torch.from_numpy(movies.rows(known[MOVIE])),
            torch.tensor(known[RATING].to_numpy()) if has_ratings(known) else None,
            len(users),
            len(movies),
            torch.tensor(times(known)) if RATED_AT in known.column_names else None,
        )
    )


def _in_columns(matrix: csr_array, columns: Ints, n: int) -> csr_array:
    """``matrix`` with its column i as column ``columns[i]`` of ``n``; -1 leaves it out."""
    rows, moved = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), columns[matrix.indices]
    there = moved >= 0
    return csr_array((np.ones(there.sum(), np.bool_), (rows[there], moved[there])), shape=(matrix.shape[0], n))


def predict(
    run: PublishedRun | PublishedModel, users: Embeddings, movies: Embeddings, test: pa.Table
) -> npt.NDArray[np.float32]:
    """Predicted ratings float32[len(test)] of a published run, clipped; an unknown id has bias 0 and a zero vector.

    Raises:
        DataError: the published ids are of another type than those of ``test``.
    """
    header = run.header
    module = MatrixFactorization(len(users), len(movies), header.factors, **header.stars())
    tables = (
        (USER, users, module.user_factors, module.user_bias),
        (MOVIE, movies, module.movie_factors, module.movie_bias),
    )
    rows = []
    for column, embeddings, factors, bias in tables:
        with torch.no_grad():
            factors.weight.copy_(torch.tensor(embeddings.vectors))
            bias.weight.copy_(torch.tensor(embeddings.bias).unsqueeze(-1))
        rows.append(torch.from_numpy(embeddings.rows(test[column])))
    predicted: npt.NDArray[np.float32] = module.predict(*rows).numpy()
    return predicted
