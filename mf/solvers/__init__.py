"""Solvers: tensors in, a fitted ``MatrixFactorization`` out. They know nothing of files, ids or Supabase."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mf.config import Config
from mf.errors import ConfigError
from mf.model import MatrixFactorization
from mf.solvers import adam, gibbs, loop, sgd, vb
from mf.solvers.adam import AdamConfig
from mf.solvers.base import Callback, Checkpoint, EpochReport, Initial, Interactions
from mf.solvers.gibbs import GibbsConfig
from mf.solvers.sgd import SGDConfig
from mf.solvers.vb import VBConfig

__all__ = [
    "SOLVERS",
    "TUNED",
    "AdamConfig",
    "EpochReport",
    "Initial",
    "Interactions",
    "check_warm",
    "configure",
    "fit",
    "solver_of",
]

SOLVERS: dict[str, type[Config]] = {"adam": AdamConfig, "sgd": SGDConfig, "vb": VBConfig, "gibbs": GibbsConfig}
_START: dict[type[Config], Any] = {
    AdamConfig: adam.start,
    SGDConfig: sgd.start,
    VBConfig: vb.start,
    GibbsConfig: gibbs.start,
}

WARM = ("adam", "sgd")  # solvers that can start from an earlier model

# A solver's own defaults hold from small data to large. adam's are the original trainer's; these are what hold for it.
TUNED: dict[str, dict[str, Any]] = {
    "adam": {
        "batch_size": None,
        "epochs": 10,
        "lr": 7e-3,
        "weight_decay": 0.0,
        "l2": None,
        "bias_damping": 3.0,
        "schedule": "one_cycle",
        "patience": 3,
    }
}


def configure(solver: str, options: Mapping[str, Any], tuned: bool = False, prefix: str = "") -> Config:
    """The configuration of ``solver`` with ``options`` in place of its defaults.

    Args:
        tuned: start from what holds for every size of data (``TUNED``), not from the original trainer's defaults.
        prefix: stands before an option's name in what an error says: "--" on a command line.

    Raises:
        ConfigError: there is no such solver, it does not have such an option, or a value cannot be.
    """
    if solver not in SOLVERS:
        raise ConfigError(f"solver: found {solver!r}, expected one of {', '.join(SOLVERS)}")
    config = SOLVERS[solver]
    if unknown := [name for name in options if name not in config.model_fields]:
        own = ", ".join(prefix + field for field in config.model_fields)
        raise ConfigError(
            *(f"{prefix}{name}: solver {solver} does not use it; its options are {own}" for name in unknown)
        )
    return config.of(**{**(TUNED.get(solver, {}) if tuned else {}), **options})


def check_warm(solver: str) -> None:
    """Whether ``solver`` can start from an earlier model.

    Raises:
        ConfigError: it cannot.
    """
    if solver not in WARM:
        raise ConfigError(
            f"init_from: solver {solver} does not use it: what it finds must not depend on where it starts; "
            f"{' and '.join(WARM)} do"
        )


def solver_of(config: Config) -> str:
    """The name of the solver that ``config`` belongs to."""
    return next(name for name, kind in SOLVERS.items() if isinstance(config, kind))


def fit(
    train: Interactions,
    validation: Interactions,
    config: Config,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoint | None = None,
    initial: Initial | None = None,
) -> MatrixFactorization:
    """Fits the model on ``train`` with the solver that ``config`` belongs to.

    Args:
        train: every row of both sides has a rating in it.
        validation: may be empty; steers (early stopping, which epoch is kept) and is never trained on.
        config: the solver's own options.
        device: where the work is done; the tensors are moved there.
        callbacks: called after every epoch, or sweep.
        checkpoint: takes the state after every epoch; a fit that finds one of the same ratings and options there goes
            on from it and ends, on a CPU, with the same bits as one that was never interrupted.
        initial: an earlier model to start from, for ``WARM`` solvers.

    Returns:
        The model, on ``device``: mu and the biases are the damped bias model's, which so answers where a row is unseen,
        and all else that was fitted is in the vectors (``mf.solvers.unseen``). For ``adam`` and ``sgd`` it is the model
        of the best epoch by validation RMSE (of the last one without validation ratings), for ``vb`` and ``gibbs`` that
        of the last sweep.

    Raises:
        TrainingError: a value is not finite; it says at which epoch and what to lower.
        ConfigError: the checkpoint is of other ratings or options, or the solver cannot start from a model.
    """
    if initial:
        check_warm(solver_of(config))
    threads = torch.get_num_threads()
    # A step's operations are too small to share: threads that wait for one another at each are several times slower.
    # What can be shared is shared among workers that need not wait (mf.solvers.workers).
    torch.set_num_threads(1)
    try:
        given = {**config.model_dump(), "init_from": initial.name if initial else None}
        keeper = loop.Keeper(checkpoint, solver_of(config), given, train, validation) if checkpoint else None
        train, validation = train.to(device), validation.to(device)
        with torch.no_grad():
            warm = {"initial": initial.to(device)} if initial else {}
            fitting = _START[type(config)](train, validation, config, **warm)
            return loop.run(fitting, len(train), len(validation) > 0, callbacks, keeper)
    finally:
        torch.set_num_threads(threads)
