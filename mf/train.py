"""Tables of ratings in, a model out: the step between ids and tensors."""

import dataclasses
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pyarrow as pa
import torch

from mf.biases import Ints
from mf.config import Config
from mf.errors import ConfigError, DataError
from mf.model import TrainedModel
from mf.ratings.schema import MOVIE, RATING, USER, Provenance, TrainedOn
from mf.ratings.vocabulary import Vocabulary
from mf.solvers import EpochReport, Interactions, fit, solver_of
from mf.solvers.base import Callback, Checkpoint
from mf.version import git_sha
from mf.warm_start import EarlierModel

DEFAULT_SOLVER = "adam"
SOLVER_HELP = (
    "how the model is fitted: adam, the original trainer's way; sgd, the fastest; vb, nothing to tune; gibbs, the most "
    "accurate"
)


def train(
    ratings: pa.Table,
    validation: pa.Table,
    config: Config,
    *,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoint | None = None,
    earlier: EarlierModel | None = None,
    provenance: Provenance | None = None,
) -> TrainedModel:
    """Fits a model to ``ratings`` with the solver that ``config`` belongs to.

    Args:
        ratings, validation: ratings tables (``mf.ratings.schema``); ``validation`` may be empty. Users and movies that
            occur in ``validation`` alone get no vector.
        config: the solver's options.
        device: where it is done.
        callbacks: called after every epoch, or sweep.
        checkpoint: takes the state after every epoch; a training that finds one there goes on from it.
        earlier: a model to start from; users and movies that it does not know start as all would without it.
        provenance: of the ratings, to be noted with the model.

    Raises:
        DataError: there are no ratings.
        TrainingError: a value is not finite.
        ConfigError: the checkpoint is of other ratings or options, or the solver cannot start from a model.
    """
    if not len(ratings):
        raise DataError("no ratings to train on: lower --val_size, or give more ratings")
    with ThreadPoolExecutor(2) as pool:
        encoded = pool.map(Vocabulary.encode, (ratings[USER], ratings[MOVIE]))
    (users, train_users), (movies, train_movies) = encoded

    def interactions(table: pa.Table, user_rows: Ints, movie_rows: Ints) -> Interactions:
        rows = torch.from_numpy(user_rows), torch.from_numpy(movie_rows)
        return Interactions(*rows, torch.tensor(table[RATING].to_numpy()), len(users), len(movies))

    trained_on = interactions(ratings, train_users, train_movies)
    held_out = interactions(validation, users.rows(validation[USER]), movies.rows(validation[MOVIE]))
    epochs: list[EpochReport] = []
    callbacks = [epochs.append, *callbacks]
    initial = earlier.initial(users, movies) if earlier else None
    module = fit(trained_on, held_out, config, device, callbacks, checkpoint, initial)
    kept = [epoch for epoch in epochs if epoch.kept][-1]
    return TrainedModel(
        module=module,
        users=users,
        movies=movies,
        run_id=f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
        solver=solver_of(config),
        config=config.model_dump(),
        rows={"train": len(ratings), "validation": len(validation)},
        metrics={
            "validation_rmse": kept.validation_rmse,
            "best_epoch": kept.epoch,
            "init_from": initial.name if initial else None,
            "epochs": [dataclasses.asdict(epoch) for epoch in epochs],
        },
        git_sha=git_sha(),
        trained_on=_noted(provenance, ratings, validation, earlier) if provenance else None,
    )


def _noted(provenance: Provenance, ratings: pa.Table, validation: pa.Table, earlier: EarlierModel | None) -> TrainedOn:
    trained_on = TrainedOn.of(provenance, ratings, validation)
    return trained_on.after(earlier.trained_on) if earlier else trained_on


def pick_device(use_cuda: bool, gpus: int = 0) -> tuple[torch.device, str]:
    """The device to train on and a sentence that says so: the GPU when it is asked for and there, else the CPU.

    Args:
        use_cuda: whether a GPU is taken when there is one.
        gpus: how many there must be; one of them is used.

    Raises:
        ConfigError: there are fewer, or PyTorch cannot use them.
    """
    trouble = _gpu_trouble() if use_cuda or gpus else ""
    seen = 0 if trouble else torch.cuda.device_count()
    if gpus > seen:
        trouble = trouble or f"the machine has {seen}"
        raise ConfigError(f"{gpus} GPU{'s were' if gpus > 1 else ' was'} asked for, and {trouble}")
    if not use_cuda:
        return torch.device("cpu"), "training on the CPU"
    if trouble:
        return torch.device("cpu"), f"training on the CPU: {trouble}"
    idle = f"; {seen - 1} more {'is' if seen == 2 else 'are'} idle, a training uses one" if seen > 1 else ""
    return torch.device("cuda"), f"training on the GPU: {torch.cuda.get_device_name()}{idle}"


def _gpu_trouble() -> str:
    """Why no GPU can be used, nothing when one can."""
    if torch.version.cuda is None:
        return f"no GPU is available to this PyTorch ({torch.__version__}), a build for the CPU"
    if not torch.cuda.is_available():
        return (
            f"no GPU is available to this PyTorch ({torch.__version__}): there is none, or its driver is older than "
            f"CUDA {torch.version.cuda} asks for"
        )
    try:
        # A GPU that this build has no code for is there all the same.
        torch.ones(1, device="cuda").sum().item()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        return f"this PyTorch ({torch.__version__}) cannot use the {torch.cuda.get_device_name()}: {reason}"
    return ""
