"""The original's algorithm: mini-batches and Adam, on tensors that stay on the device."""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mf.config import Config
from mf.errors import TrainingError
from mf.model import MatrixFactorization
from mf.solvers.base import Callback, EpochReport, Interactions
from mf.solvers.row_adam import RowAdam


class AdamConfig(Config):
    """Options of the ``adam`` solver; the defaults are the original trainer's.

    It minimises, over the parameters of the rows that each batch touches, the batch's mean of
    (r - r̂)² + l2·(‖p_u‖² + ‖q_m‖²) + bias_damping·(b_u²/n_u + b_m²/n_m)
    where n_u and n_m are the ratings of the user and of the movie; for weight_decay's part of it see ``Penalty``.
    """

    factors: int = Field(64, ge=1, le=2000, description="length of the user and movie vectors")
    batch_size: int = Field(2048, ge=1, description="ratings a step")
    epochs: int = Field(1, ge=1, description="passes over the training ratings, at most")
    lr: float = Field(1e-3, gt=0, description="Adam's step size; the peak of it with a schedule")
    weight_decay: float = Field(
        1e-6, ge=0, description="L2 on all parameters as torch's Adam states it: its gradient is added at every step"
    )
    l2: float = Field(0.0, ge=0, description="L2 on the two vectors of every rating")
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
    seed: int = Field(0, ge=0, description="of the initialisation, the order of the ratings and dropout")


def fit(
    train: Interactions,
    validation: Interactions,
    config: AdamConfig,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
) -> MatrixFactorization:
    """Fits the model; see ``mf.solvers.fit``."""
    torch.manual_seed(config.seed)
    train, validation = train.to(device), validation.to(device)
    model = MatrixFactorization(
        train.n_users,
        train.n_movies,
        config.factors,
        rating_min=min(ratings.min().item() for ratings in (train.ratings, validation.ratings) if len(ratings)),
        rating_max=max(ratings.max().item() for ratings in (train.ratings, validation.ratings) if len(ratings)),
        mu=train.ratings.double().mean().item(),
        init_std=config.init_std,
        dropout=config.dropout,
    ).to(device)
    penalty = Penalty.of(train, config)
    optimiser = RowAdam(model.parameters(), lr=config.lr)
    steps = math.ceil(len(train) / config.batch_size)
    rate = _schedule(optimiser, config, steps * config.epochs)

    best: tuple[float, dict[str, Tensor]] | None = None
    since_best = 0
    for epoch in range(1, config.epochs + 1):
        started = time.perf_counter()
        train_rmse = _epoch(model, train, penalty, optimiser, rate, config)
        validation_rmse = _validate(model, penalty, validation) if len(validation) else None
        for name, value in (("train", train_rmse), ("validation", validation_rmse)):
            if value is not None and not math.isfinite(value):
                raise _diverged(epoch, f"the {name} RMSE is {value}", config)
        seconds = time.perf_counter() - started
        report = EpochReport(epoch, config.epochs, train_rmse, validation_rmse, seconds, len(train) / seconds)
        for callback in callbacks:
            callback(report)
        if validation_rmse is None:
            continue
        if best is None or validation_rmse < best[0]:
            best, since_best = (validation_rmse, copy.deepcopy(model.state_dict())), 0
        else:
            since_best += 1
            if config.patience and since_best >= config.patience:
                break
    if best is not None:
        model.load_state_dict(best[1])
    model.centre(penalty.user_counts, penalty.movie_counts)
    # The last step's outcome shows in no RMSE when there are no validation ratings.
    if not all(table.isfinite().all() for table in model.state_dict().values()):
        raise _diverged(epoch, "a parameter is not finite", config)
    return model.eval()


def _diverged(epoch: int, found: str, config: AdamConfig) -> TrainingError:
    return TrainingError(f"epoch {epoch}: {found}: lower --lr (it is {config.lr:g}), or set --clip_grad 1")


@dataclass(frozen=True)
class Penalty:
    """The L2 weights of each row, per rating, float32[n_users] and float32[n_movies].

    ``weight_decay`` is what torch's Adam makes of it on dense gradients: wd·θ is added to every parameter's gradient at
    each of the N/B steps of an epoch. Rows that are touched now and then get the same in sum: a row with n ratings is
    touched n times an epoch, and the gradient of w·θ² on one rating of a batch's mean is 2wθ/B, so w = N·wd / (2n).
    A damping λ of a bias is λ·b² over the row's n ratings: λ/n on each.
    """

    user_counts: Tensor
    movie_counts: Tensor
    user_factors: Tensor
    movie_factors: Tensor
    user_bias: Tensor
    movie_bias: Tensor

    @classmethod
    def of(cls, train: Interactions, config: AdamConfig) -> "Penalty":
        counts = [
            torch.bincount(rows, minlength=n)
            for rows, n in ((train.users, train.n_users), (train.movies, train.n_movies))
        ]
        per_rating = [1.0 / n.clamp(min=1) for n in counts]
        decay = len(train) * config.weight_decay / 2
        return cls(
            *counts,
            *(config.l2 + decay * x for x in per_rating),
            *((config.bias_damping + decay) * x for x in per_rating),
        )

    def of_batch(self, users: Tensor, movies: Tensor, p: Tensor, q: Tensor, b_u: Tensor, b_m: Tensor) -> Tensor:
        """The mean penalty of a batch's ratings."""
        return (
            self.user_factors[users] * p.square().sum(-1)
            + self.movie_factors[movies] * q.square().sum(-1)
            + self.user_bias[users] * b_u.square()
            + self.movie_bias[movies] * b_m.square()
        ).mean()


def _schedule(optimiser: RowAdam, config: AdamConfig, steps: int) -> torch.optim.lr_scheduler.OneCycleLR | None:
    if config.schedule == "constant":
        return None
    # One more than the steps: the schedule's own last value is then never asked for beyond its end. Its rise takes a
    # step at least: with one that takes none torch divides by zero.
    total = steps + 1
    return torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=config.lr, total_steps=total, pct_start=max(0.1, 2 / total), cycle_momentum=False
    )


def _epoch(
    model: MatrixFactorization,
    train: Interactions,
    penalty: Penalty,
    optimiser: RowAdam,
    rate: torch.optim.lr_scheduler.OneCycleLR | None,
    config: AdamConfig,
) -> float:
    """One pass over the ratings in a new order; the RMSE of its batches."""
    model.train()
    squared_error = torch.zeros((), dtype=torch.float64, device=train.ratings.device)
    order = torch.randperm(len(train), device=train.ratings.device)
    for batch in torch.split(order, config.batch_size):
        users, movies, ratings = train.users[batch], train.movies[batch], train.ratings[batch]
        rows = model.embed(users, movies)
        error = model.score(*rows) - ratings
        loss = error.square().mean() + penalty.of_batch(users, movies, *rows)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if config.clip_grad is not None:
            clip_grad_norm(model, config.clip_grad)
        optimiser.step()
        if rate is not None:
            rate.step()
        squared_error += error.detach().square().sum()
    return math.sqrt(squared_error.item() / len(train))


def clip_grad_norm(model: MatrixFactorization, max_norm: float) -> None:
    """Scales the sparse gradients so that the norm of them all, duplicates summed, is at most ``max_norm``."""
    values = []
    for table in model.parameters():
        assert table.grad is not None
        table.grad = table.grad.coalesce()
        values.append(table.grad.values())
    norm = torch.stack([v.square().sum() for v in values]).sum().sqrt()
    for v in values:
        v.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))


def _validate(model: MatrixFactorization, penalty: Penalty, validation: Interactions) -> float:
    """RMSE of clipped predictions, with unseen rows answered as the finished model would."""
    finished = copy.deepcopy(model).eval()
    finished.centre(penalty.user_counts, penalty.movie_counts)
    error = finished.predict(validation.users, validation.movies) - validation.ratings
    return math.sqrt(error.double().square().mean().item())
