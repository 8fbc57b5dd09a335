"""The original's algorithm: mini-batches and Adam."""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mf.config import Config
from mf.solvers.base import Initial, Interactions
from mf.solvers.minibatch import L2, Counts, MiniBatches, Penalty, Side, Strata, Tables
from mf.solvers.sorting import Segments

PARTS = 4  # movie parts of the blocked mode: as many workers at most
BETAS, EPS = (0.9, 0.999), 1e-8


class AdamConfig(Config):
    """Options of the ``adam`` solver; the defaults are the original trainer's.

    It minimises, over the parameters of the rows that each batch touches, the batch's mean of
    (r - r̂)² + l2·(‖p_u‖² + ‖q_m‖²) + bias_damping·(b_u²/n_u + b_m²/n_m)
    where n_u and n_m are the ratings of the user and of the movie; for weight_decay's part of it see ``Penalty``.
    """

    factors: int = Field(64, ge=1, le=2000, description="length of the user and movie vectors")
    batch_size: int | None = Field(
        2048,
        ge=1,
        description="ratings a step; none: a two-thousandth of them all, to a power of two from 512 to 65,536",
    )
    epochs: int = Field(1, ge=1, description="passes over the training ratings, at most")
    lr: float = Field(1e-3, gt=0, description="step size; the peak of it with a schedule")
    weight_decay: float = Field(
        1e-6, ge=0, description="L2 on all parameters as torch's Adam states it: its gradient is added at every step"
    )
    l2: float | None = Field(0.0, ge=0, description=L2)
    bias_damping: float = Field(
        3.0,
        ge=0,
        description="L2 on the biases, in ratings: a row with n ratings keeps n / (n + damping) of its mean error",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="probability with which an entry of an embedding is dropped")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of a step's gradient")
    schedule: Literal["constant", "one_cycle"] = Field(
        "constant",
        description="how the step size goes: constant, or one_cycle, up in a tenth of the steps and down to 0",
    )
    patience: int = Field(0, ge=0, description="epochs without a better validation RMSE before it stops; 0: never")
    init_std: float = Field(0.01, gt=0, description="standard deviation of the vectors' entries at the start")
    block_users: int = Field(
        0, ge=0, description="users whose ratings are drawn together, for speed with large batches; 0: all"
    )
    seed: int = Field(0, ge=0, description="of the initialisation, the order of the ratings and dropout")


def start(
    train: Interactions,
    validation: Interactions,
    config: AdamConfig,
    workers: int | None = None,
    initial: Initial | None = None,
) -> MiniBatches:
    """The training, ready for its first epoch; see ``mf.solvers.fit``."""
    batch_size = config.batch_size or derived_batch(len(train))

    def strata() -> Strata:
        return Strata.blocked(train, batch_size, config.block_users, PARTS)

    def rule(tables: Tables, counts: Counts) -> Adam:
        return Adam(tables, Penalty.of(counts, config.l2, config.bias_damping, config.weight_decay), config)

    fitting = MiniBatches(train, validation, strata, config, rule, workers, initial)
    fitting.advice += ", or set --clip_grad 1"
    return fitting


def derived_batch(ratings: int) -> int:
    """A two-thousandth of them, to the nearest power of two from 512 to 65,536: as many steps an epoch as converge in a
    few epochs, and no more, since a GPU's time goes by steps."""
    return 1 << min(max(round(math.log2(max(ratings, 1) / 2000)), 9), 16)


def one_cycle(progress: float) -> float:
    """Share of the peak step size: from a 25th up in the first tenth, then down to nothing, along half cosines
    (Smith & Topin 2017, as torch's ``OneCycleLR`` draws it)."""
    start, rise = 1 / 25, 0.1
    if progress < rise:
        return start + (1 - start) * (1 - math.cos(math.pi * progress / rise)) / 2
    return (1 + math.cos(math.pi * (progress - rise) / (1 - rise))) / 2


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) on the rows that a batch touches.

    A row that occurs several times in a batch gets the sum of its gradients, once. A row that does not occur keeps its
    parameters and both moments as they are, and every row counts its own steps, so that the bias correction of a row
    that comes late is that of its first step. ``torch.optim.SparseAdam`` counts steps for the whole table instead.
    """

    moves_only_rated = False

    def __init__(self, tables: Tables, penalty: Penalty, config: AdamConfig) -> None:
        self.config = config
        self.users = Moments(tables.p, penalty.user_factors), Moments(tables.b_u, penalty.user_bias)
        self.movies = Moments(tables.q, penalty.movie_factors), Moments(tables.b_m, penalty.movie_bias)

    def step(self, users: Side, movies: Side, ratings: int, progress: float) -> None:
        size = self.config.lr * (one_cycle(progress) if self.config.schedule == "one_cycle" else 1.0)
        asked = [
            (moments, side.segments, moments.gradient(side.segments, errors, ratings))
            for side, both in ((users, self.users), (movies, self.movies))
            for moments, errors in zip(both, (side.vectors, side.biases), strict=True)
        ]
        if self.config.clip_grad is not None:
            clip_norm([gradient for _, _, gradient in asked], self.config.clip_grad)
        for moments, segments, gradient in asked:
            moments.step(segments, gradient, size)

    def state(self) -> dict[str, Any]:
        return {"moments": [moments.state() for moments in (*self.users, *self.movies)]}

    def load_state(self, state: dict[str, Any]) -> None:
        for moments, kept in zip((*self.users, *self.movies), state["moments"], strict=True):
            for own, value in zip(moments.state(), kept, strict=True):
                own.copy_(value)


def clip_norm(gradients: list[Tensor], largest: float) -> None:
    """Scales gradients so that the norm of them all is at most ``largest``."""
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    for g in gradients:
        g.mul_((largest / (norm + 1e-6)).clamp(max=1.0))


class Moments:
    """Adam's state of one table.

    Args:
        table: float32[n, …], the parameters.
        l2: float32[n], the L2 weight of a row on each of its ratings.
    """

    def __init__(self, table: Tensor, l2: Tensor) -> None:
        self.table, self.l2 = table, l2
        self.m, self.v = torch.zeros_like(table), torch.zeros_like(table)
        self.steps = torch.zeros(len(table), device=table.device)

    def gradient(self, segments: Segments, errors: Tensor, ratings: int) -> Tensor:
        """Of a batch's mean squared error and L2: 2/B·(n·l2·θ - the row's summed errors); float32[S, …]."""
        weight = (segments.take(self.l2) * segments.counts).view(_rows(errors))
        return (segments.take(self.table) * weight - errors).mul_(2 / ratings)

    def step(self, segments: Segments, g: Tensor, size: float) -> None:
        """Moves the rows of ``segments`` on their gradients ``g`` by about ``size``."""
        t = segments.take(self.steps).add_(1)
        m = segments.take(self.m).lerp_(g, 1 - BETAS[0])
        v = segments.take(self.v).mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
        for table, values in ((self.steps, t), (self.m, m), (self.v, v)):
            segments.put(table, values)
        first, second = ((1 - beta**t).view(_rows(g)) for beta in BETAS)
        denominator = v.div_(second).sqrt_().add_(EPS)
        segments.put(self.table, segments.take(self.table).sub_(m.mul_(size / first).div_(denominator)))

    def state(self) -> tuple[Tensor, ...]:
        return self.m, self.v, self.steps


def _rows(values: Tensor) -> tuple[int, ...]:
    return (-1,) + (1,) * (values.dim() - 1)
