"""Adam on mini-batches: the original trainer's algorithm.

    r̂ = mu + b_u + b_m + p_u·q_m
    p, q ~ N(0, init_std²);  b = 0;  m = v = t = 0 for every row θ of p, q, b_u, b_m
    for each epoch, for each random batch of B ratings:
        e = r - r̂
        loss = 1/B · Σ [ e² + l2·(‖p_u‖² + ‖q_m‖²) + bias_damping·(b_u²/n_u + b_m²/n_m) ]
        for each row θ that the batch touches (n ratings):
            g = ∂loss/∂θ = 2/B · (n·l2·θ - Σ e·∂r̂/∂θ)
            t += 1;  m += (1 - β₁)·(g - m);  v += (1 - β₂)·(g² - v)
            θ -= lr · m / (1 - β₁ᵗ) / (√(v / (1 - β₂ᵗ)) + ε)

n_u and n_m are the training ratings of the user and of the movie. For ``weight_decay`` see ``Penalty``.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mf.errors import ConfigError
from mf.solvers.base import Initial, RatingTensors, Share, Start
from mf.solvers.config import AdamConfig
from mf.solvers.minibatch import (
    Batch,
    Layout,
    MiniBatchTraining,
    Penalty,
    Spans,
)
from mf.solvers.sorting import Segments

BETAS, EPS = (0.9, 0.999), 1e-8


class AdamTraining(MiniBatchTraining):
    """A training by Adam; see ``mf.solvers.base.Training``."""

    def __init__(
        self,
        train: Share,
        validation: RatingTensors,
        config: AdamConfig,
        *,
        initial: Initial | None = None,
        workers: int | None = None,
    ) -> None:
        super().__init__(train, validation, config, _lanes(train, config), initial, workers)
        self.ratings.batch_size = config.batch_size or derived_batch_size(len(train))
        self.advice += ", or set --clip_grad 1"
        t = self.tables
        penalty = Penalty.of(self.ratings.counts, config.l2, config.bias_damping, config.weight_decay)
        self.users = AdamState(t.p, penalty.user_factors), AdamState(t.b_u, penalty.user_bias)
        self.movies = AdamState(t.q, penalty.movie_factors), AdamState(t.b_m, penalty.movie_bias)

    def movie_tables(self) -> list[Tensor]:
        return [*super().movie_tables(), *(tensor for state in self.movies for tensor in state.tensors())]

    def learning_rate(self, progress: float) -> float:
        peak: float = self.config.lr
        return peak * one_cycle(progress) if self.config.schedule == "one_cycle" else peak

    def step(
        self,
        batch: Batch,
        lr: Tensor | float,
        rng: torch.Generator,
        spans: Spans | None = None,
        layout: Layout | None = None,
    ) -> Tensor:
        config = self.config

        # Forward: e = r - r̂.
        if config.dropout:
            error, derivatives = self.tables.residuals_with_dropout(batch, config.dropout, rng)
        else:
            error, derivatives = self.tables.residuals(batch), None

        # Backward: Σ e·∂r̂/∂θ per row, then the gradient of the loss.
        by_user, by_movie = self.tables.gradient_sums(batch, error, derivatives, layout=layout)
        updates = [
            (state, sums.segments, state.gradient(sums.segments, error_sums, len(error)))
            for sums, states in ((by_user, self.users), (by_movie, self.movies))
            for state, error_sums in zip(states, (sums.vectors, sums.biases), strict=True)
        ]
        if config.clip_grad is not None:
            clip_norm([gradient for _, _, gradient in updates], config.clip_grad)

        for state, segments, gradient in updates:
            state.step(segments, gradient, lr)
        return error.dot(error).double()

    def state(self) -> dict[str, Any]:
        tables, whole = super().state(), self.train.users.whole
        users = [[whole(tensor) for tensor in state.tensors()] for state in self.users]
        return {**tables, "adam": [*users, *(list(state.tensors()) for state in self.movies)]}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        sides = (self.train.users,) * 2 + (self.train.movies,) * 2
        for own, side, saved in zip((*self.users, *self.movies), sides, state["adam"], strict=True):
            for tensor, value in zip(own.tensors(), saved, strict=True):
                tensor.copy_(side.own(value))


class AdamState:
    """Adam (Kingma & Ba 2015, algorithm 1) of one embedding table, on the rows that a batch touches.

    A row that occurs several times in a batch is updated once, on the sum of its gradients. A row that does not occur
    keeps its parameters and both moments, and every row counts its own steps, so that the bias correction of a row that
    comes late is that of its first step. ``torch.optim.SparseAdam`` counts steps for the whole table instead.

    Args:
        table: float32[n, …], the parameters.
        l2: float32[n], the L2 weight per rating of each row.
    """

    def __init__(self, table: Tensor, l2: Tensor) -> None:
        self.table, self.l2 = table, l2
        self.m, self.v = torch.zeros_like(table), torch.zeros_like(table)
        self.steps = torch.zeros(len(table), device=table.device)

    def gradient(self, segments: Segments, error_sums: Tensor, batch_size: int) -> Tensor:
        """Gradient of the batch's loss, 2/B·(n·l2·θ - Σ e·∂r̂/∂θ), float32[S, …]."""
        weight = _column(segments.gather(self.l2) * segments.counts, error_sums)
        return (segments.gather(self.table) * weight - error_sums).mul_(2 / batch_size)

    def step(self, segments: Segments, g: Tensor, lr: Tensor | float) -> None:
        """Updates the rows of ``segments`` on their gradients ``g``."""
        t = segments.gather(self.steps).add_(1)
        m = segments.gather(self.m).lerp_(g, 1 - BETAS[0])
        v = segments.gather(self.v).mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
        for table, values in ((self.steps, t), (self.m, m), (self.v, v)):
            segments.scatter(table, values)
        correction_m, correction_v = (_column(1 - beta**t, g) for beta in BETAS)
        denominator = v.div_(correction_v).sqrt_().add_(EPS)
        segments.scatter(self.table, segments.gather(self.table).sub_(m.mul_(lr / correction_m).div_(denominator)))

    def tensors(self) -> tuple[Tensor, ...]:
        """m, v and the steps of each row."""
        return self.m, self.v, self.steps


def _column(per_row: Tensor, like: Tensor) -> Tensor:
    """``per_row`` [S], shaped to broadcast over the rows of ``like``, [S] or [S, K]."""
    return per_row.view((-1,) + (1,) * (like.dim() - 1))


def _lanes(train: Share, config: AdamConfig) -> Sequence[slice]:
    """Those of the users where batches are of blocks of users; else all users are one.

    Raises:
        ConfigError: batches of all users, on several ranks.
    """
    if config.block_users:
        return train.users.lanes
    if train.ranks.world > 1:
        raise ConfigError(
            f"block_users: found 0, batches of all users, which {train.ranks.world} processes cannot share; expected "
            "users per block, such as 8192"
        )
    return [slice(0, train.own.n_users)]


def derived_batch_size(ratings: int) -> int:
    """Default batch size, N/2000 rounded to a power of two, 512 to 1,048,576.

    That is as many steps per epoch as converge in a few epochs, and no more: time on a GPU grows with the steps."""
    return 1 << min(max(round(math.log2(max(ratings, 1) / 2000)), 9), 20)


def one_cycle(progress: float) -> float:
    """Share of the peak learning rate: half cosines from 1/25 up to 1 in the first tenth, then down to 0 (Smith & Topin
    2017, as in torch's ``OneCycleLR``)."""
    start, rise = 1 / 25, 0.1
    if progress < rise:
        return start + (1 - start) * (1 - math.cos(math.pi * progress / rise)) / 2
    return (1 + math.cos(math.pi * (progress - rise) / (1 - rise))) / 2


def clip_norm(gradients: list[Tensor], largest: float) -> None:
    """Scales gradients in place so that their joint norm is at most ``largest``."""
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    for g in gradients:
        g.mul_((largest / (norm + 1e-6)).clamp(max=1.0))


start: Start = AdamTraining
