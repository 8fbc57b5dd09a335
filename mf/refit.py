"""Fit an accepted model once more on all ratings, so that nothing held out is missing from what is published."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from mf.config import Config
from mf.errors import TrainingError
from mf.evaluation.metrics import RMSE
from mf.model_directory import TrainedModel
from mf.nodes import Nodes
from mf.ranking import PassReport, RankingConfig
from mf.ratings.batches import Batches
from mf.ratings.schema import MOVIE, RATING, USER, Provenance, encoded_ids, in_memory
from mf.solvers import SOLVERS
from mf.solvers.base import Callback, Checkpoint
from mf.solvers.config import DEFAULT_SOLVER
from mf.train import ALONE, train
from mf.warm_start import EarlierModel

# Training ratings that both models are compared on, at most: enough for an RMSE to four digits.
COMPARED = 1_000_000
# With more ratings a model fits each of them a little less closely: latest-small 0.001 to 0.013 of 0.6 to 0.8.
TOLERANCE = 0.05  # share of the judged model's training RMSE


@dataclass(frozen=True)
class Refit:
    """A model fitted to all ratings, or the judged one where that failed."""

    model: TrainedModel
    line: str  # for the log: what is published, and why


def refit(
    judged: TrainedModel,
    ratings: pa.Table | Path,
    train_part: pa.Table | Path,
    *,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoint | None = None,
    earlier: EarlierModel | None = None,
    provenance: Provenance | None = None,
    progress: Callable[[PassReport], None] | None = None,
    processes: int = 1,
    nodes: Nodes = ALONE,
) -> Refit:
    """Fits the star model and the ranking model of ``judged`` to all ``ratings``, with the same options.

    The star model trains for the epochs after which the judged one was best, without early stopping. It is published if
    all its numbers are finite and its RMSE on the training part is not clearly above the judged model's; otherwise the
    judged model is.

    Args:
        judged: the model that the gate accepted.
        ratings: all ratings: the training, the validation and the test part; a table, or a file of ``write_ratings``.
        train_part: the ratings that ``judged`` was trained on.
        device, callbacks, checkpoint, earlier, provenance, progress, processes, nodes: as for ``mf.train.train``.
    """
    config, ranking = options_of(judged)
    rows = len(Batches(ratings))
    try:
        model = train(
            ratings, nothing_of(ratings), config,
            device=device, callbacks=callbacks, checkpoint=checkpoint, earlier=earlier, provenance=provenance,
            ranking=ranking, progress=progress, processes=processes, nodes=nodes,
        )  # fmt: skip
    except TrainingError as error:
        return Refit(judged, f"the judged model is published, since the fit to all ratings failed: {error}")
    model.metrics["refit_of"] = judged.run_id
    if "sweep" in judged.metrics:  # whose choice its options are
        model.metrics["sweep"] = judged.metrics["sweep"]
    if not (model.module and judged.module):
        return Refit(model, f"model {model.run_id} is fitted to all {rows:,} clicks, as {judged.run_id} was judged")
    # What held-out ratings said of the judged model: the database derives the noise of a rating from it.
    model.metrics["validation_rmse"] = judged.metrics["validation_rmse"]
    sample = _sample(train_part)
    ours, theirs = _rmse(model, sample), _rmse(judged, sample)
    rmses = f"RMSE {ours:.4f} on {len(sample):,} training ratings, {theirs:.4f} of the judged model {judged.run_id}"
    if not ours <= theirs * (1 + TOLERANCE):  # a NaN is not
        return Refit(judged, f"the judged model is published, since the fit to all ratings is worse: {rmses}")
    return Refit(model, f"model {model.run_id} is fitted to all {rows:,} ratings: {rmses}")


def options_of(judged: TrainedModel) -> tuple[Config, RankingConfig | None]:
    """The options of the fit to all ratings: of the solver, and of the ranking model if there is one."""
    # A model of clicks has no solver, and its training uses no options of one.
    solver = SOLVERS[judged.solver or DEFAULT_SOLVER].config
    fixed = {"epochs": max(judged.metrics.get("best_epoch", 1), 1)}
    fixed |= {"patience": 0} if "patience" in solver.model_fields else {}
    return solver.of(**judged.config | fixed), RankingConfig.of(**judged.ranking.config) if judged.ranking else None


def nothing_of(ratings: pa.Table | Path) -> pa.Table:
    """No rows, with the columns of ``ratings`` in memory."""
    if isinstance(ratings, pa.Table):
        return ratings.schema.empty_table()
    return encoded_ids(Batches(ratings).schema.empty_table())


def _sample(ratings: pa.Table | Path) -> pa.Table:
    batches = Batches(ratings)
    if len(batches) <= COMPARED:
        return in_memory(ratings)
    chosen = np.zeros(len(batches), np.bool_)
    chosen[np.random.default_rng(0).choice(len(batches), COMPARED, replace=False)] = True
    found, start = [], 0
    for batch in batches.read():
        # A mask: ``take`` fails on more than 2 GiB of text, whose offsets have 32 bits.
        found.append(batch.filter(pa.array(chosen[start : start + len(batch)])))
        start += len(batch)
    return pa.concat_tables(found)


def _rmse(model: TrainedModel, ratings: pa.Table) -> float:
    # In float64: a sum of millions of squares in float32 is inexact.
    predicted = model.predict(ratings[USER], ratings[MOVIE]).astype(np.float64)
    return RMSE.of(ratings[RATING].to_numpy().astype(np.float64), predicted)
