"""Solvers: fit a ``MatrixFactorization`` to rating tensors. A new solver is a module and a line in ``SOLVERS``."""

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mf.config import Config
from mf.errors import ConfigError
from mf.solvers.config import SHARED_BLOCK, SOLVER_HELP, SOLVERS, AdamConfig, Solver

if TYPE_CHECKING:
    import torch

    from mf.model import MatrixFactorization
    from mf.ranks import Ranks
    from mf.solvers.base import Callback, Checkpoint, EpochReport, Initial, RatingTensors

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
    "for_processes",
    "processes_line",
    "solver_of",
]


def __getattr__(name: str) -> Any:
    # Imported at the first use, since PyTorch comes with them: the command line's help needs the options alone.
    if name in ("EpochReport", "Initial", "RatingTensors"):
        return getattr(importlib.import_module("mf.solvers.base"), name)
    raise AttributeError(f"module 'mf.solvers' has no attribute {name!r}")


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


def for_processes(config: Config, processes: int) -> Config:
    """``config`` with what several processes need: adam's batches of blocks of users in place of all users.

    Raises:
        ConfigError: an option that several processes cannot have.
    """
    if processes == 1 or not isinstance(config, AdamConfig):
        return config
    if config.clip_grad is not None:
        raise ConfigError(
            f"clip_grad: found {config.clip_grad:g} with {processes} processes, expected none: no process sees the "
            "gradient of a whole step; use one process, or lower lr"
        )
    return config if config.block_users else config.model_copy(update={"block_users": SHARED_BLOCK})


def processes_line(config: Config, processes: int) -> str:
    """What several processes change in ``config``, as a log line; empty: nothing."""
    if for_processes(config, processes) == config:
        return ""
    return f"{processes} processes: batches are drawn from blocks of {SHARED_BLOCK:,} users (block_users)"


def fit(
    train: "RatingTensors",
    validation: "RatingTensors",
    config: Config,
    device: "torch.device",
    callbacks: "Sequence[Callback]" = (),
    checkpoint: "Checkpoint | None" = None,
    initial: "Initial | None" = None,
    ranks: "Ranks | None" = None,
) -> "MatrixFactorization":
    """Fits a model to ``train`` with the solver that ``config`` belongs to.

    Several processes call this together, each with the ratings of its own users and all movies (``mf.ranks``). On a CPU
    1, 2 and 4 of them give the same model: adam and sgd the same bits, vb and gibbs the same RMSE to 1e-6.

    Args:
        train: training ratings; every user row must have at least one, every movie row one on some rank.
        validation: validation ratings, possibly none; for early stopping and the best epoch, never trained on.
        config: the solver's options.
        device: device to compute on; the tensors are moved there.
        callbacks: called after every epoch (``vb`` and ``gibbs``: every sweep).
        checkpoint: the state is saved there after every epoch. If it holds a state of the same ratings and options,
            training resumes from it; on a CPU the result then has the same bits as an uninterrupted training's.
        initial: an earlier model to start from, for solvers with ``warm``.
        ranks: the processes that share the training; default: this one alone.

    Returns:
        The model of this rank's users and all movies, on ``device``. Its mu and biases are those of the damped bias
        model, which so predicts for unseen rows (``mf.solvers.unseen``). ``adam`` and ``sgd`` return the best epoch by
        validation RMSE, or the last one without validation ratings, ``vb`` and ``gibbs`` the last sweep.

    Raises:
        TrainingError: a value is not finite; the message names the epoch and the option to lower.
        ConfigError: the checkpoint belongs to other ratings or options, the solver cannot start from a model, or an
            option needs one process.
        DataError: a rank has no ratings.
    """
    import torch

    from mf.ranks import Ranks
    from mf.solvers import loop
    from mf.solvers.base import Share

    ranks = ranks or Ranks.alone()
    solver = solver_of(config)
    if initial:
        check_warm(solver.name)
    threads = torch.get_num_threads()
    # A batch's operations are too small to split: threads that wait for each other at every one are several times
    # slower. Larger pieces of independent work go to mf.workers.
    torch.set_num_threads(1)
    try:
        options = {**config.model_dump(), "init_from": initial.name if initial else None}
        with torch.no_grad():
            share, validation = Share.of(train.to(device), ranks), validation.to(device)
            resumable = (
                loop.ResumableCheckpoint(checkpoint, solver.name, options, share, validation) if checkpoint else None
            )
            training = solver.start(share, validation, config, initial=initial and initial.to(device))
            validates = sum(ranks.gather_objects(len(validation))) > 0
            return loop.run(training, len(share), validates, callbacks, resumable, ranks)
    finally:
        torch.set_num_threads(threads)
