"""Plots of the report as SVG, each with a note on how to read it and a table of its numbers."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mf.evaluation.accuracy import CalibrationBin, CountBin, Distribution, RatingBin
from mf.evaluation.evaluate import LABELS, Evaluation
from mf.evaluation.ranking import ExposureBin

# One epoch (or sweep): "epoch", "train_rmse", "validation_rmse" (None without a validation part) and "seconds".
Epoch = Mapping[str, float | None]

MODEL, BASELINE, NEUTRAL, INK, GRID = "#0b5cad", "#c2570c", "#7d8894", "#1b2530", "#dfe3e8"
DARK = {MODEL: "#6cb2ff", BASELINE: "#ff9d57", NEUTRAL: "#8a94a0", INK: "#e4e8ec", GRID: "#333d48"}
# On top of matplotlib's defaults, so that a user's matplotlibrc does not change the report. The salt makes ids
# reproducible.
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": NEUTRAL,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 11,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 2,
    "svg.hashsalt": "mf",
    "xtick.color": NEUTRAL,
    "xtick.labelcolor": INK,
    "ytick.color": NEUTRAL,
    "ytick.labelcolor": INK,
}
BIASES = LABELS["user_movie_bias"]


@dataclass(frozen=True)
class Plot:
    """A plot and its texts, which are plain text and never markup."""

    title: str
    note: str  # how to read the plot
    alt: str  # alternative text
    image: str  # a data URI
    columns: tuple[str, ...]  # headings of the table
    rows: tuple[tuple[str, ...], ...]


def plots(evaluation: Evaluation, history: Sequence[Epoch]) -> list[Plot]:
    """The plots that there are data for."""
    drawn = []
    if evaluation.distribution:  # there are predicted ratings
        drawn = [
            _by_rating(evaluation.by_rating),
            _by_count(evaluation.by_activity, "Error by user activity", "user", "least active"),
            _by_count(evaluation.by_popularity, "Error by movie popularity", "movie", "least rated"),
            _calibration(evaluation.calibration, evaluation.baseline_calibration),
            _distribution(evaluation.distribution),
        ]
    if history:
        drawn.insert(0, _training(history))
    if evaluation.exposure:
        # Lists come first where there is a ranking model.
        at = 0 if evaluation.ranking.has_ranking_model else len(drawn)
        drawn.insert(at, _exposure(evaluation))
    return drawn


def _training(history: Sequence[Epoch]) -> Plot:
    def draw(axes: Axes) -> None:
        for key, label, colour, line in (
            ("train_rmse", "training", BASELINE, "o--"),
            ("validation_rmse", "validation", MODEL, "o-"),
        ):
            points = [(epoch["epoch"], epoch[key]) for epoch in history if epoch[key] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), line, color=colour, label=label, markersize=4)
        axes.set(xlabel="epoch", ylabel="RMSE")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    return Plot(
        "Training",
        "Training RMSE falling while validation RMSE rises is overfitting.",
        f"Line chart of training and validation RMSE over {len(history)} epochs",
        _svg(draw),
        ("epoch", "training RMSE", "validation RMSE", "seconds"),
        tuple(
            (
                f"{epoch['epoch']:.0f}",
                _text(epoch["train_rmse"], 4),
                _text(epoch["validation_rmse"], 4),
                _text(epoch["seconds"], 1),
            )
            for epoch in history
        ),
    )


def _by_rating(bins: Sequence[RatingBin]) -> Plot:
    def draw(axes: Axes) -> None:
        actual = [(b.from_rating + b.to_rating) / 2 for b in bins]
        ends = bins[0].from_rating, bins[-1].to_rating
        axes.plot(ends, ends, "--", color=NEUTRAL, linewidth=1, label="perfect")
        axes.vlines(
            actual, [b.p10 for b in bins], [b.p90 for b in bins], color=MODEL, alpha=0.3, linewidth=7,
            label="80% of predictions",
        )  # fmt: skip
        axes.plot(actual, [b.mean for b in bins], "o", color=MODEL, label="mean")
        axes.set(xlabel="actual rating", ylabel="predicted rating")

    return Plot(
        "Predicted against actual",
        "Dots on the dashed line would be perfect; bars reach from the 10th to the 90th percentile. Where a model has "
        "few ratings to learn from it predicts close to the mean: low ratings too high, high ratings too low.",
        "Mean prediction, 10th and 90th percentile for each actual rating",
        _svg(draw),
        ("actual", "ratings", "mean", "10th percentile", "90th", "RMSE", f"{BIASES}: mean", "RMSE"),
        tuple(
            (
                span(b.from_rating, b.to_rating),
                f"{b.rows:,}",
                *(f"{value:.2f}" for value in (b.mean, b.p10, b.p90, b.rmse, b.baseline_mean, b.baseline_rmse)),
            )
            for b in bins
        ),
    )


def _by_count(bins: Sequence[CountBin], title: str, group: str, first: str) -> Plot:
    def draw(axes: Axes) -> None:
        _label_bins(axes, bins, f"training ratings per {group}")
        x = range(len(bins))
        axes.plot(x, [b.baseline_rmse for b in bins], "s--", color=BASELINE, label=BIASES)
        axes.plot(x, [b.rmse for b in bins], "o-", color=MODEL, label="model")
        axes.set_ylabel("RMSE")

    return Plot(
        title,
        f"Each point is about a tenth of the {group}s in the test part, the {first} on the left. The gap between the "
        "lines is what the factors add to the biases.",
        f"Line chart of the RMSE of the model and of {BIASES} per decile of {group}s by number of training ratings",
        _svg(draw),
        ("training ratings", "test ratings", "model", BIASES),
        tuple(
            (span(b.from_ratings, b.to_ratings), f"{b.rows:,}", f"{b.rmse:.4f}", f"{b.baseline_rmse:.4f}") for b in bins
        ),
    )


def _calibration(model: Sequence[CalibrationBin], baseline: Sequence[CalibrationBin]) -> Plot:
    series = ((BIASES, baseline, "s--", BASELINE), ("model", model, "o-", MODEL))

    def draw(axes: Axes) -> None:
        means = [mean for _, bins, _, _ in series for b in bins for mean in (b.predicted, b.actual)]
        ends = min(means), max(means)
        axes.plot(ends, ends, "--", color=NEUTRAL, linewidth=1, label="perfect")
        for label, bins, line, colour in series:
            axes.plot([b.predicted for b in bins], [b.actual for b in bins], line, color=colour, label=label)
        axes.set(xlabel="mean predicted rating", ylabel="mean actual rating")

    return Plot(
        "Calibration",
        "Each point is a tenth of the test ratings, in order of their predictions. Below the dashed line predictions "
        "are too high, above it too low.",
        f"Line chart of mean actual against mean predicted rating per decile of predictions, model and {BIASES}",
        _svg(draw),
        ("by", "predicted", "test ratings", "mean predicted", "mean actual"),
        tuple(
            (
                label,
                span(round(b.from_predicted, 2), round(b.to_predicted, 2)),
                f"{b.rows:,}",
                f"{b.predicted:.3f}",
                f"{b.actual:.3f}",
            )
            for label, bins, _, _ in reversed(series)
            for b in bins
        ),
    )


def _distribution(histogram: Distribution) -> Plot:
    total = sum(histogram.actual)

    def draw(axes: Axes) -> None:
        def stairs(counts: Sequence[int], label: str, **style: Any) -> None:
            axes.stairs([count / total for count in counts], histogram.edges, label=label, linewidth=2, **style)

        stairs(histogram.actual, "actual", color=NEUTRAL, alpha=0.45, fill=True)
        stairs(histogram.baseline, BIASES, color=BASELINE, linestyle="--")
        stairs(histogram.predicted, "model", color=MODEL)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set(xlabel="rating", ylabel="share of the test ratings", ylim=(0, None))

    return Plot(
        "Distribution of ratings",
        "Predictions are expected values, so they vary less than ratings do; the better the model, the closer its line "
        "is to the grey area.",
        "Histogram of actual and predicted ratings in the test part",
        _svg(draw),
        ("rating", "actual", "model", BIASES),
        tuple(
            (span(round(low, 3), round(high, 3)), *(f"{count:,}" for count in counts))
            for low, high, *counts in zip(
                histogram.edges[:-1],
                histogram.edges[1:],
                histogram.actual,
                histogram.predicted,
                histogram.baseline,
                strict=True,
            )
        ),
    )


def _exposure(evaluation: Evaluation) -> Plot:
    bins, rows_are = evaluation.exposure, evaluation.rows_are
    # By movie bias where there are ratings.
    shares = [("popularity", [b.popularity for b in bins])]
    if biases := [b.user_movie_bias for b in bins if b.user_movie_bias is not None]:
        shares.insert(0, (BIASES, biases))

    def draw(axes: Axes) -> None:
        _label_bins(axes, bins, f"training {rows_are} per movie")
        series = (
            ([b.ratings for b in bins], f"training {rows_are}", NEUTRAL),
            (shares[0][1], shares[0][0], BASELINE),
            ([b.model for b in bins], "model", MODEL),
        )
        for i, (share, label, colour) in enumerate(series):
            axes.bar([x + (i - 1) * 0.27 for x in range(len(bins))], share, 0.27, color=colour, label=label)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylabel("share")

    return Plot(
        "Exposure by movie popularity",
        f"Each group is about a tenth of the movies, those with the fewest {rows_are} on the left: its share of the "
        f"training {rows_are}, and of the recommendations in all lists of {evaluation.ranking.k}. Where blue is above "
        "grey, the model recommends these movies more often than people choose them.",
        f"Bar chart of the share of {rows_are} and of recommendations per decile of movies by training {rows_are}",
        _svg(draw),
        (f"training {rows_are}", "movies", f"share of {rows_are}", "model", *(name for name, _ in shares)),
        tuple(
            (
                span(b.from_ratings, b.to_ratings),
                f"{b.movies:,}",
                *(f"{share:.1%}" for share in (b.ratings, b.model, *(values[i] for _, values in shares))),
            )
            for i, b in enumerate(bins)
        ),
    )


def span(first: float, last: float) -> str:
    """``4–17``, or ``4`` when both are 4."""
    ends = [f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (first, last)]
    return ends[0] if first == last else "–".join(ends)


def _text(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def _label_bins(axes: Axes, bins: Sequence[CountBin] | Sequence[ExposureBin], label: str) -> None:
    """Labels x = 0, 1, … with the bins' ranges of training ratings."""
    labels = [span(b.from_ratings, b.to_ratings) for b in bins]
    axes.set_xticks(range(len(bins)), labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="x")


def _svg(draw: Callable[[Axes], None]) -> str:
    """The plot as a data URI. As an image, unlike inline, an SVG can run no script and fetch nothing."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(5.2, 3.7), layout="constrained")
        draw(figure.add_subplot())
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2, handletextpad=0.5)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(_with_dark(svg.getvalue()).encode()).decode()


def _with_dark(svg: str) -> str:
    """``svg`` with colours for a dark colour scheme."""
    light, dark = (
        ";".join(f"--c{i}:{colour}" for i, colour in enumerate(colours)) for colours in (DARK.keys(), DARK.values())
    )
    for i, colour in enumerate(DARK):
        svg = svg.replace(colour, f"var(--c{i})")
    rules = f"<style>svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    return svg.replace("<defs>", f"{rules}<defs>", 1)
