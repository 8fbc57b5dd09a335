"""The epoch loop of all solvers: reports, early stopping, best epoch, checkpoints."""

import dataclasses
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mf.errors import ConfigError, TrainingError
from mf.model import MatrixFactorization
from mf.solvers.base import Callback, Checkpoint, EpochReport, RatingTensors, Training


def run(
    training: Training,
    n_ratings: int,
    validates: bool,
    callbacks: Sequence[Callback],
    checkpoint: "ResumableCheckpoint | None" = None,
) -> MatrixFactorization:
    """Runs the epochs of a training and returns its model.

    Args:
        n_ratings: number of training ratings.
        validates: whether there are validation ratings.
        callbacks: called after every epoch, and on resuming once per finished epoch.
        checkpoint: the state is saved there after every epoch, and resumed from there.

    Raises:
        TrainingError: a value is not finite.
        ConfigError: the checkpoint belongs to another training.
    """
    reports: list[EpochReport] = []
    best: dict[str, Any] | None = None
    if checkpoint and (saved := checkpoint.load()):
        reports = [EpochReport(**report) for report in saved["reports"]]
        best = saved["best_model"]
        training.load_state(saved["solver_state"])
        for report in reports:
            for callback in callbacks:
                callback(report)

    while len(reports) < training.epochs and not _out_of_patience(reports, training.patience):
        report = _epoch(training, len(reports) + 1, n_ratings, validates, reports)
        reports.append(report)
        if report.kept and training.keeps_best and validates:
            best = training.model().state_dict()
        if checkpoint:
            checkpoint.save(
                {
                    "solver_state": training.state(),
                    "best_model": best,
                    "reports": [dataclasses.asdict(r) for r in reports],
                }
            )
        for callback in callbacks:
            callback(report)

    # Without validation ratings the last epoch's parameters have not entered any RMSE yet.
    try:
        model = training.model()
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise _diverged(training, len(reports), "parameters are not finite") from None
    if best is not None:
        model.load_state_dict(best)
    if not math.isfinite(_largest_prediction(model)):
        raise _diverged(training, len(reports), "predictions are not finite")
    return model.eval()


def _epoch(
    training: Training, number: int, n_ratings: int, validates: bool, reports: Sequence[EpochReport]
) -> EpochReport:
    started = time.perf_counter()
    try:
        train_rmse = training.epoch(number)
        # A model needs finite parameters.
        validation_rmse = training.validation_rmse() if validates and math.isfinite(train_rmse) else None
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise _diverged(training, number, f"a matrix cannot be factored ({' '.join(str(error).split())})") from None
    for name, value in (("train", train_rmse), ("validation", validation_rmse)):
        if value is not None and not math.isfinite(value):
            raise _diverged(training, number, f"the {name} RMSE is {value}")
    seconds = time.perf_counter() - started
    kept = validation_rmse is None or not training.keeps_best or validation_rmse < _best(reports)
    return EpochReport(
        number, training.epochs, train_rmse, validation_rmse, seconds, n_ratings / seconds, kept, training.note
    )


@torch.no_grad()
def _largest_prediction(model: MatrixFactorization) -> float:
    """An upper bound of all predictions (Cauchy-Schwarz); not finite if a parameter is not."""
    tables = ((model.user_factors, model.user_bias), (model.movie_factors, model.movie_bias))
    norms = [vectors.weight.norm(dim=1).max() for vectors, _ in tables]
    return float(norms[0] * norms[1] + sum(bias.weight.abs().max() for _, bias in tables) + model.mu)


def _best(reports: Sequence[EpochReport]) -> float:
    return min((r.validation_rmse for r in reports if r.validation_rmse is not None), default=math.inf)


def _out_of_patience(reports: Sequence[EpochReport], patience: int) -> bool:
    validated = [r.validation_rmse for r in reports if r.validation_rmse is not None]
    return bool(patience and validated) and len(validated) - 1 - validated.index(min(validated)) >= patience


def _diverged(training: Training, epoch: int, problem: str) -> TrainingError:
    return TrainingError(f"epoch {epoch}: {problem}: {training.advice}")


class ResumableCheckpoint:
    """A checkpoint that refuses to resume another training.

    Args:
        checkpoint: where the state is saved.
        solver: name of the solver.
        options: the solver's options, and all else that the result depends on.
        ratings: the training and the validation ratings.
    """

    def __init__(
        self, checkpoint: Checkpoint, solver: str, options: Mapping[str, Any], *ratings: RatingTensors
    ) -> None:
        self.checkpoint = checkpoint
        digest = hashlib.blake2b(digest_size=16)
        for data in ratings:
            for column in (data.users, data.movies, data.ratings):
                digest.update(column.cpu().contiguous().numpy().data)
        self.settings = {"solver": solver, "ratings": digest.hexdigest(), **options}

    def load(self) -> dict[str, Any] | None:
        """The saved state; ``None`` without one.

        Raises:
            ConfigError: it belongs to other ratings or options.
        """
        saved = self.checkpoint.load()
        if saved is None:
            return None
        differing = [
            name
            for name in {**self.settings, **saved["settings"]}
            if self.settings.get(name) != saved["settings"].get(name)
        ]
        if differing:
            found, expected = (
                ", ".join(f"{name} {settings.get(name, 'none')}" for name in differing)
                for settings in (saved["settings"], self.settings)
            )
            raise ConfigError(
                f"the checkpoint belongs to a training with {found}, this training has {expected}: use the same "
                "ratings and options, choose another checkpoint file, or delete it to start from scratch"
            )
        return saved

    def save(self, state: dict[str, Any]) -> None:
        """Saves ``state`` together with the settings of this training."""
        self.checkpoint.save({**state, "settings": self.settings})
