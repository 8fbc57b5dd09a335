"""Tables of ratings in, a model out: the step between ids and tensors."""

import dataclasses
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

import pyarrow as pa
import torch

from mf.errors import DataError
from mf.model import TrainedModel
from mf.ratings.schema import MOVIE, RATING, USER
from mf.ratings.vocabulary import Vocabulary
from mf.solvers import SOLVERS, AdamConfig, EpochReport, Interactions, fit
from mf.solvers.base import Callback
from mf.version import git_sha


def train(
    ratings: pa.Table,
    validation: pa.Table,
    config: AdamConfig,
    *,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
) -> TrainedModel:
    """Fits a model to ``ratings`` with the solver that ``config`` belongs to.

    Args:
        ratings, validation: ratings tables (``mf.ratings.schema``); ``validation`` may be empty. Users and movies that
            occur in ``validation`` alone get no vector.
        config: the solver's options.
        device: where it is done.
        callbacks: called after every epoch.

    Raises:
        DataError: there are no ratings.
        TrainingError: a value is not finite.
    """
    if not len(ratings):
        raise DataError("no ratings to train on: lower --val_size, or give more ratings")
    users, movies = Vocabulary.of(ratings[USER]), Vocabulary.of(ratings[MOVIE])

    def interactions(table: pa.Table) -> Interactions:
        return Interactions(
            torch.from_numpy(users.rows(table[USER])),
            torch.from_numpy(movies.rows(table[MOVIE])),
            torch.tensor(table[RATING].to_numpy()),
            len(users),
            len(movies),
        )

    epochs: list[EpochReport] = []
    module = fit(interactions(ratings), interactions(validation), config, device, [epochs.append, *callbacks])
    validated = [e.validation_rmse for e in epochs if e.validation_rmse is not None]
    return TrainedModel(
        module=module,
        users=users,
        movies=movies,
        run_id=f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
        solver=next(name for name, kind in SOLVERS.items() if isinstance(config, kind)),
        config=config.model_dump(),
        rows={"train": len(ratings), "validation": len(validation)},
        metrics={
            "validation_rmse": min(validated) if validated else None,
            "best_epoch": validated.index(min(validated)) + 1 if validated else len(epochs),
            "epochs": [dataclasses.asdict(epoch) for epoch in epochs],
        },
        git_sha=git_sha(),
    )


def pick_device(use_cuda: bool) -> tuple[torch.device, str]:
    """The device to train on and a sentence that says so: the GPU when it is asked for and there, else the CPU."""
    if use_cuda and torch.cuda.is_available():
        return torch.device("cuda"), f"training on the GPU: {torch.cuda.get_device_name()}"
    if use_cuda:
        return torch.device("cpu"), f"training on the CPU: no GPU is available to this PyTorch ({torch.__version__})"
    return torch.device("cpu"), "training on the CPU"
