"""The table of metrics: name, label, direction and function of each.

Report, log, KFP metrics and ``evaluation.json`` loop over ``METRICS``: a new metric is one more entry here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from mf.biases import Floats, Ints
from mf.evaluation.bootstrap import Interval

Hits = npt.NDArray[np.bool_]  # [users, k], whether each position of a user's list holds a relevant movie


@dataclass(frozen=True)
class Metric:
    """One metric and how to show it."""

    name: str  # key in evaluation.json and, after a prefix, among KFP's metrics
    label: str  # heading; {k} is the length of the lists
    better: Literal["lower", "higher"]
    digits: int = field(default=4, kw_only=True)  # decimals; an interval shows one less
    baseline: ClassVar[str]  # the baseline to compare with in one line of log
    has_interval: ClassVar[bool] = True

    def heading(self, k: int) -> str:
        """``NDCG@10``."""
        return self.label.format(k=k)

    def text(self, value: float | None) -> str:
        """``value`` for people; a dash where there is none."""
        return "–" if value is None else f"{value:.{self.digits}f}"

    def interval_text(self, interval: Interval) -> str:
        """``0.815–0.870``."""
        return "–".join(f"{end:.{self.digits - 1}f}" for end in (interval.low, interval.high))

    def gain(self, value: float, baseline: float) -> float:
        """How much better ``value`` is than ``baseline``, both rounded as shown, so that a reader gets the same."""
        higher = round(value, self.digits) - round(baseline, self.digits)
        return higher if self.better == "higher" else -higher


@dataclass(frozen=True)
class RatingMetric(Metric):
    """``outer`` of the mean ``loss`` of the errors (predicted - actual) of all test ratings."""

    loss: Callable[[Floats], Floats]
    outer: Callable[[Any], Any]  # of a mean loss, or an array of them
    baseline: ClassVar[str] = "user_movie_bias"

    def of(self, actual: Floats, predicted: Floats) -> float:
        """The metric of ``predicted`` float64[N]. In float64: millions of squares add up to too much for float32."""
        return float(self.outer(np.mean(self.loss(predicted - actual))))


@dataclass(frozen=True)
class ListMetric(Metric):
    """The mean of ``of_users`` over users: of the hits in their lists and the number R ≥ 1 of relevant test movies."""

    of_users: Callable[[Hits, Ints], Floats]
    baseline: ClassVar[str] = "popularity"


@dataclass(frozen=True)
class CatalogueMetric(Metric):
    """One value from all lists int[users, k] (-1: empty position) and the number of movies in the catalogue.

    It has no interval: fewer distinct users always reach fewer movies, so a bootstrap would be biased.
    """

    of_lists: Callable[[Ints, int], float]
    baseline: ClassVar[str] = "popularity"
    has_interval: ClassVar[bool] = False


def ndcg(hits: Hits, relevant: Ints) -> Floats:
    """NDCG@k per user: Σ h_i / log2(i + 1), divided by that of an ideal list (its first min(k, R) positions relevant).

    h_i = 1 where position i of the list holds a relevant movie. Järvelin and Kekäläinen, "Cumulated Gain-Based
    Evaluation of IR Techniques" (2002), with binary gain and the usual discount log2(i + 1) of Burges et al. (2005).
    """
    discounts = 1 / np.log2(np.arange(2, hits.shape[1] + 2))
    ideal = np.cumsum(discounts)[np.minimum(relevant, hits.shape[1]) - 1]
    normalised: Floats = hits @ discounts / ideal
    return normalised


def recall(hits: Hits, relevant: Ints) -> Floats:
    """Recall@k per user: Σ h_i / R (Manning, Raghavan and Schütze, "Introduction to Information Retrieval", 2008,
    chapter 8)."""
    share: Floats = hits.sum(axis=1) / relevant
    return share


def average_precision(hits: Hits, relevant: Ints) -> Floats:
    """AP@k per user: Σ h_i · precision@i / min(k, R), whose mean is MAP@k (McFee et al., "The Million Song Dataset
    Challenge", 2012)."""
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    mean: Floats = (hits * precision).sum(axis=1) / np.minimum(relevant, hits.shape[1])
    return mean


def hit(hits: Hits, relevant: Ints) -> Floats:
    """1 per user with a hit, else 0; the mean is the hit rate (Deshpande and Karypis, "Item-Based Top-N Recommendation
    Algorithms", 2004, for more than one relevant movie)."""
    return np.asarray(hits.any(axis=1), np.float64)


def coverage(lists: Ints, movies: int) -> float:
    """Share of the catalogue that is in at least one list."""
    return len(np.unique(lists[lists >= 0])) / movies


RMSE = RatingMetric("rmse", "RMSE", "lower", np.square, np.sqrt)
MAE = RatingMetric("mae", "MAE", "lower", np.abs, np.positive)
NDCG = ListMetric("ndcg", "NDCG@{k}", "higher", ndcg)
RATING_METRICS: tuple[RatingMetric, ...] = (RMSE, MAE)
LIST_METRICS: tuple[ListMetric, ...] = (
    NDCG,
    ListMetric("recall", "recall@{k}", "higher", recall),
    ListMetric("map", "MAP@{k}", "higher", average_precision),
    ListMetric("hit_rate", "hit rate@{k}", "higher", hit),
)
CATALOGUE_METRICS: tuple[CatalogueMetric, ...] = (CatalogueMetric("coverage", "coverage", "higher", coverage),)
METRICS: tuple[Metric, ...] = (*RATING_METRICS, *LIST_METRICS, *CATALOGUE_METRICS)


@dataclass(frozen=True)
class Scores:
    """Metrics of one model or baseline, by name; a metric without a figure is absent."""

    values: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Interval | None] = field(default_factory=dict)  # None, or absent: there is none

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def __or__(self, other: "Scores") -> "Scores":
        """Both sets of metrics."""
        return Scores({**self.values, **other.values}, {**self.intervals, **other.intervals})

    def get(self, name: str) -> float | None:
        return self.values.get(name)

    def interval(self, name: str) -> Interval | None:
        return self.intervals.get(name)

    def to_json(self) -> dict[str, Any]:
        """``{"rmse": 0.84, "rmse_interval": {"low": …, "high": …}}``; a null interval where there is none."""
        with_interval = [metric.name for metric in METRICS if metric.has_interval and metric.name in self.values]
        return {**self.values, **{f"{name}_interval": self.interval(name) for name in with_interval}}


def plain(value: Any) -> Any:
    """Dataclasses, ``Scores`` and what they hold as dicts, lists and numbers: the shape of ``evaluation.json``."""
    if isinstance(value, Scores):
        value = value.to_json()
    elif is_dataclass(value):
        value = {part.name: getattr(value, part.name) for part in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value
