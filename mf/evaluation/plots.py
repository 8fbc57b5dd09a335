"""The plots of the report, each with a sentence that says how to read it and its figures as a table."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mf.evaluation.evaluate import CalibrationBin, CountBin, Distribution, Evaluation, ExposureBin, RatingBin

# One epoch (or sweep): "epoch", "train_rmse", "validation_rmse" (None without a validation part) and "seconds".
Epoch = Mapping[str, float | None]

MODEL, BASELINE, NEUTRAL, INK, GRID = "#0b5cad", "#c2570c", "#7d8894", "#1b2530", "#dfe3e8"
DARK = {MODEL: "#6cb2ff", BASELINE: "#ff9d57", NEUTRAL: "#8a94a0", INK: "#e4e8ec", GRID: "#333d48"}
# On top of matplotlib's own defaults, so that nobody's matplotlibrc changes a report. The salt makes ids repeatable.
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
BIASES = "user + movie biases"


@dataclass(frozen=True)
class Plot:
    """A drawing and what stands around it; all of it text, never markup."""

    title: str
    note: str  # how to read it
    alt: str  # what it shows, for those who cannot see it
    image: str  # a data URI
    columns: tuple[str, ...]  # of the table of its figures
    rows: tuple[tuple[str, ...], ...]


def plots(evaluation: Evaluation, history: Sequence[Epoch]) -> list[Plot]:
    """All plots there is something to draw for."""
    drawn = [
        _by_rating(evaluation.by_rating),
        _by_count(evaluation.by_activity, "user", "activity", "least active"),
        _by_count(evaluation.by_popularity, "movie", "popularity", "least rated"),
        _calibration(evaluation.calibration, evaluation.baseline_calibration),
        _distribution(evaluation.distribution),
    ]
    if history:
        drawn.insert(0, _training(history))
    if evaluation.exposure:
        drawn.append(_exposure(evaluation.exposure, evaluation.ranking.k))
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
        "A validation error that rises while the training error falls means that the model is learning its ratings by "
        "heart.",
        f"Line chart of the RMSE after each of {len(history)} epochs",
        _svg(draw),
        ("epoch", "training RMSE", "validation RMSE", "seconds"),
        tuple(
            (
                f"{epoch['epoch']:.0f}",
                _number(epoch["train_rmse"], 4),
                _number(epoch["validation_rmse"], 4),
                _number(epoch["seconds"], 1),
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
            label="middle 80% of predictions",
        )  # fmt: skip
        axes.plot(actual, [b.mean for b in bins], "o", color=MODEL, label="mean")
        axes.set(xlabel="actual rating", ylabel="predicted rating")

    return Plot(
        "Predicted against actual",
        "The nearer the dots are to the dashed line, the better. Where the model knows little its predictions stay in "
        "the middle: low ratings are predicted too high, high ones too low.",
        "For each actual rating, the mean prediction and the range of the middle 80% of predictions",
        _svg(draw),
        ("actual", "ratings", "mean", "10th percentile", "90th", "RMSE", f"{BIASES}: mean", "RMSE"),
        tuple(
            (
                span(b.from_rating, b.to_rating),
                f"{b.rows:,}",
                *(f"{figure:.2f}" for figure in (b.mean, b.p10, b.p90, b.rmse, b.baseline_mean, b.baseline_rmse)),
            )
            for b in bins
        ),
    )


def _by_count(bins: Sequence[CountBin], whose: str, what: str, first: str) -> Plot:
    def draw(axes: Axes) -> None:
        _at_bins(axes, bins, f"ratings that the {whose} has in training")
        places = range(len(bins))
        axes.plot(places, [b.baseline_rmse for b in bins], "s--", color=BASELINE, label=BIASES)
        axes.plot(places, [b.rmse for b in bins], "o-", color=MODEL, label="model")
        axes.set_ylabel("RMSE")

    return Plot(
        f"Error by {whose} {what}",
        f"Each point is about a tenth of the test part's {whose}s, the {first} first. The gap between the lines is "
        "what the factors add to the biases.",
        f"Line chart of the RMSE of the model and of {BIASES} for each tenth of the {whose}s, the {first} first",
        _svg(draw),
        ("training ratings", "test ratings", "model", BIASES),
        tuple(
            (span(b.from_ratings, b.to_ratings), f"{b.rows:,}", f"{b.rmse:.4f}", f"{b.baseline_rmse:.4f}") for b in bins
        ),
    )


def _calibration(model: Sequence[CalibrationBin], baseline: Sequence[CalibrationBin]) -> Plot:
    series = ((BIASES, baseline, "s--", BASELINE), ("model", model, "o-", MODEL))

    def draw(axes: Axes) -> None:
        every = [figure for _, bins, _, _ in series for b in bins for figure in (b.predicted, b.actual)]
        ends = min(every), max(every)
        axes.plot(ends, ends, "--", color=NEUTRAL, linewidth=1, label="perfect")
        for label, bins, line, colour in series:
            axes.plot([b.predicted for b in bins], [b.actual for b in bins], line, color=colour, label=label)
        axes.set(xlabel="mean predicted rating", ylabel="mean actual rating")

    return Plot(
        "Calibration",
        "Each point is a tenth of the test ratings, those with the lowest predictions first. Below the dashed line the "
        "model promises more than users find, above it less.",
        "The mean actual rating for each tenth of the predictions, of the model and of user + movie biases",
        _svg(draw),
        ("", "predicted", "test ratings", "mean predicted", "mean actual"),
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


def _distribution(found: Distribution) -> Plot:
    total = sum(found.actual)

    def draw(axes: Axes) -> None:
        def steps(counts: Sequence[int], label: str, **look: Any) -> None:
            axes.stairs([count / total for count in counts], found.edges, label=label, linewidth=2, **look)

        steps(found.actual, "actual", color=NEUTRAL, alpha=0.45, fill=True)
        steps(found.baseline, BIASES, color=BASELINE, linestyle="--")
        steps(found.predicted, "model", color=MODEL)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set(xlabel="rating", ylabel="share of the test ratings", ylim=(0, None))

    return Plot(
        "Distribution of ratings",
        "Predictions are means, so that they spread less than ratings do; the more a model knows, the nearer its line "
        "comes to the grey area.",
        "How often each rating is given in the test part, and how often it is predicted",
        _svg(draw),
        ("rating", "actual", "model", BIASES),
        tuple(
            (span(round(low, 3), round(high, 3)), *(f"{count:,}" for count in counts))
            for low, high, *counts in zip(
                found.edges[:-1], found.edges[1:], found.actual, found.predicted, found.baseline, strict=True
            )
        ),
    )


def _exposure(bins: Sequence[ExposureBin], k: int) -> Plot:
    def draw(axes: Axes) -> None:
        _at_bins(axes, bins, "ratings that the movie has in training")
        series = (
            ([b.ratings for b in bins], "ratings", NEUTRAL),
            ([b.user_movie_bias for b in bins], BIASES, BASELINE),
            ([b.model for b in bins], "model", MODEL),
        )
        for i, (shares, label, colour) in enumerate(series):
            axes.bar([place + (i - 1) * 0.27 for place in range(len(bins))], shares, 0.27, color=colour, label=label)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylabel("share")

    return Plot(
        "Popularity against recommendation",
        f"Movies by how often they are rated, each group about a tenth of the catalogue: their share of the training "
        f"ratings, and of all places in the users' lists of {k}. Where blue is above grey, the model recommends these "
        "movies more than they are watched.",
        "Bar chart of the share of ratings and of recommendations, from the least to the most rated movies",
        _svg(draw),
        ("training ratings", "movies", "of the ratings", "model", BIASES, "popularity"),
        tuple(
            (
                span(b.from_ratings, b.to_ratings),
                f"{b.movies:,}",
                *(f"{share:.1%}" for share in (b.ratings, b.model, b.user_movie_bias, b.popularity)),
            )
            for b in bins
        ),
    )


def span(first: float, last: float) -> str:
    """``4–17``, or ``4`` when both are 4."""
    ends = [f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (first, last)]
    return ends[0] if first == last else "–".join(ends)


def _number(figure: float | None, decimals: int) -> str:
    return "–" if figure is None else f"{figure:.{decimals}f}"


def _at_bins(axes: Axes, bins: Sequence[CountBin] | Sequence[ExposureBin], label: str) -> None:
    """Names the places 0, 1, … of the x axis by the numbers of ratings in the bins."""
    labels = [span(b.from_ratings, b.to_ratings) for b in bins]
    axes.set_xticks(range(len(bins)), labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="x")


def _svg(draw: Callable[[Axes], None]) -> str:
    """A data URI of the figure that ``draw`` fills. As an image, unlike inline, an SVG can neither run nor fetch."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(5.2, 3.7), layout="constrained")
        draw(figure.add_subplot())
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2, handletextpad=0.5)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(_with_dark(svg.getvalue()).encode()).decode()


def _with_dark(svg: str) -> str:
    """``svg`` with colours of its own for a reader whose screen is dark."""
    light, dark = (
        ";".join(f"--c{i}:{colour}" for i, colour in enumerate(colours)) for colours in (DARK.keys(), DARK.values())
    )
    for i, colour in enumerate(DARK):
        svg = svg.replace(colour, f"var(--c{i})")
    rules = f"<style>svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    return svg.replace("<defs>", f"{rules}<defs>", 1)
