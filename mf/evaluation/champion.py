"""The published run, the champion, on the test ratings of the run that would take its place, the challenger."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mf.evaluation.accuracy import rmse
from mf.evaluation.bootstrap import Interval, paired_difference
from mf.model import MatrixFactorization
from mf.model_directory import Embeddings, TrainedModel
from mf.ratings.schema import MOVIE, RATED_AT, RATING, TIMESTAMP, USER, TrainedOn
from mf.ratings.vocabulary import Vocabulary
from mf.supabase.target import PublishedRun, Target

LEAST_USERS = 30  # whose newer ratings alone are compared; an interval over fewer says little


@dataclass(frozen=True)
class Figures:
    """Both on the same test ratings; in rating units."""

    rows: int  # test ratings that both were scored on
    rmse: float  # the challenger's
    champion_rmse: float
    difference: float  # rmse - champion_rmse: above 0 the challenger is worse
    interval: Interval | None  # of the difference, a paired bootstrap over users; None with one user alone
    clean: bool  # whether the champion cannot have trained on these ratings; else its figure is flattered


@dataclass(frozen=True)
class Comparison:
    """The published run beside this one, as far as they can be compared."""

    run_id: str  # the champion's
    published_at: str  # ISO 8601
    note: str  # one sentence: what the figures say, or why there are none
    figures: Figures | None = None


def compare(model: TrainedModel, test: pa.Table, target: Target, seed: int = 0) -> Comparison | None:
    """Scores the run that is published at ``target`` as ``model`` is scored, on the same ratings of ``test``.

    It counts only when it was trained on the same source. It may have seen ratings that are test ratings now, which
    flatters its figure; where it can be told that it has not, the comparison is clean: when its training part was the
    same as this one's, or on those test ratings that are newer than all it has seen (all of them with ``split = time``
    on a source that grows).

    Args:
        model: the challenger.
        test: a table of ratings that it has not seen.
        target: where it would be published.
        seed: of the bootstrap.

    Returns:
        ``None`` when no run is published.

    Raises:
        SupabaseError: Supabase cannot be reached, or refused.
        DataError: the published ids are of another type than those of ``test``.
    """
    run = target.published_run()
    if run is None:
        return None
    ours, theirs = model.trained_on, run.trained_on
    if ours is None or theirs is None:
        note = "not compared: which ratings it, or this model, was trained on is not recorded"
        return Comparison(run.header.run_id, run.published_at, note)
    if not ours.is_same_source(theirs):
        other = "other columns of it" if ours.source == theirs.source else theirs.source
        note = f"not compared: this model was trained on {ours.source}, and it on {other}"
        return Comparison(run.header.run_id, run.published_at, note)
    part, clean, note = _fair_part(test, ours, theirs)
    figures = _figures(model, run, target.embeddings(run), part, seed, clean)
    return Comparison(run.header.run_id, run.published_at, note, figures)


def _fair_part(test: pa.Table, ours: TrainedOn, theirs: TrainedOn) -> tuple[pa.Table, bool, str]:
    """The ratings to compare on, whether the champion cannot have trained on them, and what that means."""
    if ours.content_hash == theirs.content_hash:
        return test, True, "clean: it was trained on the same ratings as this model, and on none of these"
    newer = _newer(test, theirs)
    if len(pc.unique(newer[USER])) >= LEAST_USERS:
        return newer, True, f"clean: all that it has seen is of {theirs.until} or older, and these ratings are newer"
    return (
        test,
        False,
        "not clean: it may have trained on some of these ratings, which flatters its figure; this can show that the "
        "model is better than it, and not that it is worse (split = time compares on newer ratings)",
    )


def _newer(test: pa.Table, seen: TrainedOn) -> pa.Table:
    """The test ratings that are newer than all that was seen; of those without a time that cannot be told."""
    if seen.until is None or RATED_AT not in test.column_names:
        return test.slice(0, 0)
    return test.filter(pc.greater(test[RATED_AT], pa.scalar(datetime.fromisoformat(seen.until), TIMESTAMP)))


def _figures(
    model: TrainedModel,
    run: PublishedRun,
    embeddings: tuple[Embeddings, Embeddings],
    test: pa.Table,
    seed: int,
    clean: bool,
) -> Figures:
    # In float64, as the evaluation has it.
    actual = test[RATING].to_numpy().astype(np.float64)
    challenger = model.predict(test[USER], test[MOVIE]).astype(np.float64)
    champion = predict(run, *embeddings, test).astype(np.float64)
    _, users = Vocabulary.encode(test[USER])
    interval = paired_difference(users, challenger - actual, champion - actual, seed)
    ours, theirs = rmse(actual, challenger), rmse(actual, champion)
    return Figures(len(test), ours, theirs, ours - theirs, interval, clean)


def predict(run: PublishedRun, users: Embeddings, movies: Embeddings, test: pa.Table) -> npt.NDArray[np.float32]:
    """Predicted ratings float32[len(test)], clipped, of a run with these embeddings; ids that it does not know count as
    bias 0 and a zero vector.

    Raises:
        DataError: the ids are of another type than those of ``test``.
    """
    header = run.header
    module = MatrixFactorization(
        len(users), len(movies), header.factors,
        rating_min=header.rating_min, rating_max=header.rating_max, mu=header.mu,
    )  # fmt: skip
    sides = (
        (USER, users, module.user_factors, module.user_bias),
        (MOVIE, movies, module.movie_factors, module.movie_bias),
    )
    rows = []
    for name, side, factors, bias in sides:
        with torch.no_grad():
            factors.weight.copy_(torch.tensor(side.vectors))
            bias.weight.copy_(torch.tensor(side.bias).unsqueeze(-1))
        rows.append(torch.from_numpy(side.rows(test[name])))
    predicted: npt.NDArray[np.float32] = module.predict(*rows).numpy()
    return predicted
