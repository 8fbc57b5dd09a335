"""Options of the solvers, and the list of all solvers. PyTorch is imported when one starts."""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mf.config import Config

if TYPE_CHECKING:
    from mf.solvers.base import Start

# Descriptions of options that all solvers have.
EPOCHS = "passes over the training ratings; adam, sgd and vb may stop earlier"
SEED = "random seed"
L2 = "L2 regularisation of both vectors, per rating; default: 0.05·(N / 2 million)^-0.2 within 0.03 to 0.06"
SHARED_BLOCK = 8192  # users per block of adam, where several processes share the training
BIAS_DAMPING = "L2 regularisation of the biases, in ratings: a row's bias is n / (n + damping) of its mean error"


class AdamConfig(Config):
    """Options of the ``adam`` solver."""

    factors: int = Field(64, ge=1, le=2000, description="length of the user and movie vectors")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="ratings per batch; default: N/2000 rounded to a power of two, 512 to 1,048,576",
    )
    epochs: int = Field(10, ge=1, description=EPOCHS)
    lr: float = Field(7e-3, gt=0, description="learning rate; the peak of a one_cycle schedule")
    weight_decay: float = Field(
        0.0, ge=0, description="weight decay as in torch.optim.Adam: L2 on all parameters at every step"
    )
    l2: float | None = Field(None, ge=0, description=L2)
    bias_damping: float = Field(3.0, ge=0, description=BIAS_DAMPING)
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability of each entry of the vectors")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of a batch's gradient")
    schedule: Literal["constant", "one_cycle"] = Field(
        "one_cycle",
        description="learning rate schedule: constant, or one_cycle: up during the first tenth, then down to 0",
    )
    patience: int = Field(
        3, ge=0, description="epochs without a better validation RMSE before early stopping; 0: no early stopping"
    )
    init_std: float = Field(0.01, gt=0, description="standard deviation of the vectors' initial entries")
    block_users: int = Field(
        0,
        ge=0,
        description="users per block, to speed up large batches on a CPU; 0: batches of all users, or blocks of 8192 "
        "by several processes",
    )
    seed: int = Field(0, ge=0, description=SEED)


# The original trainer's values, the defaults of ``python -m mf``.
ORIGINAL: dict[str, Any] = {
    "batch_size": 2048,
    "epochs": 1,
    "lr": 1e-3,
    "weight_decay": 1e-6,
    "l2": 0.0,
    "schedule": "constant",
    "patience": 0,
}


class SGDConfig(Config):
    """Options of the ``sgd`` solver."""

    factors: int = Field(64, ge=1, le=2000, description="length of the user and movie vectors")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="ratings per batch; default: an eighth of the ratings of a user block and movie part, 1,024 to "
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


class GaussianConfig(Config):
    """Options that ``vb`` and ``gibbs`` share."""

    RATINGS_PER_FACTOR: ClassVar[int] = 6

    factors: int = Field(64, ge=1, le=2000, description="length of the user and movie vectors")
    rank: int | None = Field(
        None,
        ge=1,
        le=256,
        description="number of fitted factors, at most factors; default: a sixth of the mean number of ratings per "
        "user or movie, within 16 to 32",
    )

    @model_validator(mode="after")
    def _rank_fits(self) -> Self:
        if self.rank is not None and self.rank > self.factors:
            raise ValueError(f"rank: found {self.rank}, expected at most factors ({self.factors})")
        return self

    def fitted_rank(self, ratings: int, rows: int) -> int:
        """``rank``; by default the mean number of ratings per user or movie / ``RATINGS_PER_FACTOR``, as a multiple of
        4 within 16 to 32, and at most ``factors``.

        Args:
            ratings: how many there are.
            rows: users and movies.
        """
        if self.rank is not None:
            return self.rank
        per_row = ratings / rows
        return min(self.factors, max(16, min(32, round(per_row / self.RATINGS_PER_FACTOR / 4) * 4)))


class VBConfig(GaussianConfig):
    """Options of the ``vb`` solver."""

    fits: int | None = Field(
        None,
        ge=1,
        le=16,
        description="number of fits from different random starts, whose predictions are averaged; default: factors / "
        "rank, at most 4, and 1 above 10 million ratings",
    )
    # More sweeps overfit few ratings (MovieLens latest-small: 0.3% worse after 20); 23.6 million converge within 14, of
    # which the last two gain 0.0004.
    epochs: int = Field(12, ge=1, description=EPOCHS)
    seed: int = Field(0, ge=0, description=SEED)


class GibbsConfig(GaussianConfig):
    """Options of the ``gibbs`` solver."""

    # Twice vb's: an RMSE 0.0015 lower at two million planted ratings (63 per row: rank 20); docs/solvers.md has a
    # table. Rank 32 gains 0.0009 more on latest-small (9 per row), for twice the time.
    RATINGS_PER_FACTOR: ClassVar[int] = 3
    rank: int | None = Field(
        None,
        ge=1,
        le=256,
        description="number of fitted factors, at most factors; default: a third of the mean number of ratings per "
        "user or movie, within 16 to 32",
    )
    # Two million planted ratings converge within 20. Latest-small does not, but 300 with a burn-in of 50 gain nothing.
    epochs: int = Field(120, ge=1, description=EPOCHS)
    burn_in: int | None = Field(
        None,
        ge=0,
        description="passes before the first sample that enters the mean; default: 20, half of fewer than 40 epochs",
    )
    seed: int = Field(0, ge=0, description=SEED)

    @model_validator(mode="after")
    def _burn_in_fits(self) -> Self:
        if self.discarded >= self.epochs:
            raise ValueError(f"burn_in: found {self.burn_in}, expected less than epochs ({self.epochs})")
        return self

    @property
    def discarded(self) -> int:
        """``burn_in``, or its default."""
        return min(20, self.epochs // 2) if self.burn_in is None else self.burn_in


@dataclass(frozen=True)
class Solver:
    """A way to fit the model.

    Attributes:
        name: as given to ``--solver``.
        help: when to choose it, in one clause.
        config: its options; their defaults hold for small and for large data.
        warm: whether it can start from an earlier model.
    """

    name: str
    help: str
    config: type[Config]
    warm: bool

    @property
    def start(self) -> "Start":
        """Makes the training; of the module with the solver's name."""
        start: Start = importlib.import_module(f"mf.solvers.{self.name}").start
        return start


_ALL = (
    Solver(
        "adam",
        "Adam on mini-batches, the original trainer's algorithm, with dropout, clipping and schedules",
        AdamConfig,
        warm=True,
    ),
    Solver("sgd", "gradient descent on blocked ratings, the fastest", SGDConfig, warm=True),
    Solver("vb", "variational Bayes, nothing to tune", VBConfig, warm=False),
    Solver("gibbs", "Gibbs sampling, the most accurate", GibbsConfig, warm=False),
)
SOLVERS: dict[str, Solver] = {solver.name: solver for solver in _ALL}
SOLVER_HELP = "; ".join(f"{solver.name}: {solver.help}" for solver in _ALL)
# The most accurate of those that need no tuning, and the fastest at full size but for sgd: docs/solvers.md.
DEFAULT_SOLVER = "vb"
PUBLISHED = "published"  # the value of init_from that names the published run
INIT_FROM = (
    f"model to start training from (fewer epochs are needed): a model directory, or {PUBLISHED} for the run published "
    "in Supabase; solvers adam and sgd only"
)
