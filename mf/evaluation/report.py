"""The report of an evaluation: one HTML page without network or JavaScript, and JSON.

The same input gives the same bytes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from mf.evaluation.bootstrap import Interval
from mf.evaluation.champion import Comparison, PairedFigure
from mf.evaluation.evaluate import LABELS, Evaluation
from mf.evaluation.examples import Example
from mf.evaluation.gate import Decision
from mf.evaluation.metrics import (
    CATALOGUE_METRICS,
    LIST_METRICS,
    METRICS,
    NDCG,
    RATING_METRICS,
    RMSE,
    Metric,
    Scores,
    plain,
)
from mf.evaluation.plots import Epoch, plots
from mf.files import written_aside

HEADLINES = {
    "accepted": "Accepted for publication",
    "forced": "Accepted by force_publish",
    "refused": "Refused: not published",
}

CURVE_METRICS = (NDCG, LIST_METRICS[-1])  # NDCG and hit rate
KEY_FIGURES = {
    "ndcg": "how near the lists are to perfect ones, 0 to 1; higher is better",
    "hit_rate": "share of users with a hit in their list; higher is better",
    "coverage": "share of the movies that are in anyone's list; higher is better",
    "rmse": "typical error of a predicted rating, in rating units; lower is better",
}


@dataclass(frozen=True)
class KeyFigure:
    """A row of the table at the top: a metric of the model, of the published run and of a simple baseline."""

    metric: Metric
    meaning: str
    model: Scores
    baseline: float | None
    baseline_name: str
    champion: float | None = None  # None: not compared
    difference: float | None = None  # model - champion, on the same test ratings
    interval: Interval | None = None  # of the difference


@dataclass(frozen=True)
class Report:
    """Contents of a report."""

    evaluation: Evaluation
    decision: Decision  # of the gate
    comparison: Comparison | None  # with the published run; None when there is none
    examples: Sequence[Example]
    training: Sequence[Epoch]  # the training curve, in order; may be empty
    facts: Mapping[str, str]  # ratings, model and code of the run, by label; plain text, never markup
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by group and name
    when: str = ""  # date and duration of the run, for people
    sweep: Mapping[str, Any] = field(default_factory=dict)  # as in model.json; empty: there was none

    def to_html(self) -> str:
        """The page."""
        templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        key_figures = self.key_figures()
        has_ranking_model = self.evaluation.ranking.has_ranking_model
        contents = {
            "Key figures": True,
            "The gate": True,
            **({"Recommendation lists": True, "Lists of new users": True} if has_ranking_model else {}),
            "Predicted ratings": self.evaluation.has_ratings or not has_ranking_model,
            "Recommendation lists": True,
            "Cold start": True,
            "Plots": bool(drawn := plots(self.evaluation, self.training)),
            "Sweep": bool(self.sweep),
            "Example users": bool(self.examples),
            "The run": bool(self.facts),
            "Parameters": bool(self.parameters),
        }
        outcome = "forced" if self.decision.forced else "accepted" if self.decision.publish else "refused"
        return templates.get_template("report.html").render(
            outcome=outcome,
            headline=HEADLINES[outcome],
            summary=self.evaluation.headline(),
            evaluation=self.evaluation,
            scores=self.evaluation.scores(),
            list_scores=self.evaluation.ranking.scores(),
            labels=LABELS,
            rating_metrics=RATING_METRICS,
            list_metrics=[*LIST_METRICS, *CATALOGUE_METRICS],
            curve_metrics=CURVE_METRICS,
            decision=self.decision,
            comparison=self.comparison,
            plots=drawn,
            examples=self.examples,
            sweep=self.sweep,
            facts=self.facts,
            parameters=self.parameters,
            when=self.when,
            key_figures=key_figures,
            published=self.published_figures(),
            has_previous=any(row.champion is not None for row in key_figures),
            has_intervals=any(row.model.interval(row.metric.name) for row in key_figures),
            contents=[title for title, there in contents.items() if there],
            signed=_signed,
            shown=_shown,
        )

    def key_figures(self) -> list[KeyFigure]:
        """The metrics that have a figure; those of lists first."""
        scores = self.evaluation.scores()
        compared = {
            name: (pair.champion, pair.difference, pair.interval) for name, pair in self.published_figures().items()
        }
        return [
            KeyFigure(
                metric,
                meaning,
                scores["model"],
                scores[metric.baseline].get(name),
                LABELS[metric.baseline],
                *compared.get(name, ()),
            )
            for name, meaning in KEY_FIGURES.items()
            for metric in METRICS
            if metric.name == name and scores["model"].get(name) is not None
        ]

    def published_figures(self) -> dict[str, PairedFigure]:
        """The metrics of the published run beside the model's, by name; empty where they are not compared."""
        lists, stars = (self.comparison.lists, self.comparison.figures) if self.comparison else (None, None)
        figures: dict[str, PairedFigure] = {}
        if lists:
            figures[NDCG.name] = PairedFigure(lists.ndcg, lists.champion_ndcg, lists.difference, lists.interval)
            figures |= lists.others
        if stars:
            figures[RMSE.name] = PairedFigure(stars.rmse, stars.champion_rmse, stars.difference, stars.interval)
            figures |= stars.others
        return figures

    def to_json(self) -> str:
        """An object with the evaluation's fields, ``decision``, ``champion`` (null when no run is published) and the
        report's other fields. NaN and infinity, which JSON does not have, become null."""
        document = plain(self.evaluation) | {
            "decision": plain(self.decision),
            "champion": plain(self.comparison),
            "examples": plain(self.examples),
            "training": plain(self.training),
            "sweep": plain(self.sweep),
            "facts": plain(self.facts),
            "parameters": plain(self.parameters),
            "when": self.when,
        }
        return json.dumps(_finite(document), indent=2, allow_nan=False)


def write_report(report: Report, html: Path, document: Path) -> None:
    """Writes the report as HTML and as JSON, each file atomically."""
    for path, text in ((html, report.to_html()), (document, report.to_json())):
        with written_aside(path) as temporary:
            # A file name that is not valid UTF-8 has characters that cannot be encoded.
            temporary.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")


def _signed(interval: Interval) -> str:
    return f"{interval.low:+.4f} to {interval.high:+.4f}"


def _shown(value: Any) -> str:
    """A parameter for people: a whole float as an integer, an empty one as a dash."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if value is None or value == "" or value == {} or value == []:
        return "–"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _finite(value: Any) -> Any:
    """``value`` with None in place of every float that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
