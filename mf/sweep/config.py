"""Options of a sweep, and what it may choose from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mf.config import Config
from mf.errors import ConfigError
from mf.ranking.config import RankingConfig
from mf.solvers import SOLVERS, configure

# The options that a sweep changes, by solver; ``ease``: of the ranking model. Their ranges are in mf.sweep.space.
SEARCHED: dict[str, tuple[str, ...]] = {
    "adam": ("lr", "l2", "bias_damping", "batch_size"),
    "sgd": ("lr", "l2", "bias_damping", "init_std"),
    "vb": ("rank", "fits", "epochs"),
    "gibbs": ("rank", "burn_in"),
    "ease": ("regularization_index", "rho", "input_exponent", "target_exponent", "rated_target", "prior_ratings",
             "taste"),
}  # fmt: skip
LISTS = "ease"
SWEEP_HELP = "; ".join(f"{name}: {', '.join(options)}" for name, options in SEARCHED.items())


class SweepConfig(Config):
    """Number of trials, their time, and what they are compared by."""

    trials: int = Field(
        0,
        ge=0,
        le=1000,
        description="trainings of a sweep over solver and options, of which the best on the validation part is kept; "
        "the first has the options of the run, and an option that is set is not changed; 0 or 1: no sweep",
    )
    trial_minutes: float = Field(
        0,
        ge=0,
        description="minutes after which a sweep ends, whatever it has tried; the first trial always ends; 0: no limit",
    )
    trial_objective: Literal["rmse", "ndcg"] = Field(
        "rmse",
        description="what the trials of a sweep are compared by, on the validation part: rmse, of the predicted "
        "ratings, over the solver's options; ndcg, NDCG@10 of the lists, over the ranking model's options (with "
        "ranking=none the solver's); without ratings always ndcg",
    )

    @model_validator(mode="after")
    def _belong_to_a_sweep(self) -> Self:
        if not self.wanted:
            expected = "without a sweep, expected it together with trials, such as 20"
            if self.trial_minutes:
                raise ValueError(f"trial_minutes: found {self.trial_minutes:g} {expected}")
            if self.trial_objective != "rmse":
                raise ValueError(f"trial_objective: found {self.trial_objective} {expected}")
        return self

    @property
    def wanted(self) -> bool:
        """Whether there is to be a sweep."""
        return self.trials > 1

    def check(self, *, val_size: float, init_from: bool = False, processes: Mapping[str, int]) -> None:
        """Checks that a sweep fits the other options of the run.

        Args:
            val_size: share of the ratings that trials are compared on.
            init_from: whether training starts from an earlier model.
            processes: the option that shares a training among processes or GPUs, and its value.

        Raises:
            ConfigError: it does not; names every fault.
        """
        if not self.wanted:
            return
        faults = []
        if not val_size:
            faults.append("val_size: found 0 with trials, expected a validation part to compare them on, such as 0.1")
        if init_from:
            faults.append("init_from: found an earlier model with trials, expected none: every trial starts anew")
        try:
            for name, number in processes.items():
                self.check_processes(name, number)
        except ConfigError as error:
            faults += error.faults
        if faults:
            raise ConfigError(*faults)

    def check_processes(self, name: str, number: int) -> None:
        """Refuses a sweep whose trainings are shared among processes, GPUs or machines.

        Args:
            name, number: the option that shares a training, and its value.

        Raises:
            ConfigError: there is a sweep, and the number is above 1.
        """
        if self.wanted and number > 1:
            raise ConfigError(
                f"{name}: found {number:g} with trials, expected 1: a trial is trained by one process; leave out the "
                f"trials, or set {name} to 1"
            )


@dataclass(frozen=True)
class Choices:
    """What a sweep may choose from: solvers and options of the run.

    Attributes:
        solvers: the options of each solver that may be tried; the first is the run's own.
        ranking: options of the ranking model; ``None``: there is none.
        set_by_user: names of the options that stay as they are.
        ranking_set_by_user: the same for the ranking model.
    """

    solvers: Mapping[str, Config]
    ranking: RankingConfig | None
    set_by_user: frozenset[str]
    ranking_set_by_user: frozenset[str]

    @classmethod
    def of(
        cls,
        solver: str,
        config: Config,
        options: Mapping[str, Any],
        ranking: RankingConfig | None,
        ranking_options: Mapping[str, Any],
        *,
        any_solver: bool,
    ) -> Self:
        """The choices of a run.

        Args:
            solver, config: the run's own solver and its options.
            options: the options that the user has set.
            ranking, ranking_options: the same for the ranking model.
            any_solver: try every solver that has ``options`` too; False: the user has named the solver.
        """
        solvers = {solver: config}
        for name, other in SOLVERS.items() if any_solver else ():
            if name != solver and options.keys() <= other.config.model_fields.keys():
                try:
                    solvers[name] = configure(name, options)
                except ConfigError:  # such as fewer epochs than gibbs' burn-in
                    continue
        return cls(solvers, ranking, frozenset(options), frozenset(ranking_options))

    def free(self, name: str) -> tuple[str, ...]:
        """The options of a solver, or of the ranking model (``ease``), that trials may change."""
        kept = self.ranking_set_by_user if name == LISTS else self.set_by_user
        return tuple(option for option in SEARCHED[name] if option not in kept)

    def tried(self, objective: str) -> tuple[str, ...]:
        """What is tried: ``ease``, the ranking model, or the names of solvers.

        Raises:
            ConfigError: nothing is left to try, since the user has set all of it.
        """
        names = (LISTS,) if objective == "ndcg" and self.ranking else tuple(self.solvers)
        if len(names) == 1 and not self.free(names[0]):
            raise ConfigError(
                f"trials: all that a sweep over {names[0]} changes is set ({', '.join(SEARCHED[names[0]])}): leave one "
                "of these options out, or the trials"
            )
        return names
