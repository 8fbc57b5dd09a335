"""Stochastic gradient descent on blocked ratings: the fastest solver on a CPU.

    r̂ = mu + b_u + b_m + p_u·q_m
    p, q ~ N(0, init_std²);  b = 0
    for each epoch, for each group of 4 user blocks, for turn in 0 … 3:
        in parallel for block i of the group, with movie shard (i + turn) mod 4, for each random batch:
            e = r - r̂;  lr from its start to 2% by a half cosine over the training
            for each user of the batch (n ratings; movies alike):
                p_u += lr / (1 + row_damping·lr·n) · (Σ e·q_m - n·l2·p_u)
                b_u += lr / (1 + lr·n) · (Σ e - n·bias_damping/n_u·b_u)

It minimises Σ [ e² + l2·(‖p_u‖² + ‖q_m‖²) + bias_damping·(b_u²/n_u + b_m²/n_m) ], where n_u and n_m are the training
ratings of the user and of the movie.

The damping: the n ratings of a row in one batch would move it by n steps of lr at once, which overshoots for rows that
are in every other rating; one after another, each would see what the ones before have done. On a quadratic of curvature
c they would go 1 - (1 - lr·c)ⁿ of the way, of which lr·n / (1 + lr·c·n) is the simplest bound.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from mf.config import Config
from mf.solvers.base import EPOCHS, SEED, Initial, RatingTensors, Solver
from mf.solvers.minibatch import (
    BIAS_DAMPING,
    L2,
    Batch,
    BlockedRatings,
    GradientSums,
    MiniBatchTraining,
    Penalty,
    Spans,
    Tables,
)

MOVIE_SHARDS = 4  # at most as many threads
FINAL_LR = 0.02  # share of lr that is left at the end


class SGDConfig(Config):
    """Options of the ``sgd`` solver."""

    factors: int = Field(64, ge=1, le=2000, description="length of the user and movie vectors")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="ratings per batch; default: an eighth of the ratings of a user block and movie shard, 1,024 to "
        "65,536",
    )
    epochs: int = Field(20, ge=1, description=EPOCHS)
    lr: float = Field(0.05, gt=0, description="learning rate, decayed to 2% by a half cosine")
    l2: float | None = Field(None, ge=0, description=L2)
    bias_damping: float = Field(3.0, ge=0, description=BIAS_DAMPING)
    row_damping: float = Field(
        0.3, ge=0, description="a row with n ratings in a batch moves by lr / (1 + row_damping·lr·n) times their sum"
    )
    patience: int = Field(
        3, ge=0, description="epochs without a better validation RMSE before early stopping; 0: no early stopping"
    )
    init_std: float = Field(0.03, gt=0, description="standard deviation of the vectors' initial entries")
    block_users: int = Field(8192, ge=1, description="users per block")
    seed: int = Field(0, ge=0, description=SEED)


class SGDTraining(MiniBatchTraining):
    """A training by SGD; see ``mf.solvers.base.Training``."""

    def __init__(
        self,
        train: RatingTensors,
        validation: RatingTensors,
        config: SGDConfig,
        *,
        initial: Initial | None = None,
        workers: int | None = None,
    ) -> None:
        def ratings() -> BlockedRatings:
            blocked = BlockedRatings.of_block_size(train, config.batch_size or 1, config.block_users, MOVIE_SHARDS)
            if config.batch_size is None:
                blocked.batch_size = min(max(len(train) // (blocked.blocks * blocked.shards * 8), 1 << 10), 1 << 16)
            return blocked

        super().__init__(train, validation, config, ratings, initial, workers)
        self.penalty = Penalty.of(self.ratings.counts, config.l2, config.bias_damping)

    def epoch(self, number: int) -> float:
        return self.blocked_epoch(number)

    def step(self, batch: Batch, progress: float, rng: torch.Generator, spans: Spans) -> Tensor:
        error = self.tables.residuals(batch)
        sums = self.tables.gradient_sums(batch, error, spans=spans)
        update(self.tables, self.penalty, sums, learning_rate(self.config.lr, progress), self.config.row_damping)
        return error.dot(error).double()


def learning_rate(lr: float, progress: float) -> float:
    """``lr`` decayed to 2% by a half cosine."""
    return lr * (FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * progress)) / 2)


def update(
    tables: Tables, penalty: Penalty, sums: tuple[GradientSums, GradientSums], lr: float, row_damping: float
) -> None:
    """Moves the rows of a batch; a row without ratings in it stays."""
    by_user, by_movie = sums
    for batch, vectors, biases, l2, bias_l2 in (
        (by_user, tables.p, tables.b_u, penalty.user_factors, penalty.user_bias),
        (by_movie, tables.q, tables.b_m, penalty.movie_factors, penalty.movie_bias),
    ):
        segments, n = batch.segments, batch.segments.counts
        step = (lr / (1 + lr * row_damping * n))[:, None]
        keep = 1 - step * (n * segments.gather(l2))[:, None]
        with segments.updating(vectors) as rows:
            rows.mul_(keep).addcmul_(batch.vectors, step)
        with segments.updating(biases) as bias:
            bias.addcmul_(batch.biases - n * segments.gather(bias_l2) * bias, lr / (1 + lr * n))


SOLVER = Solver("sgd", "gradient descent on blocked ratings, the fastest", SGDConfig, warm=True, start=SGDTraining)
