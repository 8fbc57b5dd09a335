"""An evaluation as one HTML file that anyone can open: no network, no JavaScript, the same bytes for the same input."""

from collections.abc import Mapping, Sequence
from pathlib import Path

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


def write_report(
    evaluation: Evaluation,
    history: Sequence[Epoch],
    facts: Mapping[str, str],
    path: Path,
    decision: Decision | None = None,
    comparison: Comparison | None = None,
    examples: Sequence[Example] = (),
) -> None:
    """Writes the report to ``path``, aside and then renamed.

    Args:
        evaluation: what the report is about.
        history: the training, an epoch each, the first first; without any there is no training curve.
        facts: what the reader should know of the run, a label and a value each, in this order; text, never markup.
        path: the HTML file.
        decision: of the gate.
        comparison: with the published run; None when there is none.
        examples: users with what they like and what is recommended to them.
    """
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    if decision is None:
        decision = Decision(True, False, (), ())
    outcome = "forced" if decision.forced else "accepted" if decision.publish else "refused"
    page = templates.get_template("report.html").render(
        outcome=outcome,
        headline=HEADLINES[outcome],
        verdict=verdict(evaluation),
        evaluation=evaluation,
        decision=decision,
        comparison=comparison,
        plots=plots(evaluation, history),
        examples=examples,
        facts=facts,
        signed=_signed,
    )
    with written_aside(path) as aside:
        # A file name that is not UTF-8 holds letters that cannot be encoded.
        aside.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")


def _gain(evaluation: Evaluation) -> float:
    # Of the rounded figures, so that a reader who subtracts them gets the same.
    return round(evaluation.user_movie_bias.rmse, 4) - round(evaluation.model.rmse, 4)


def _signed(interval: Interval) -> str:
    return f"{interval.low:+.4f} to {interval.high:+.4f}"
