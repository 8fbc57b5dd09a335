"""An evaluation as one HTML file that anyone can open: no network, no JavaScript, the same bytes for the same input."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jinja2
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mf.evaluation.evaluate import CountBin, Evaluation, RatingBin
from mf.files import written_aside

# One epoch (or sweep): "epoch", "train_rmse", "validation_rmse" (None without a validation part) and "seconds".
Epoch = Mapping[str, float | None]

MODEL_COLOUR, OTHER_COLOUR = "#0b5cad", "#c2570c"
# On top of matplotlib's own defaults, so that nobody's matplotlibrc changes a report. The salt makes ids repeatable.
STYLE = {
    "axes.edgecolor": "#8a94a0",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 11,
    "grid.color": "#dfe3e8",
    "legend.frameon": False,
    "lines.linewidth": 2,
    "svg.hashsalt": "mf",
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
) -> None:
    """Writes the report to ``path``, aside and then renamed.

    Args:
        evaluation: what the report is about.
        history: the training, an epoch each, the first first; without any there is no training curve.
        facts: what the reader should know of the run, a label and a value each, in this order; text, never markup.
        path: the HTML file.
    """
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template("report.html").render(
        evaluation=evaluation,
        facts=facts,
        verdict=verdict(evaluation),
        better=_gain(evaluation) > 0,
        history=history,
        span=_span,
        training_curve=_svg(lambda axes: _draw_training(axes, history)) if history else None,
        predicted_against_actual=_svg(lambda axes: _draw_by_rating(axes, evaluation.by_rating)),
        error_by_activity=_svg(lambda axes: _draw_by_activity(axes, evaluation.by_activity)),
    )
    with written_aside(path) as aside:
        # A file name that is not UTF-8 holds letters that cannot be encoded.
        aside.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")


def _gain(evaluation: Evaluation) -> float:
    # Of the rounded figures, so that a reader who subtracts them gets the same.
    return round(evaluation.user_movie_bias.rmse, 4) - round(evaluation.model.rmse, 4)


def _span(first: float, last: float) -> str:
    """``4–17``, or ``4`` when both are 4."""
    ends = [f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (first, last)]
    return ends[0] if first == last else "–".join(ends)


def _svg(draw: Callable[[Axes], None]) -> str:
    """A data URI of the figure that ``draw`` fills. As an image, unlike inline, an SVG can neither run nor fetch."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(5.2, 3.7), layout="constrained")
        draw(figure.add_subplot())
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2, handletextpad=0.5)
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue()).decode()


def _draw_training(axes: Axes, history: Sequence[Epoch]) -> None:
    for key, label, colour, line in (
        ("train_rmse", "training", OTHER_COLOUR, "o--"),
        ("validation_rmse", "validation", MODEL_COLOUR, "o-"),
    ):
        points = [(epoch["epoch"], epoch[key]) for epoch in history if epoch[key] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), line, color=colour, label=label, markersize=4)
    axes.set(xlabel="epoch", ylabel="RMSE")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _draw_by_rating(axes: Axes, bins: Sequence[RatingBin]) -> None:
    actual = [(b.from_rating + b.to_rating) / 2 for b in bins]
    low, high = bins[0].from_rating, bins[-1].to_rating
    axes.plot([low, high], [low, high], "--", color="#8a94a0", linewidth=1, label="perfect")
    axes.vlines(
        actual, [b.p10 for b in bins], [b.p90 for b in bins], color=MODEL_COLOUR, alpha=0.3, linewidth=7,
        label="middle 80% of predictions",
    )  # fmt: skip
    axes.plot(actual, [b.mean for b in bins], "o", color=MODEL_COLOUR, label="mean")
    axes.set(xlabel="actual rating", ylabel="predicted rating")


def _draw_by_activity(axes: Axes, bins: Sequence[CountBin]) -> None:
    labels = [_span(b.from_ratings, b.to_ratings) for b in bins]
    axes.plot(labels, [b.baseline_rmse for b in bins], "s--", color=OTHER_COLOUR, label="user + movie biases")
    axes.plot(labels, [b.rmse for b in bins], "o-", color=MODEL_COLOUR, label="model")
    axes.tick_params(axis="x", rotation=40)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    axes.set(xlabel="ratings that the user has in training", ylabel="RMSE")
