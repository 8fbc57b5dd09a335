"""The gate: whether a model is good enough to replace the published one; every check with its figure and limit."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mf.evaluation.champion import NO_COMMON_USER, Comparison
from mf.evaluation.config import PUBLISH, REFUSE, GateConfig
from mf.evaluation.evaluate import LABELS, Evaluation
from mf.evaluation.metrics import NDCG, plain
from mf.evaluation.ranking import Ranking


@dataclass(frozen=True)
class Check:
    """One check of the gate."""

    name: str
    figure: float | None  # None: there is no figure to check
    limit: float | None
    passed: bool
    text: str  # figure and limit as a sentence


@dataclass(frozen=True)
class Decision:
    """Whether a model is published, and why."""

    publish: bool
    forced: bool  # published although a check failed
    reasons: tuple[str, ...]  # texts of the failed checks
    checks: tuple[Check, ...]
    lists: str = ""  # NDCG of the lists and of popularity, or why there is none; empty where lists are not checked

    @property
    def verdict(self) -> str:
        """``publish`` or ``refuse``, which the pipeline's condition reads."""
        return PUBLISH if self.publish else REFUSE

    def summary(self) -> str:
        """One line for a person."""
        lists = f"; {self.lists}" if self.lists else ""
        if not self.reasons:
            return f"accepted for publication: all {len(self.checks)} checks passed{lists}"
        start = "accepted by force_publish although" if self.forced else "not published:"
        return f"{start} {'; '.join(self.reasons)}{lists}"


def decide(
    evaluation: Evaluation, comparison: Comparison | None, config: GateConfig, *, users: int, movies: int
) -> Decision:
    """Accepts a model when

    - all its metrics are finite, and its predicted ratings and ranking scores are not all the same,
    - where it has a ranking model, its lists are not worse than popularity's: the 95% interval of the difference in
      NDCG@k (a paired bootstrap over users) does not lie wholly below 0,
    - nor than the published run's lists: NDCG@k on the same test ratings is at most ``max_ndcg_regression`` lower, or
      the interval of the difference includes 0; as with the RMSE, a loss counts only in a clean comparison,
    - where it predicts ratings, its RMSE is below that of user + movie biases and that of the global mean,
    - nor worse than the published run: its RMSE on the same test ratings is at most ``max_regression`` higher, or
      the 95% interval of the difference (a paired bootstrap over users) includes 0, so that it may be chance. Where the
      published run may have been trained on these ratings, its RMSE is too low and a loss against it does not count;
    - its RMSE is at most ``max_rmse``, if given,
    - it has at least ``min_rows`` training ratings, ``min_users`` users and ``min_movies`` movies.

    A check without a figure passes; but a model that has neither an RMSE nor lists to score is refused.

    Args:
        evaluation: of the model.
        comparison: with the published run; None when there is none.
        config: the limits.
        users: number of users that the model has vectors of.
        movies: number of movies that it has vectors of.
    """
    rmse = evaluation.model.get("rmse")
    ranking = evaluation.ranking
    # Every condition is written so that a NaN does not pass.
    checks = [_finite(evaluation)]
    if evaluation.constant:
        checks.append(_constant(evaluation.constant))
    check_lists = ranking.has_ranking_model or rmse is None
    if check_lists:
        checks.append(_beats_popularity(ranking, required=rmse is None))
    if ranking.has_ranking_model:
        checks.append(_lists_not_worse(comparison, ranking, config.max_ndcg_regression))
    if rmse is not None:
        checks += [_beats_baselines(evaluation), _not_worse(comparison, config.max_regression)]
    if config.max_rmse and rmse is not None:
        checks.append(_max_rmse(rmse, config.max_rmse))
    checks += [
        _at_least("min_rows", evaluation.train_rows, f"training {evaluation.rows_are}", config.min_rows),
        _at_least("min_users", users, "users", config.min_users),
        _at_least("min_movies", movies, "movies", config.min_movies),
    ]
    reasons = tuple(check.text for check in checks if not check.passed)
    forced = bool(reasons) and config.force_publish
    return Decision(
        publish=not reasons or forced,
        forced=forced,
        reasons=reasons,
        checks=tuple(checks),
        lists=ranking.line() if check_lists else "",
    )


def _finite(evaluation: Evaluation) -> Check:
    bad = [name for name, value in _numbers(plain(evaluation)) if not math.isfinite(value)]
    text = f"not finite: {', '.join(bad)}" if bad else "all metrics are finite"
    return Check("finite", len(bad), 0, not bad, text)


def _constant(what: tuple[str, ...]) -> Check:
    return Check("constant", len(what), 0, False, f"all {' and all '.join(what)} are the same")


def _beats_popularity(ranking: Ranking, required: bool) -> Check:
    """``required``: the model has no other figure, so that it fails without this one."""
    if ranking.model is None or ranking.popularity is None:
        text = f"NDCG@{ranking.k} of the lists has no figure: {ranking.reason}"
        if required:
            text += "; nothing else measures this model"
        return Check("lists", None, None, not required, text)
    ndcg, popularity, interval = ranking.model[NDCG.name], ranking.popularity[NDCG.name], ranking.ndcg_difference
    passed = math.isfinite(ndcg) and (interval is None or interval.high >= 0)
    relation = "above" if ndcg > popularity else "not above"
    ends = f" (95% interval of the difference {interval.low:+.4f} to {interval.high:+.4f})" if interval else ""
    text = f"{NDCG.heading(ranking.k)} {ndcg:.4f} is {relation} that of popularity, {popularity:.4f}{ends}"
    return Check("lists", ndcg, popularity, passed, text)


def _lists_not_worse(comparison: Comparison | None, ranking: Ranking, limit: float) -> Check:
    if comparison is None or comparison.lists is None:
        if comparison is None:
            text = "there is no published run whose lists to compare with"
        elif comparison.figures is None:
            text = f"lists {comparison.note}"
        else:
            text = f"lists {NO_COMMON_USER}"
        return Check("champion_lists", None, -limit, True, text)
    figures, interval = comparison.lists, comparison.lists.interval
    passed = figures.difference >= -limit or interval is None or interval.high >= 0
    ends = f" (95% interval {interval.low:+.4f} to {interval.high:+.4f})" if interval else ""
    text = (
        f"{NDCG.heading(figures.k)} {figures.ndcg:.4f} against {figures.champion_ndcg:.4f} of the published run "
        f"{comparison.run_id} for the same {figures.users:,} users: {figures.difference:+.4f}{ends}, "
        f"max_ndcg_regression is {limit:g}"
    )
    if not passed and not figures.clean:
        text += "; this does not count, because that run may have been trained on these ratings"
    return Check("champion_lists", figures.difference, -limit, passed or not figures.clean, text)


def _beats_baselines(evaluation: Evaluation) -> Check:
    rmse = evaluation.model["rmse"]
    baselines = {
        LABELS["user_movie_bias"]: evaluation.user_movie_bias["rmse"],
        f"the {LABELS['global_mean']}": evaluation.global_mean["rmse"],
    }
    best = min(baselines, key=lambda name: baselines[name])
    limit = baselines[best]
    passed = rmse < limit
    text = f"RMSE {rmse:.4f} is {'' if passed else 'not '}below that of {best}, {limit:.4f}"
    return Check("baselines", rmse, limit, passed, text)


def _not_worse(comparison: Comparison | None, limit: float) -> Check:
    if comparison is None or comparison.figures is None:
        text = comparison.note if comparison else "there is no published run to compare with"
        return Check("champion", None, limit, True, text)
    figures, interval = comparison.figures, comparison.figures.interval
    passed = figures.difference <= limit or interval is None or interval.low <= 0
    ends = f" (95% interval {interval.low:+.4f} to {interval.high:+.4f})" if interval else ""
    text = (
        f"RMSE {figures.rmse:.4f} against {figures.champion_rmse:.4f} of the published run {comparison.run_id} on the "
        f"same {figures.rows:,} ratings: {figures.difference:+.4f}{ends}, max_regression is {limit:g}"
    )
    if not passed and not figures.clean:
        text += "; this does not count, because that run may have been trained on these ratings"
    return Check("champion", figures.difference, limit, passed or not figures.clean, text)


def _max_rmse(rmse: float, limit: float) -> Check:
    passed = rmse <= limit
    text = f"RMSE {rmse:.4f} is {'at most' if passed else 'above'} max_rmse, {limit:g}"
    return Check("max_rmse", rmse, limit, passed, text)


def _at_least(name: str, count: int, what: str, limit: int) -> Check:
    return Check(name, count, limit, count >= limit, f"{count:,} {what}, {name} is {limit:,}")


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested dicts and lists, with its path: ``model.rmse``."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, int | float):
        yield path, value
