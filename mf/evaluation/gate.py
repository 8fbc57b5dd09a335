"""Is this model good enough to take the published one's place? Every check with its figure and its limit."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mf.evaluation.champion import Comparison
from mf.evaluation.config import PUBLISH, REFUSE, GateConfig
from mf.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Check:
    """One condition of the gate."""

    name: str
    figure: float | None  # None: there is nothing to compare
    limit: float | None
    passed: bool
    text: str  # what was found and what was expected, for a person


@dataclass(frozen=True)
class Decision:
    """Whether a model is published, and why."""

    publish: bool
    forced: bool  # published although a check failed
    reasons: tuple[str, ...]  # the texts of the checks that failed
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        """``publish`` or ``refuse``: what the pipeline's condition reads."""
        return PUBLISH if self.publish else REFUSE

    def summary(self) -> str:
        """One line for a person."""
        if not self.reasons:
            return f"to be published: all {len(self.checks)} checks of the gate are passed"
        begin = "to be published all the same, by force_publish" if self.forced else "not published"
        return f"{begin}: {'; '.join(self.reasons)}"


def decide(
    evaluation: Evaluation, comparison: Comparison | None, config: GateConfig, *, users: int, movies: int
) -> Decision:
    """Lets a model pass that

    - has no figure that is not finite,
    - has a lower RMSE than user + movie biases and than the global mean,
    - does not lose to the published run: the difference of their RMSE on the same test ratings is at most
      ``max_regression``, or its 95% interval (a paired bootstrap over users) reaches down to 0, so that it may be
      chance. Where the published run may have trained on these ratings its figure is flattered, so that to lose to it
      says nothing, and it does not count;
    - has an RMSE of at most ``max_rmse``, when one is given,
    - has at least ``min_rows`` training ratings, ``min_users`` users and ``min_movies`` movies.

    Args:
        evaluation: of the model.
        comparison: with the published run; None when there is none.
        config: the limits.
        users: that the model has vectors of.
        movies: that the model has vectors of.
    """
    checks = [_finite(evaluation), _beats_baselines(evaluation), _keeps_up(comparison, config.max_regression)]
    if config.max_rmse:
        checks.append(_at_most_max_rmse(evaluation.model.rmse, config.max_rmse))
    checks += [
        _at_least("min_rows", evaluation.train_rows, "training ratings", config.min_rows),
        _at_least("min_users", users, "users", config.min_users),
        _at_least("min_movies", movies, "movies", config.min_movies),
    ]
    reasons = tuple(check.text for check in checks if not check.passed)
    forced = bool(reasons) and config.force_publish
    return Decision(publish=not reasons or forced, forced=forced, reasons=reasons, checks=tuple(checks))


def _finite(evaluation: Evaluation) -> Check:
    odd = [name for name, figure in _figures(asdict(evaluation)) if not math.isfinite(figure)]
    text = f"not finite: {', '.join(odd)}" if odd else "every figure of the evaluation is finite"
    return Check("finite", len(odd), 0, not odd, text)


def _beats_baselines(evaluation: Evaluation) -> Check:
    baselines = {"user + movie biases": evaluation.user_movie_bias, "the global mean": evaluation.global_mean}
    best = min(baselines, key=lambda name: baselines[name].rmse)
    rmse, limit = evaluation.model.rmse, baselines[best].rmse
    said = "is below" if rmse < limit else "is not below"
    return Check("baselines", rmse, limit, rmse < limit, f"RMSE {rmse:.4f} {said} that of {best}, {limit:.4f}")


def _keeps_up(comparison: Comparison | None, limit: float) -> Check:
    if comparison is None or comparison.figures is None:
        why = comparison.note if comparison else "no run is published yet: there is none to compare with"
        return Check("champion", None, limit, True, why)
    found, limits = comparison.figures, comparison.figures.interval
    # Written so that a figure that is not a number does not pass.
    keeps_up = found.difference <= limit or limits is None or limits.low <= 0
    interval = f" (95% interval {limits.low:+.4f} to {limits.high:+.4f})" if limits else ""
    text = (
        f"RMSE {found.rmse:.4f} against {found.champion_rmse:.4f} of the published run {comparison.run_id} on the same "
        f"{found.rows:,} ratings: {found.difference:+.4f}{interval}, max_regression is {limit:g}"
    )
    if not keeps_up and not found.clean:
        text += "; it does not count, since that run may have trained on these ratings"
    return Check("champion", found.difference, limit, keeps_up or not found.clean, text)


def _at_most_max_rmse(rmse: float, limit: float) -> Check:
    passed = rmse <= limit
    text = f"RMSE {rmse:.4f} is {'at most' if passed else 'above'} max_rmse, {limit:g}"
    return Check("max_rmse", rmse, limit, passed, text)


def _at_least(name: str, found: int, what: str, limit: int) -> Check:
    passed = found >= limit
    return Check(name, found, limit, passed, f"{found:,} {what}, {name} is {limit:,}")


def _figures(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number within ``value``, with its place: ``model.rmse``."""
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _figures(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float):
        yield name, value
