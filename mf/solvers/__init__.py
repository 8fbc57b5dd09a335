"""Solvers: fit a ``MatrixFactorization`` to rating tensors. A new solver is a module and a line in ``SOLVERS``."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mf.config import Config
from mf.errors import ConfigError
from mf.model import MatrixFactorization
from mf.solvers import adam, gibbs, loop, sgd, vb
from mf.solvers.base import Callback, Checkpoint, EpochReport, Initial, RatingTensors, Solver

__all__ = [
    "SOLVERS",
    "SOLVER_HELP",
    "EpochReport",
    "Initial",
    "RatingTensors",
    "Solver",
    "check_warm",
    "configure",
    "fit",
    "solver_of",
]

SOLVERS: dict[str, Solver] = {solver.name: solver for solver in (adam.SOLVER, sgd.SOLVER, vb.SOLVER, gibbs.SOLVER)}
SOLVER_HELP = "; ".join(f"{solver.name}: {solver.help}" for solver in SOLVERS.values())


def configure(solver: str, options: Mapping[str, Any], prefix: str = "") -> Config:
    """The configuration of ``solver``: its defaults, overridden by ``options``.

    Args:
        prefix: stands before an option's name in error messages: "--" for a command line.

    Raises:
        ConfigError: unknown solver, unknown option, or a value out of range.
    """
    if solver not in SOLVERS:
        raise ConfigError(f"solver: found {solver!r}, expected one of {', '.join(SOLVERS)}")
    config = SOLVERS[solver].config
    if unknown := [name for name in options if name not in config.model_fields]:
        own = ", ".join(prefix + field for field in config.model_fields)
        raise ConfigError(
            *(f"{prefix}{name}: not an option of solver {solver}; its options are {own}" for name in unknown)
        )
    return config.of(**options)


def check_warm(solver: str) -> None:
    """Checks that ``solver`` can start from an earlier model.

    Raises:
        ConfigError: it cannot.
    """
    if not SOLVERS[solver].warm:
        raise ConfigError(
            f"init_from: solver {solver} cannot start from an earlier model, since its result must not depend on where "
            f"it starts; {' and '.join(other.name for other in SOLVERS.values() if other.warm)} can"
        )


def solver_of(config: Config) -> Solver:
    """The solver that ``config`` belongs to."""
    return next(solver for solver in SOLVERS.values() if isinstance(config, solver.config))


def fit(
    train: RatingTensors,
    validation: RatingTensors,
    config: Config,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoint | None = None,
    initial: Initial | None = None,
) -> MatrixFactorization:
    """Fits a model to ``train`` with the solver that ``config`` belongs to.

    Args:
        train: training ratings; every user row and movie row must have at least one.
        validation: validation ratings, possibly none; for early stopping and the best epoch, never trained on.
        config: the solver's options.
        device: device to compute on; the tensors are moved there.
        callbacks: called after every epoch (``vb`` and ``gibbs``: every sweep).
        checkpoint: the state is saved there after every epoch. If it holds a state of the same ratings and options,
            training resumes from it; on a CPU the result then has the same bits as an uninterrupted training's.
        initial: an earlier model to start from, for solvers with ``warm``.

    Returns:
        The model, on ``device``. Its mu and biases are those of the damped bias model, which so predicts for unseen
        rows (``mf.solvers.unseen``). ``adam`` and ``sgd`` return the best epoch by validation RMSE, or the last one
        without validation ratings, ``vb`` and ``gibbs`` the last sweep.

    Raises:
        TrainingError: a value is not finite; the message names the epoch and the option to lower.
        ConfigError: the checkpoint belongs to other ratings or options, or the solver cannot start from a model.
    """
    solver = solver_of(config)
    if initial:
        check_warm(solver.name)
    threads = torch.get_num_threads()
    # A batch's operations are too small to split: threads that wait for each other at every one are several times
    # slower. Larger pieces of independent work go to mf.workers.
    torch.set_num_threads(1)
    try:
        options = {**config.model_dump(), "init_from": initial.name if initial else None}
        resumable = (
            loop.ResumableCheckpoint(checkpoint, solver.name, options, train, validation) if checkpoint else None
        )
        train, validation = train.to(device), validation.to(device)
        with torch.no_grad():
            training = solver.start(train, validation, config, initial=initial and initial.to(device))
            return loop.run(training, len(train), len(validation) > 0, callbacks, resumable)
    finally:
        torch.set_num_threads(threads)
