"""Stochastic gradient descent on blocked ratings: the fastest solver on a CPU.

    r̂ = mu + b_u + b_m + p_u·q_m
    p, q ~ N(0, init_std²);  b = 0
    for each epoch, for turn in 0 … 3:
        in parallel for quarter i of the users, with movie part (i + turn) mod 4, block by block, for each random batch:
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
from torch import Tensor

from mf.solvers.base import Initial, RatingTensors, Share, Start
from mf.solvers.config import SGDConfig
from mf.solvers.minibatch import (
    Batch,
    GradientSums,
    Layout,
    MiniBatchTraining,
    Penalty,
    Spans,
    Tables,
)

FINAL_LR = 0.02  # share of lr that is left at the end


class SGDTraining(MiniBatchTraining):
    """A training by SGD; see ``mf.solvers.base.Training``."""

    def __init__(
        self,
        train: Share,
        validation: RatingTensors,
        config: SGDConfig,
        *,
        initial: Initial | None = None,
        workers: int | None = None,
    ) -> None:
        super().__init__(train, validation, config, train.users.lanes, initial, workers)
        strata = sum(train.ranks.gather_objects(self.ratings.n_blocks)) * self.ratings.parts
        self.ratings.batch_size = config.batch_size or derived_batch_size(len(train), strata)
        self.penalty = Penalty.of(self.ratings.counts, config.l2, config.bias_damping)

    def learning_rate(self, progress: float) -> float:
        return learning_rate(self.config.lr, progress)

    def step(
        self, batch: Batch, lr: Tensor | float, rng: torch.Generator, spans: Spans, layout: Layout | None = None
    ) -> Tensor:
        error = self.tables.residuals(batch)
        sums = self.tables.gradient_sums(batch, error, spans=spans, layout=layout)
        update(self.tables, self.penalty, sums, lr, self.config.row_damping)
        return error.dot(error).double()


def derived_batch_size(ratings: int, strata: int) -> int:
    """Default batch size, an eighth of the mean number of ratings per user block and movie part, 1,024 to 65,536; above
    131 million ratings to N/2000: the steps per epoch do not grow further."""
    return min(max(ratings // (strata * 8), 1 << 10), max(1 << 16, ratings // 2000))


def learning_rate(lr: float, progress: float) -> float:
    """``lr`` decayed to 2% by a half cosine."""
    return lr * (FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * progress)) / 2)


def update(
    tables: Tables, penalty: Penalty, sums: tuple[GradientSums, GradientSums], lr: Tensor | float, row_damping: float
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


start: Start = SGDTraining
