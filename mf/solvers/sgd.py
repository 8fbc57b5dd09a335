"""Stochastic gradient descent on strata: the fastest solver on a CPU."""

import math
from typing import Any

from pydantic import Field

from mf.config import Config
from mf.solvers.base import Initial, Interactions
from mf.solvers.minibatch import L2, Counts, MiniBatches, Penalty, Side, Strata, Tables

PARTS = 4  # movie parts: as many workers at most
LAST = 0.02  # share of lr that is left at the end


class SGDConfig(Config):
    """Options of the ``sgd`` solver.

    It minimises the sum over the ratings of
    (r - r̂)² + l2·(‖p_u‖² + ‖q_m‖²) + bias_damping·(b_u²/n_u + b_m²/n_m)
    where n_u and n_m are the ratings of the user and of the movie.
    """

    factors: int = Field(64, ge=1, le=2000, description="length of the user and movie vectors")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="ratings a step; none: an eighth of those of a user block and a movie part, 1,024 to 65,536",
    )
    epochs: int = Field(20, ge=1, description="passes over the training ratings, at most")
    lr: float = Field(0.05, gt=0, description="step size of a rating; it falls to 2% of it along a half cosine")
    l2: float | None = Field(None, ge=0, description=L2)
    bias_damping: float = Field(
        3.0,
        ge=0,
        description="L2 on the biases, in ratings: a row with n ratings keeps n / (n + damping) of its mean error",
    )
    row_damping: float = Field(
        0.3, ge=0, description="a row with n ratings in a batch moves by lr / (1 + row_damping·lr·n) of what they ask"
    )
    patience: int = Field(3, ge=0, description="epochs without a better validation RMSE before it stops; 0: never")
    init_std: float = Field(0.03, gt=0, description="standard deviation of the vectors' entries at the start")
    block_users: int = Field(8192, ge=1, description="users whose ratings are drawn together")
    seed: int = Field(0, ge=0, description="of the initialisation and of the order of the ratings")


def start(
    train: Interactions,
    validation: Interactions,
    config: SGDConfig,
    workers: int | None = None,
    initial: Initial | None = None,
) -> MiniBatches:
    """The training, ready for its first epoch; see ``mf.solvers.fit``."""

    def strata() -> Strata:
        made = Strata.blocked(train, config.batch_size or 1, config.block_users, PARTS)
        if config.batch_size is None:
            made.batch_size = min(max(len(train) // (made.blocks * made.parts * 8), 1 << 10), 1 << 16)
        return made

    def rule(tables: Tables, counts: Counts) -> SGD:
        return SGD(tables, Penalty.of(counts, config.l2, config.bias_damping), config)

    return MiniBatches(train, validation, strata, config, rule, workers, initial)


class SGD:
    """Row-damped gradient descent.

    The n ratings that a row has in a batch ask for n steps of lr at once, which overshoots for the rows that are in
    every other rating; taken one after another they would each have seen what those before it had done. On a quadratic
    of curvature c they would go 1 - (1 - lr·c)ⁿ of the way, of which lr·n / (1 + lr·c·n) is the simplest bound.
    """

    moves_only_rated = True

    def __init__(self, tables: Tables, penalty: Penalty, config: SGDConfig) -> None:
        self.tables, self.penalty, self.config = tables, penalty, config

    def step(self, users: Side, movies: Side, ratings: int, progress: float) -> None:
        t, w, c = self.tables, self.penalty, self.config
        lr = c.lr * (LAST + (1 - LAST) * (1 + math.cos(math.pi * progress)) / 2)
        for side, vectors, biases, l2, bias_l2 in (
            (users, t.p, t.b_u, w.user_factors, w.user_bias),
            (movies, t.q, t.b_m, w.movie_factors, w.movie_bias),
        ):
            segments, n = side.segments, side.segments.counts
            size = (lr / (1 + lr * c.row_damping * n))[:, None]
            keep = 1 - size * (n * segments.take(l2))[:, None]
            with segments.changed(vectors) as rows:
                rows.mul_(keep).addcmul_(side.vectors, size)
            with segments.changed(biases) as bias:
                bias.addcmul_(side.biases - n * segments.take(bias_l2) * bias, lr / (1 + lr * n))

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """There is nothing beside the tables."""
