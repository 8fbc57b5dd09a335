"""The epoch loop of all solvers: reports, early stopping, best epoch, checkpoints."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mf.errors import ConfigError, TrainingError
from mf.model import MatrixFactorization
from mf.ranks import LANES, Ranks, lane_count
from mf.solvers.base import Callback, Checkpoint, EpochReport, RatingTensors, Share, Training
from mf.workers import pieces

# Ratings at a time: on a CPU their numbers stay in a core's cache, a GPU needs few, large pieces.
FINGERPRINTED = {"cpu": 1 << 16, "cuda": 1 << 24}


def run(
    training: Training,
    n_ratings: int,
    validates: bool,
    callbacks: Sequence[Callback],
    checkpoint: "ResumableCheckpoint | None" = None,
    ranks: Ranks | None = None,
) -> MatrixFactorization:
    """Runs the epochs of a training and returns its model, of this rank's users.

    Args:
        n_ratings: number of training ratings, on all ranks.
        validates: whether there are validation ratings, on any rank.
        callbacks: called after every epoch, and on resuming once per finished epoch.
        checkpoint: the state is saved there after every epoch, and resumed from there.

    Raises:
        TrainingError: a value is not finite.
        ConfigError: the checkpoint belongs to another training.
    """
    reports: list[EpochReport] = []
    if checkpoint and (saved := checkpoint.load()):
        reports = [EpochReport(**report) for report in saved["reports"]]
        training.load_state(saved["solver_state"])
        for report in reports:
            for callback in callbacks:
                callback(report)

    while len(reports) < training.epochs and not _out_of_patience(reports, training.patience):
        report = _epoch(training, len(reports) + 1, n_ratings, validates, reports)
        reports.append(report)
        if report.kept and training.keeps_best and validates:
            training.keep()
        if checkpoint and checkpoint.due():
            checkpoint.save({"solver_state": training.state(), "reports": [dataclasses.asdict(r) for r in reports]})
        for callback in callbacks:
            callback(report)

    if checkpoint:
        checkpoint.wait()
    # Without validation ratings the last epoch's parameters have not entered any RMSE yet.
    try:
        model = training.model()
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise _diverged(training, len(reports), "parameters are not finite") from None
    if not math.isfinite((ranks or Ranks.alone()).sum(_largest_prediction(model)).item()):
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
def _largest_prediction(model: MatrixFactorization) -> Tensor:
    """An upper bound of all predictions (Cauchy-Schwarz), float32[]; not finite if a parameter is not."""
    tables = ((model.user_factors, model.user_bias), (model.movie_factors, model.movie_bias))
    norms = [vectors.weight.norm(dim=1).max() for vectors, _ in tables]
    largest: Tensor = norms[0] * norms[1] + sum(bias.weight.abs().max() for _, bias in tables) + model.mu
    return largest


def _best(reports: Sequence[EpochReport]) -> float:
    return min((r.validation_rmse for r in reports if r.validation_rmse is not None), default=math.inf)


def _out_of_patience(reports: Sequence[EpochReport], patience: int) -> bool:
    validated = [r.validation_rmse for r in reports if r.validation_rmse is not None]
    return bool(patience and validated) and len(validated) - 1 - validated.index(min(validated)) >= patience


def _diverged(training: Training, epoch: int, problem: str) -> TrainingError:
    return TrainingError(f"epoch {epoch}: {problem}: {training.advice}")


class ResumableCheckpoint:
    """A checkpoint that refuses to resume another training.

    It holds the state of all ranks and can be resumed by another number of them; rank 0 writes it.

    Args:
        checkpoint: where the state is saved; every rank can read it.
        solver: name of the solver.
        options: the solver's options, and all else that the result depends on.
        train, validation: this rank's ratings.
    """

    def __init__(
        self, checkpoint: Checkpoint, solver: str, options: Mapping[str, Any], train: Share, validation: RatingTensors
    ) -> None:
        self.checkpoint, self.users, self.ranks = checkpoint, train.users, train.ranks
        numbers = [_fingerprint(train.own, train.users.first, train.first_rating)]
        numbers += [_fingerprint(validation, train.users.first, None)]
        both = self.ranks.sum(torch.stack(numbers)).tolist()
        digits = "".join(f"{number % 2**64:016x}" for number in both)
        self.settings = {"solver": solver, "ratings": digits, **options}
        if lane_count(train.device.type, self.ranks.world) != LANES:
            self.settings["processes"] = self.ranks.world

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

    def due(self) -> bool:
        """Whether ``save`` would save now."""
        return self.ranks.first(self.checkpoint.due())

    def wait(self) -> None:
        """Waits until the last save is done."""
        self.checkpoint.wait()

    def save(self, state: dict[str, Any]) -> None:
        """Saves ``state`` together with the settings of this training."""
        if not self.ranks.rank:
            self.checkpoint.save({**state, "settings": self.settings})


# Odd numbers without a pattern (Steele, Lea & Flood 2014, SplitMix64), as int64.
MIX = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)


def _fingerprint(data: RatingTensors, first_user: int, first_rating: int | None) -> Tensor:
    """int64[], the sum over the ratings of a hash of position, user, movie and rating: the same on any number of ranks.

    Args:
        first_user: number of user 0 among the users of all ranks.
        first_rating: number of rating 0 among the ratings of all ranks; ``None``: their order does not matter.
    """
    total = torch.zeros((), dtype=torch.int64, device=data.ratings.device)
    for at in pieces(len(data), FINGERPRINTED[total.device.type]):
        mixed = torch.arange(at.start, at.stop, device=total.device)
        mixed = mixed.zero_() if first_rating is None else mixed.add_(first_rating)
        users = data.users[at].long().add(first_user).where(data.users[at] >= 0, -1)
        columns = users, data.movies[at], data.ratings[at].view(torch.int32)
        for column, factor in zip(columns, MIX, strict=True):
            mixed = mixed.add_(column).mul_(factor)
            mixed = mixed.bitwise_xor_(mixed >> 29)
        total += mixed.mul_(MIX[0]).sum()
    return total
