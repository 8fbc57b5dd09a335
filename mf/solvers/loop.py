"""The loop over epochs or sweeps that all solvers share: reports, early stopping, the best epoch, checkpoints."""

import dataclasses
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mf.errors import ConfigError, TrainingError
from mf.model import MatrixFactorization
from mf.solvers.base import Callback, Checkpoint, EpochReport, Fitting, Interactions


def run(
    fitting: Fitting, rows: int, validates: bool, callbacks: Sequence[Callback], checkpoint: "Keeper | None" = None
) -> MatrixFactorization:
    """Runs ``fitting`` to its end.

    Args:
        rows: training ratings.
        validates: there are validation ratings.
        callbacks: called after every epoch, and at once with those of a training that is resumed.
        checkpoint: where the state is kept after every epoch, and taken up from.

    Raises:
        TrainingError: a value is not finite.
        ConfigError: the checkpoint is of another training.
    """
    reports: list[EpochReport] = []
    best: dict[str, Any] | None = None
    if checkpoint and (kept := checkpoint.load()):
        reports = [EpochReport(**report) for report in kept["reports"]]
        best = kept["best"]
        fitting.load_state(kept["fitting"])
        for report in reports:
            for callback in callbacks:
                callback(report)

    while len(reports) < fitting.epochs and not _lost_patience(reports, fitting.patience):
        report = _epoch(fitting, len(reports) + 1, rows, validates, reports)
        reports.append(report)
        if report.kept and fitting.keeps_best and validates:
            best = fitting.model().state_dict()
        if checkpoint:
            checkpoint.save(
                {"fitting": fitting.state(), "best": best, "reports": [dataclasses.asdict(r) for r in reports]}
            )
        for callback in callbacks:
            callback(report)

    # The last pass's outcome shows in no RMSE when there are no validation ratings.
    try:
        model = fitting.model()
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise _diverged(fitting, len(reports), "parameters are not finite") from None
    if best is not None:
        model.load_state_dict(best)
    if not math.isfinite(_bound(model)):
        raise _diverged(fitting, len(reports), "predictions are not finite")
    return model.eval()


def _epoch(fitting: Fitting, number: int, rows: int, validates: bool, reports: Sequence[EpochReport]) -> EpochReport:
    started = time.perf_counter()
    try:
        train_rmse = fitting.epoch(number)
        # A model can only be made of finite values.
        validation_rmse = fitting.validation_rmse() if validates and math.isfinite(train_rmse) else None
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise _diverged(fitting, number, f"a matrix cannot be factored ({' '.join(str(error).split())})") from None
    for name, value in (("train", train_rmse), ("validation", validation_rmse)):
        if value is not None and not math.isfinite(value):
            raise _diverged(fitting, number, f"the {name} RMSE is {value}")
    seconds = time.perf_counter() - started
    kept = validation_rmse is None or not fitting.keeps_best or validation_rmse < _best(reports)
    return EpochReport(number, fitting.epochs, train_rmse, validation_rmse, seconds, rows / seconds, kept, fitting.note)


@torch.no_grad()
def _bound(model: MatrixFactorization) -> float:
    """What no prediction exceeds (Cauchy-Schwarz), as long as every parameter is finite."""
    sides = ((model.user_factors, model.user_bias), (model.movie_factors, model.movie_bias))
    norms = [vectors.weight.norm(dim=1).max() for vectors, _ in sides]
    return float(norms[0] * norms[1] + sum(bias.weight.abs().max() for _, bias in sides) + model.mu)


def _best(reports: Sequence[EpochReport]) -> float:
    return min((r.validation_rmse for r in reports if r.validation_rmse is not None), default=math.inf)


def _lost_patience(reports: Sequence[EpochReport], patience: int) -> bool:
    validated = [r.validation_rmse for r in reports if r.validation_rmse is not None]
    return bool(patience and validated) and len(validated) - 1 - validated.index(min(validated)) >= patience


def _diverged(fitting: Fitting, epoch: int, found: str) -> TrainingError:
    return TrainingError(f"epoch {epoch}: {found}: {fitting.advice}")


class Keeper:
    """A checkpoint that knows which training it belongs to.

    Args:
        checkpoint: where it is kept.
        solver: its name.
        options: the solver's, and what else the outcome depends on.
        parts: the training and the validation ratings.
    """

    def __init__(self, checkpoint: Checkpoint, solver: str, options: Mapping[str, Any], *parts: Interactions) -> None:
        self.checkpoint = checkpoint
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            for column in (part.users, part.movies, part.ratings):
                digest.update(column.cpu().contiguous().numpy().data)
        self.training = {"solver": solver, "ratings": digest.hexdigest(), **options}

    def load(self) -> dict[str, Any] | None:
        """What was kept.

        Raises:
            ConfigError: it is of other ratings or other options.
        """
        kept = self.checkpoint.load()
        if kept is None:
            return None
        differing = [
            name
            for name in {**self.training, **kept["training"]}
            if self.training.get(name) != kept["training"].get(name)
        ]
        if differing:
            found, asked = (
                ", ".join(f"{n} {d.get(n, 'none')}" for n in differing) for d in (kept["training"], self.training)
            )
            raise ConfigError(
                f"the checkpoint is of a training with {found}, this one has {asked}: give the same ratings and "
                "options, name another checkpoint, or delete it to start anew"
            )
        return kept

    def save(self, state: dict[str, Any]) -> None:
        self.checkpoint.save({**state, "training": self.training})
