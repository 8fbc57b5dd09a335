"""Solvers: tensors in, a fitted ``MatrixFactorization`` out. They know nothing of files, ids or Supabase."""

from collections.abc import Sequence

import torch

from mf.model import MatrixFactorization
from mf.solvers import adam
from mf.solvers.adam import AdamConfig
from mf.solvers.base import Callback, EpochReport, Interactions

__all__ = ["SOLVERS", "AdamConfig", "EpochReport", "Interactions", "fit"]

SOLVERS = {"adam": AdamConfig}
_FIT = {AdamConfig: adam.fit}


def fit(
    train: Interactions,
    validation: Interactions,
    config: AdamConfig,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
) -> MatrixFactorization:
    """Fits the model on ``train`` with the solver that ``config`` belongs to.

    Args:
        train: every row of both sides has a rating in it.
        validation: may be empty; steers (early stopping, which epoch is kept) and is never trained on.
        config: the solver's own options.
        device: where the work is done; the tensors are moved there.
        callbacks: called after every epoch.

    Returns:
        The model of the best epoch by validation RMSE (of the last one without validation ratings), on ``device``,
        centred: mu is the mean of all, and the biases and vectors are zero on average over the training ratings.

    Raises:
        TrainingError: a value is not finite; it says at which epoch and what to lower.
    """
    threads = torch.get_num_threads()
    # A step's operations are too small to share: threads that wait for one another at each are several times slower.
    torch.set_num_threads(1)
    try:
        return _FIT[type(config)](train, validation, config, device, callbacks)
    finally:
        torch.set_num_threads(threads)
