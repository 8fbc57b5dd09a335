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
from mf.evaluation.champion import Comparison
from mf.evaluation.evaluate import LABELS, Evaluation
from mf.evaluation.examples import Example
from mf.evaluation.gate import Decision
from mf.evaluation.metrics import CATALOGUE_METRICS, LIST_METRICS, NDCG, RATING_METRICS, plain
from mf.evaluation.plots import Epoch, plots
from mf.files import written_aside

HEADLINES = {
    "accepted": "Accepted for publication",
    "forced": "Accepted by force_publish",
    "refused": "Refused: not published",
}

CURVE_METRICS = (NDCG, LIST_METRICS[-1])  # NDCG and hit rate


@dataclass(frozen=True)
class Report:
    """Contents of a report."""

    evaluation: Evaluation
    decision: Decision  # of the gate
    comparison: Comparison | None  # with the published run; None when there is none
    examples: Sequence[Example]
    training: Sequence[Epoch]  # the training curve, in order; may be empty
    facts: Mapping[str, str]  # ratings, model and code of the run, by label; plain text, never markup
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
            plots=plots(self.evaluation, self.training),
            examples=self.examples,
            sweep=self.sweep,
            facts=self.facts,
            signed=_signed,
        )

    def to_json(self) -> str:
        """An object with the evaluation's fields, ``decision``, ``champion`` (null when no run is published),
        ``examples``, ``training``, ``sweep`` and ``facts``. NaN and infinity, which JSON does not have, become null."""
        document = plain(self.evaluation) | {
            "decision": plain(self.decision),
            "champion": plain(self.comparison),
            "examples": plain(self.examples),
            "training": plain(self.training),
            "sweep": plain(self.sweep),
            "facts": plain(self.facts),
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


def _finite(value: Any) -> Any:
    """``value`` with None in place of every float that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
