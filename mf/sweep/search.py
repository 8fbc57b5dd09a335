"""A sweep: trains trial after trial, lets Optuna propose the options of the next, keeps the best."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from mf.config import Config
from mf.errors import ConfigError, DataError, TrainingError, needs_extra, one_line
from mf.ranking import RankingConfig
from mf.ratings.config import CLICKS_WITHOUT_RANKING
from mf.ratings.schema import check_ratings_differ, content_hash, has_ratings
from mf.sweep.config import LISTS, Choices, SweepConfig
from mf.sweep.journal import Journal, Trial, remove_journal
from mf.sweep.objective import Objective

if TYPE_CHECKING:  # with Optuna, which comes with an extra
    from mf.sweep.space import Range

# Errors of a training that make its trial a failed one: it diverged, or there was not enough memory.
FAILURES = (TrainingError, RuntimeError, ValueError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class Found:
    """The options to train with, and what was tried."""

    config: Config  # of the solver
    ranking: RankingConfig | None
    best: Trial
    trials: tuple[Trial, ...]
    objective: str  # rmse or ndcg

    def record(self) -> dict[str, Any]:
        """The sweep as it stands in ``model.json``, in ``metrics``."""
        shown = ("number", "solver", "options", "value", "seconds", "failure")
        tried = [{name: getattr(trial, name) for name in shown} for trial in self.trials]
        return {
            "objective": self.objective,
            "trials": len(tried),
            "failed": sum(trial.value is None for trial in self.trials),
            "best": self.best.number,
            "solver": self.best.solver,
            "options": self.best.options,
            "tried": tried,
        }

    def line(self) -> str:
        """One line for the log: the best trial beside the run's own options."""
        first, failed = self.trials[0], sum(trial.value is None for trial in self.trials)
        others = f", {failed} failed" if failed else ""
        beside = "failed" if first.value is None else f"{first.value:.4f}"
        return (
            f"best of {len(self.trials)} trials{others}: trial {self.best.number}, {_name(self.objective)} "
            f"{self.best.value:.4f} (trial 1, the run's own options: {beside}), {self.best.shown()}"
        )


def check_optuna() -> None:
    """Checks that Optuna is installed.

    Raises:
        MfError: it is not; the message names the extra.
    """
    with needs_extra("sweep", "a sweep (trials)"):
        import optuna  # noqa: F401


def search(
    ratings: pa.Table,
    validation: pa.Table,
    sweep: SweepConfig,
    choices: Choices,
    *,
    device: torch.device,
    seed: int,
    relevance_threshold: float | None = None,
    journal: Path | None = None,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Trains up to ``sweep.trials`` times on ``ratings`` and returns the options that are best on ``validation``.

    The first trial has the run's own options, so on the validation part the result is never worse than the run without
    a sweep. A trial's options depend on the seed, its number and the trials before it: the same seed gives the same
    trials, resumed or not, as long as no time limit ends them. No trial is stopped for its first epochs: a bad start
    says little (docs/sweeps.md). A trial that fails counts as one.

    Args:
        ratings: training part, a ratings table, as the next.
        validation: validation part, not empty.
        sweep: number of trials, their time and the objective; ratings without stars (clicks) are compared by NDCG.
        choices: solvers and options.
        device: device to compute on.
        seed: of the choice of options.
        relevance_threshold: for NDCG, as of the evaluation; default: derived from the ratings.
        journal: file of the finished trials, replaced atomically after every trial and resumed from.
        say: gets a line per trial.
        clock: seconds, for the time limit.

    Raises:
        ConfigError: nothing is left to try, or the journal belongs to another sweep.
        DataError: the validation part is empty, or the journal is not one.
        TrainingError: all trials failed.
    """
    check_optuna()
    if not len(validation):
        raise DataError(
            f"trials: found no validation ratings beside {len(ratings):,} training ratings, expected some to compare "
            "the trials on: raise val_size, or leave out the trials"
        )
    check_ratings_differ(pa.concat_tables([ratings, validation]), "training ratings")
    if not has_ratings(ratings) and choices.ranking is None:
        raise ConfigError(CLICKS_WITHOUT_RANKING)
    objective = sweep.trial_objective if has_ratings(ratings) else "ndcg"
    tried = choices.tried(objective)
    saved = Journal(journal, _identity(ratings, validation, objective, choices, tried, seed))
    trials = saved.read()[: sweep.trials]
    if trials:
        say(f"resuming from {journal}: {len(trials)} of {sweep.trials} trials are done")
    say(f"sweep of {sweep.trials} trials over {', '.join(tried)}, compared by {_name(objective)}")
    timer = _Timer(sweep.trial_minutes, sum(trial.seconds for trial in trials), clock)
    if relevance_threshold is None and choices.ranking:
        relevance_threshold = choices.ranking.relevance_threshold
    with _quiet_optuna():
        by_lists = objective == "ndcg"
        measure = Objective(
            ratings, validation, device,
            by_lists=by_lists, relevance_threshold=relevance_threshold, tick=timer.tick,
        )  # fmt: skip
        study = _Study(measure, choices, tried, seed, timer)
        for trial in trials:
            study.add(trial)
        while len(trials) < sweep.trials:
            try:
                trial = study.next(len(trials) + 1)
            except _OutOfTimeError:
                say(f"the {sweep.trial_minutes:g} minutes of the sweep are over after {len(trials)} trials")
                break
            trials.append(trial)
            saved.write(trials)
            say(_line(trial, sweep.trials, objective))
    done = [trial for trial in trials if trial.value is not None]
    if not done:
        if journal:
            remove_journal(journal)
        raise TrainingError(f"all {len(trials)} trials failed; the first: {trials[0].failure}")
    sign = -1 if by_lists else 1
    best = min(done, key=lambda trial: sign * (trial.value or 0.0))  # of equal ones the first
    return Found(*study.chosen(best), best, tuple(trials), objective)


class _OutOfTimeError(Exception):
    """The sweep's minutes are over."""


class _Timer:
    """The time of a sweep.

    Args:
        minutes: after which it ends; 0: never.
        spent: seconds of the trials before it was resumed.
        clock: seconds.
    """

    def __init__(self, minutes: float, spent: float, clock: Callable[[], float]) -> None:
        self.now = clock
        self.deadline = clock() - spent + 60 * minutes if minutes else None
        self.runs = False

    def tick(self) -> None:
        """Ends the trial that runs.

        Raises:
            _OutOfTimeError: the time is over, and it is not the first trial.
        """
        if self.runs and self.deadline is not None and self.now() >= self.deadline:
            raise _OutOfTimeError


class _Study:
    """Optuna's study and the trainings of its trials."""

    def __init__(self, objective: Objective, choices: Choices, tried: Sequence[str], seed: int, timer: _Timer) -> None:
        import optuna

        from mf.sweep.space import own_values, ranges

        self.objective, self.choices, self.tried, self.seed, self.timer = objective, choices, tried, seed, timer
        self.configs = {name: self._config(name) for name in tried}
        self.ranges: dict[str, dict[str, Range]] = {}
        self.own: dict[str, dict[str, float]] = {}
        for name, config in self.configs.items():
            free = choices.free(name)
            found = ranges(config, len(objective.train))
            self.ranges[name] = {option: one for option, one in found.items() if option in free}
            values = own_values(config, len(objective.train), objective.rows)
            self.own[name] = {option: values[option] for option in self.ranges[name]}
        self.study = optuna.create_study(direction="maximize" if objective.by_lists else "minimize")

    def add(self, trial: Trial) -> None:
        """Tells Optuna of a trial of the journal."""
        import optuna

        distributions = {name: self._distribution(name) for name in trial.params}
        state = optuna.trial.TrialState.COMPLETE if trial.value is not None else optuna.trial.TrialState.FAIL
        self.study.add_trial(
            optuna.trial.create_trial(
                state=state, value=trial.value, params=trial.params, distributions=distributions
            )
        )  # fmt: skip

    def next(self, number: int) -> Trial:
        """Trains the next trial.

        Raises:
            _OutOfTimeError: the time is over; the trial does not count.
        """
        import optuna

        self.timer.runs = number > 1
        self.timer.tick()
        # Seeded by the number, since a resumed sweep has not drawn the numbers of the trials before it.
        sampler_seed = (self.seed * 1_000_003 + number) % 2**32
        self.study.sampler = optuna.samplers.TPESampler(seed=sampler_seed, multivariate=True, group=True)
        if number == 1:
            self.study.enqueue_trial(self._own_params())
        asked = self.study.ask()
        name, options = self._suggested(asked, number)
        failure, value, started = "", None, self.timer.now()
        config = self.configs[name] if number == 1 else self._with(name, options)
        try:
            value = self.objective.of(config)
        except FAILURES as error:
            failure = one_line(error)
        state = optuna.trial.TrialState.COMPLETE if value is not None else optuna.trial.TrialState.FAIL
        self.study.tell(asked, value, state=state)
        return Trial(number, name, options, value, self.timer.now() - started, failure, dict(asked.params))

    def chosen(self, best: Trial) -> tuple[Config, RankingConfig | None]:
        """The options of the solver and of the ranking model that ``best`` had."""
        config = self.configs[best.solver] if best.number == 1 else self._with(best.solver, best.options)
        if isinstance(config, RankingConfig):
            return next(iter(self.choices.solvers.values())), config
        return config, self.choices.ranking

    def _config(self, name: str) -> Config:
        ranking = self.choices.ranking
        return ranking if name == LISTS and ranking else self.choices.solvers[name]

    def _with(self, name: str, options: dict[str, float]) -> Config:
        config = self.configs[name]
        return type(config).of(**{**config.model_dump(), **options})

    def _own_params(self) -> dict[str, Any]:
        """The first trial, as far as its values lie within the ranges."""
        name = self.tried[0]
        inside = {
            f"{name}.{option}": value
            for option, value in self.own[name].items()
            if self.ranges[name][option].holds(value)
        }
        return {**({"solver": name} if len(self.tried) > 1 else {}), **inside}

    def _suggested(self, asked: Any, number: int) -> tuple[str, dict[str, float]]:
        """The solver (or ``ease``) and the options of a trial."""
        name = asked.suggest_categorical("solver", self.tried) if len(self.tried) > 1 else self.tried[0]
        options = dict(self.own[name]) if number == 1 else {}
        for option, one in self.ranges[name].items():
            if number > 1 or one.holds(options[option]):
                whole = isinstance(one.low, int)
                suggest = asked.suggest_int if whole else asked.suggest_float
                options[option] = suggest(f"{name}.{option}", one.low, one.high, log=one.log)
        return str(name), options

    def _distribution(self, param: str) -> Any:
        from optuna.distributions import CategoricalDistribution

        name, _, option = param.partition(".")
        return self.ranges[name][option].distribution() if option else CategoricalDistribution(self.tried)


def _identity(
    ratings: pa.Table, validation: pa.Table, objective: str, choices: Choices, tried: Sequence[str], seed: int
) -> dict[str, Any]:
    """What a journal's trials depend on."""
    return {
        "ratings": [content_hash(ratings), content_hash(validation)],
        "objective": objective,
        "options": {name: config.model_dump() for name, config in choices.solvers.items()},
        "ranking options": choices.ranking and choices.ranking.model_dump(),
        "options to change": {name: choices.free(name) for name in tried},
        "seed": seed,
    }


def _name(objective: str) -> str:
    return "validation RMSE" if objective == "rmse" else "validation NDCG@10"


def _line(trial: Trial, trials: int, objective: str) -> str:
    result = f"failed: {trial.failure}" if trial.value is None else f"{_name(objective)} {trial.value:.4f}"
    return f"trial {trial.number}/{trials}  {result}  {trial.shown()}  {trial.seconds:.1f} s"


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keeps Optuna's own log lines and its notes on experimental options away, for the block alone."""
    import optuna

    logger = logging.getLogger("optuna")
    optuna.logging.get_verbosity()  # sets the logger up, which changes its level
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        logger.setLevel(level)
