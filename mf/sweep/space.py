"""Search space of a sweep: the range of every option, and where the run itself stands in it."""

from typing import NamedTuple

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from mf.config import Config
from mf.ranking import RankingConfig
from mf.solvers.adam import derived_batch_size
from mf.solvers.config import AdamConfig, GaussianConfig, GibbsConfig, SGDConfig, VBConfig
from mf.solvers.minibatch import derived_l2
from mf.solvers.vb import derived_fits


class Range(NamedTuple):
    """Lowest and highest value of an option: whole numbers where both are integers."""

    low: float
    high: float
    log: bool = False

    def distribution(self) -> BaseDistribution:
        """The range as Optuna has it."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies within the range."""
        return self.low <= value <= self.high


# Around the best values of latest-small, 500 thousand and 2 million planted ratings (docs/solvers.md).
L2 = Range(0.01, 0.2, log=True)
BIAS_DAMPING = Range(1.0, 12.0, log=True)
MOST_RANK = 32  # as of the derived default; 59 took 20 times as long and was no better on latest-small
LISTS = {
    "regularization_index": Range(8, 512, log=True),
    "rho": Range(0.0, 2.0),
    "input_exponent": Range(0.0, 1.0),
    "target_exponent": Range(0.0, 1.0),
    "rated_target": Range(0.0, 1.0),
    "prior_ratings": Range(1.0, 100.0, log=True),
    "taste": Range(0.0, 2.0),
}


def ranges(config: Config, ratings: int) -> dict[str, Range]:
    """The range of each option that a sweep changes; those that leave no choice are left out.

    Args:
        config: options of the run; the ranges fit those that are not changed.
        ratings: number of training ratings.
    """
    found: dict[str, Range] = {}
    match config:
        case AdamConfig():
            batch = config.batch_size or derived_batch_size(ratings)
            lr, batches = Range(1e-3, 3e-2, log=True), Range(max(batch // 4, 1), batch * 4, log=True)
            found = {"lr": lr, "l2": L2, "bias_damping": BIAS_DAMPING, "batch_size": batches}
        case SGDConfig():
            lr, std = Range(0.01, 0.2, log=True), Range(0.01, 0.1, log=True)
            found = {"lr": lr, "l2": L2, "bias_damping": BIAS_DAMPING, "init_std": std}
        case VBConfig():
            found = {"rank": _ranks(config), "fits": Range(1, 4), "epochs": Range(6, 24)}
        case GibbsConfig():
            found = {"rank": _ranks(config), "burn_in": Range(min(5, config.epochs - 1), min(40, config.epochs - 1))}
        case RankingConfig():
            found = LISTS
    return {name: one for name, one in found.items() if one.low < one.high}


def _ranks(config: GaussianConfig) -> Range:
    return Range(min(4, config.factors), min(MOST_RANK, config.factors), log=True)


def own_values(config: Config, ratings: int, rows: int) -> dict[str, float]:
    """The values that a run with ``config`` has, derived defaults included.

    Args:
        ratings: number of training ratings.
        rows: number of users and movies.
    """
    values = config.model_dump()
    derived: dict[str, float] = {}
    match config:
        case AdamConfig():
            derived = {"l2": derived_l2(ratings), "batch_size": derived_batch_size(ratings)}
        case SGDConfig():
            derived = {"l2": derived_l2(ratings)}
        case VBConfig():
            rank = config.fitted_rank(ratings, rows)
            derived = {"rank": rank, "fits": derived_fits(ratings, rank, config.factors)}
        case GibbsConfig():
            derived = {"rank": config.fitted_rank(ratings, rows), "burn_in": config.discarded}
    return {**values, **{name: value for name, value in derived.items() if values[name] is None}}
