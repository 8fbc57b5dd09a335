"""Champion and challenger: the published run and the new model, scored on the same test ratings."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mf.evaluation.bootstrap import Interval, paired_difference
from mf.evaluation.metrics import RMSE
from mf.model import MatrixFactorization
from mf.model_directory import Embeddings, TrainedModel
from mf.ratings.schema import MOVIE, RATED_AT, RATING, TIMESTAMP, USER, TrainedOn
from mf.ratings.vocabulary import Vocabulary
from mf.supabase.target import PublishedRun, Target

LEAST_USERS = 30  # with fewer users among the newer ratings the interval is too wide to be of use


@dataclass(frozen=True)
class PairedRmse:
    """RMSE of champion and challenger on the same test ratings, in rating units."""

    rows: int  # test ratings that both were scored on
    rmse: float  # the challenger's
    champion_rmse: float
    difference: float  # rmse - champion_rmse: above 0 the challenger is worse
    interval: Interval | None  # of the difference, a paired bootstrap over users; None with one user
    clean: bool  # the champion was certainly not trained on these ratings; else its RMSE is too low


@dataclass(frozen=True)
class Comparison:
    """Comparison of a new model with the published run."""

    run_id: str  # the champion's
    published_at: str  # ISO 8601
    note: str  # one sentence: what the figures show, or why there are none
    figures: PairedRmse | None = None  # None: not comparable


def compare(model: TrainedModel, test: pa.Table, target: Target, seed: int = 0) -> Comparison | None:
    """Scores the published run of ``target`` and ``model`` on the same ratings of ``test``.

    Runs of another source are not compared. The champion may have been trained on ratings that are test ratings now,
    which lowers its RMSE. The comparison is clean where that is ruled out: when both were trained on the same training
    part, or on the test ratings that are newer than all of the champion's (with ``split = time`` on a growing source,
    all of them).

    Args:
        model: the challenger.
        test: ratings that the challenger was not trained on.
        target: where it would be published.
        seed: seed of the bootstrap.

    Returns:
        ``None`` when no run is published.

    Raises:
        SupabaseError: Supabase cannot be reached, or refused.
        DataError: the published ids are of another type than those of ``test``.
    """
    run = target.published_run()
    if run is None:
        return None
    run_id, ours, theirs = run.header.run_id, model.trained_on, run.trained_on
    if ours is None or theirs is None:
        note = "not compared: the training ratings of this model, or of the published run, were not recorded"
        return Comparison(run_id, run.published_at, note)
    if not ours.is_same_source(theirs):
        other = "other columns of it" if ours.source == theirs.source else theirs.source
        note = f"not compared: this model was trained on {ours.source}, the published run on {other}"
        return Comparison(run_id, run.published_at, note)
    comparable, clean, note = _comparable_part(test, ours, theirs)
    figures = _paired_rmse(model, run, target.embeddings(run), comparable, seed, clean)
    return Comparison(run_id, run.published_at, note, figures)


def _comparable_part(test: pa.Table, ours: TrainedOn, theirs: TrainedOn) -> tuple[pa.Table, bool, str]:
    """The ratings to compare on, whether the comparison is clean, and a sentence for people."""
    if ours.content_hash == theirs.content_hash:
        return test, True, "clean: the published run was trained on the same ratings as this model, not on these"
    newer = _newer(test, theirs)
    if len(pc.unique(newer[USER])) >= LEAST_USERS:
        return newer, True, f"clean: these ratings are newer than all that the published run has seen ({theirs.until})"
    return (
        test,
        False,
        "not clean: the published run may have been trained on some of these ratings, which lowers its RMSE; this can "
        "show that the new model is better, not that it is worse (split=time compares on newer ratings)",
    )


def _newer(test: pa.Table, champion: TrainedOn) -> pa.Table:
    """The test ratings newer than all of the champion's; a rating without a time is not known to be newer."""
    if champion.until is None or RATED_AT not in test.column_names:
        return test.slice(0, 0)
    return test.filter(pc.greater(test[RATED_AT], pa.scalar(datetime.fromisoformat(champion.until), TIMESTAMP)))


def _paired_rmse(
    model: TrainedModel,
    run: PublishedRun,
    embeddings: tuple[Embeddings, Embeddings],
    test: pa.Table,
    seed: int,
    clean: bool,
) -> PairedRmse:
    # In float64, as in the evaluation.
    actual = test[RATING].to_numpy().astype(np.float64)
    challenger = model.predict(test[USER], test[MOVIE]).astype(np.float64)
    champion = predict(run, *embeddings, test).astype(np.float64)
    _, users = Vocabulary.encode(test[USER])
    interval = paired_difference(users, challenger - actual, champion - actual, seed)
    ours, theirs = RMSE.of(actual, challenger), RMSE.of(actual, champion)
    return PairedRmse(len(test), ours, theirs, ours - theirs, interval, clean)


def predict(run: PublishedRun, users: Embeddings, movies: Embeddings, test: pa.Table) -> npt.NDArray[np.float32]:
    """Predicted ratings float32[len(test)] of a published run, clipped; an unknown id has bias 0 and a zero vector.

    Raises:
        DataError: the published ids are of another type than those of ``test``.
    """
    header = run.header
    module = MatrixFactorization(
        len(users), len(movies), header.factors,
        rating_min=header.rating_min, rating_max=header.rating_max, mu=header.mu,
    )  # fmt: skip
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
