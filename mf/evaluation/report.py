"""A run that was evaluated, as one HTML file that anyone can open, without network or JavaScript, and as JSON; the same
bytes for the same input."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2

from mf.evaluation.bootstrap import Interval
from mf.evaluation.champion import Comparison
from mf.evaluation.evaluate import Evaluation
from mf.evaluation.examples import Example
from mf.evaluation.gate import Decision
from mf.evaluation.plots import Epoch, plots
from mf.files import written_aside

HEADLINES = {
    "accepted": "Accepted for publication",
    "forced": "Accepted by force_publish",
    "refused": "Refused: not published",
}


def verdict(evaluation: Evaluation) -> str:
    """One sentence: the model's RMSE, and by how much it is better or worse than user + movie biases."""
    gain = _gain(evaluation)
    comparison = f"{abs(gain):.4f} {'better' if gain > 0 else 'worse'} than" if gain else "no better than"
    return (
        f"RMSE {evaluation.model.rmse:.4f} on {evaluation.test_rows:,} test ratings: {comparison} "
        f"user + movie biases ({evaluation.user_movie_bias.rmse:.4f})"
    )


@dataclass(frozen=True)
class Report:
    """All that is known of a run when its model has been judged."""

    evaluation: Evaluation
    decision: Decision  # of the gate
    comparison: Comparison | None  # with the published run; None when there is none
    examples: Sequence[Example]
    training: Sequence[Epoch]  # the first first; without any there is no training curve
    facts: Mapping[str, str]  # what the reader should know of the run, a label and a value each; text, never markup

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
            verdict=verdict(self.evaluation),
            evaluation=self.evaluation,
            decision=self.decision,
            comparison=self.comparison,
            plots=plots(self.evaluation, self.training),
            examples=self.examples,
            facts=self.facts,
            signed=_signed,
        )

    def to_json(self) -> str:
        """An object of the evaluation's fields, ``decision``, ``champion`` (null when no run is published),
        ``examples``, ``training`` and ``facts``. Figures that are not finite, which JSON has not, are null."""
        document = asdict(self.evaluation) | {
            "decision": asdict(self.decision),
            "champion": self.comparison and asdict(self.comparison),
            "examples": [asdict(example) for example in self.examples],
            "training": list(map(dict, self.training)),
            "facts": dict(self.facts),
        }
        return json.dumps(_without_odd(document), indent=2, allow_nan=False)


def write_report(report: Report, page: Path, document: Path) -> None:
    """Writes the report as HTML to ``page`` and as JSON to ``document``, each aside and then renamed."""
    for path, text in ((page, report.to_html()), (document, report.to_json())):
        with written_aside(path) as aside:
            # A file name that is not UTF-8 holds letters that cannot be encoded.
            aside.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")


def _gain(evaluation: Evaluation) -> float:
    # Of the rounded figures, so that a reader who subtracts them gets the same.
    return round(evaluation.user_movie_bias.rmse, 4) - round(evaluation.model.rmse, 4)


def _signed(interval: Interval) -> str:
    return f"{interval.low:+.4f} to {interval.high:+.4f}"


def _without_odd(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_odd(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_odd(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
