import base64
import json
import math
import re
import resource
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
import pytest

from mf.evaluation import report
from mf.evaluation.accuracy import CalibrationBin, ColdStart, CountBin, Distribution, RatingBin
from mf.evaluation.bootstrap import Interval
from mf.evaluation.champion import Comparison, PairedFigure, PairedNdcg, PairedRmse
from mf.evaluation.evaluate import Evaluation
from mf.evaluation.examples import Example, Movie
from mf.evaluation.gate import Check, Decision
from mf.evaluation.metrics import Scores
from mf.evaluation.ranking import ExposureBin, Ranking
from mf.evaluation.report import Report, write_report


def errors(rmse: float, mae: float, *intervals: Interval) -> Scores:
    return Scores({"rmse": rmse, "mae": mae}, dict(zip(("rmse", "mae"), intervals, strict=False)))


def lists(ndcg: float, recall: float, map: float, hit_rate: float, coverage: float, interval: Interval) -> Scores:
    values = {"ndcg": ndcg, "recall": recall, "map": map, "hit_rate": hit_rate, "coverage": coverage}
    return Scores(values, {"ndcg": interval})


EVALUATION = Evaluation(
    train_rows=90_753,
    test_rows=10_083,
    test_users=597,
    model=errors(0.8412, 0.6411, Interval(0.8151, 0.8702), Interval(0.6204, 0.6633)),
    global_mean=errors(1.0498, 0.8342, Interval(1.0165, 1.0861), Interval(0.8052, 0.8662)),
    user_movie_bias=errors(0.8683, 0.6635, Interval(0.8419, 0.8967), Interval(0.6416, 0.6871)),
    rmse_difference=Interval(-0.0317, -0.0170),
    unseen_users=ColdStart(0, 0, None),
    unseen_movies=ColdStart(375, 397, 1.0127, 1.0128, 1.1512),
    by_activity=(CountBin(0, 0, 83, 0.9611, 0.9622), CountBin(12, 2418, 10_000, 0.8401, 0.8677)),
    by_popularity=(CountBin(0, 0, 397, 1.0127, 1.0128), CountBin(1, 263, 9_686, 0.8333, 0.8616)),
    by_rating=(
        RatingBin(0.5, 0.5, 83, 2.78, 1.95, 3.65, 2.35, 2.81, 2.40),
        RatingBin(4, 4.5, 10_000, 3.87, 3.33, 4.37, 0.58, 3.75, 0.59),
    ),
    calibration=(CalibrationBin(0.6, 3.4, 5_000, 2.9, 2.85), CalibrationBin(3.4, 5.0, 5_083, 3.9, 3.92)),
    baseline_calibration=(CalibrationBin(1.1, 3.4, 5_000, 3.0, 2.9), CalibrationBin(3.4, 5.0, 5_083, 3.8, 3.9)),
    distribution=Distribution((0.5, 2.5, 5.0), (1_900, 8_183), (900, 9_183), (700, 9_383)),
    ranking=Ranking(
        k=10,
        relevance_threshold=3.5,
        movies=8_953,
        left_out="training and validation",
        users=556,
        users_without=41,
        relevant=4_869,
        out_of_reach=157,
        model=lists(0.0712, 0.0676, 0.0349, 0.3237, 0.0688, Interval(0.0604, 0.0827)),
        user_movie_bias=lists(0.0288, 0.0228, 0.0162, 0.1241, 0.0027, Interval(0.0205, 0.0371)),
        popularity=lists(0.1235, 0.1182, 0.0671, 0.4550, 0.0089, Interval(0.1086, 0.1383)),
    ),
    ranking_unseen_users=Ranking(
        10, 3.5, 8_953, "training and validation", 0, 0, 0, 0, reason="no test user is unseen in training"
    ),
    exposure=(ExposureBin(1, 23, 8_058, 0.42, 0.16, 0.75, 0), ExposureBin(24, 263, 895, 0.58, 0.84, 0.25, 1)),
)
HISTORY: list[Mapping[str, float | None]] = [
    {"epoch": 1, "train_rmse": 0.9512, "validation_rmse": 0.9333, "seconds": 1.25},
    {"epoch": 2, "train_rmse": 0.8002, "validation_rmse": None, "seconds": 1.5},
]
FACTS = {"Source": "ratings.csv", "Solver": "adam"}
PASSED = (
    Check("biases", 0.8412, 0.8683, True, "RMSE 0.8412 is below that of user + movie biases, 0.8683"),
    Check("champion", None, 0.01, True, "there is no published run to compare with"),
)
FAILED = Check("champion", 0.0212, 0.01, False, "RMSE 0.8412 against 0.8200 of the published run: +0.0212")
ACCEPTED = Decision(publish=True, forced=False, reasons=(), checks=PASSED)
REFUSED = Decision(publish=False, forced=False, reasons=(FAILED.text,), checks=(PASSED[0], FAILED))
COMPARISON = Comparison(
    "run-7",
    "2026-11-20T03:15:00+00:00",
    "clean: these ratings are newer",
    PairedRmse(9_000, 0.8412, 0.82, 0.0212, None, True),
)
EXAMPLES = (
    Example(
        "ann",
        21,
        best=(Movie(50, "The Silent River (1999)", 5.0, 4.62),),
        recommended=(Movie(7, None, None, 4.871), Movie(8, "Léon", 4.5, 4.4)),
    ),
)


def written(
    tmp_path: Path,
    evaluation: Evaluation = EVALUATION,
    history: Sequence[Mapping[str, float | None]] = HISTORY,
    facts: Mapping[str, str] = FACTS,
    decision: Decision = ACCEPTED,
    comparison: Comparison | None = None,
    examples: Sequence[Example] = EXAMPLES,
    parameters: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    when: str = "",
    sweep: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    described = Report(evaluation, decision, comparison, examples, history, facts, parameters, when, sweep)
    write_report(described, tmp_path / "report.html", tmp_path / "evaluation.json")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the plots, which take most of the time."""
    monkeypatch.setattr(report, "plots", lambda *_: [])


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The whole report."""
    return written(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(html: str) -> "Page":
    return Page(html)


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    def words(self) -> str:
        return " ".join(self.text.split())

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == "img"]


def test_the_headline_says_by_how_much_the_model_is_better() -> None:
    expected = "RMSE 0.8412 on 10,083 test ratings: 0.0271 better than user + movie biases (0.8683)"
    assert EVALUATION.headline() == expected


def test_the_headline_says_that_the_model_is_worse() -> None:
    assert "0.0317 worse than user + movie biases (0.8683)" in replace(EVALUATION, model=errors(0.9, 0.7)).headline()


def test_a_difference_below_the_shown_digits_is_no_better() -> None:
    assert "0.8683 on 10,083 test ratings: no better than" in replace(EVALUATION, model=errors(0.86828, 0.7)).headline()


def test_without_an_rmse_the_headline_compares_the_lists_with_popularity() -> None:
    nothing = Scores()
    unrated = replace(EVALUATION, model=nothing, global_mean=nothing, user_movie_bias=nothing, rmse_difference=None)
    assert unrated.headline() == "NDCG@10 0.0712 for 556 users: 0.0523 worse than popularity (0.1235)"
    assert unrated.log_line().startswith("NDCG@10 0.0712 (popularity 0.1235), recall@10 ")
    nobody = replace(
        EVALUATION.ranking, model=None, user_movie_bias=None, popularity=None, reason="nobody liked a movie"
    )
    assert replace(unrated, ranking=nobody).headline() == "no metric could be computed: nobody liked a movie"


@pytest.mark.usefixtures("undrawn")
def test_the_report_shows_a_dash_where_a_metric_is_absent(tmp_path: Path) -> None:
    nothing = Scores()
    unrated = replace(EVALUATION, model=nothing, global_mean=nothing, user_movie_bias=nothing, rmse_difference=None)
    text = Page(written(tmp_path, unrated)).words()
    assert "This model – – User + movie biases – – Global mean – –" in text
    assert "NDCG@10 0.0712" in text


def test_the_report_shows_every_metric_beside_the_baselines(page: Page) -> None:
    text = page.words()
    assert "This model 0.8412 0.815–0.870 0.6411 0.620–0.663 User + movie biases 0.8683 0.842–0.897 0.6635" in text
    assert "Global mean 1.0498 1.016–1.086 0.8342" in text
    assert "10,083 test ratings by 597 users" in text
    assert "minus that of user + movie biases: -0.0317 to -0.0170." in text
    assert "NDCG@10 0.0712 0.060–0.083 0.1235 0.109–0.138 0.0288 0.021–0.037 recall@10 0.0676 0.1182 0.0228" in text
    assert "MAP@10 0.0349 0.0671 0.0162 hit rate@10 0.3237 0.4550 0.1241 coverage 0.0688 0.0089 0.0027" in text
    assert "Recommending the most rated movies to everyone finds more" in text
    assert "New users 0 0 – – – New movies 375 397 1.0127 1.0128 1.1512" in text
    assert "Source ratings.csv Solver adam" in text


def test_every_plot_has_its_numbers_as_a_table(page: Page) -> None:
    text = page.words()
    assert "1 0.9512 0.9333 1.2 2 0.8002 – 1.5" in text
    assert "0.5 83 2.78 1.95 3.65 2.35 2.81 2.40 4–4.5 10,000 3.87 3.33 4.37" in text
    assert "0 83 0.9611 0.9622 12–2,418 10,000 0.8401 0.8677" in text
    assert "0 397 1.0127 1.0128 1–263 9,686 0.8333 0.8616" in text
    assert "model 0.6–3.4 5,000 2.900 2.850 model 3.4–5 5,083 3.900 3.920 user + movie biases 1.1–3.4" in text
    assert "0.5–2.5 1,900 900 700 2.5–5 8,183 9,183 9,383" in text
    assert "1–23 8,058 42.0% 16.0% 75.0% 0.0% 24–263 895" in text


def test_the_verdict_comes_first_then_each_check_of_the_gate(page: Page) -> None:
    text = page.words()
    said = (
        f"Accepted for publication {EVALUATION.headline()}. All 2 checks of the gate passed. Key figures The gate "
        "Predicted ratings Recommendation lists Cold start Plots Example users The run Key figures metric this model "
        "simple baseline NDCG@10 "
    )
    assert said in text
    checks = f"The gate passed {PASSED[0].text} no figure {PASSED[1].text} Predicted ratings"
    assert text.index(said) < text.index(checks)
    assert "published run difference" not in text


def test_key_figures_have_the_lists_first_and_the_published_run_beside_them(tmp_path: Path) -> None:
    lists = PairedNdcg(10, 500, 0.0712, 0.0612, 0.01, Interval(0.0012, 0.0188), True, "ranking model")
    compared = replace(COMPARISON, lists=lists)
    text = Page(written(tmp_path, comparison=compared)).words()
    table = text[text.index("Key figures metric this model published run difference simple baseline") :]
    figures = [
        "0.0712 0.060–0.083 0.0612 +0.0100 +0.0012 to +0.0188 better 0.1235 popularity",
        "hit rate@10 share of users with a hit in their list; higher is better 0.3237 – – 0.4550 popularity",
        "RMSE typical error of a predicted rating, in rating units; lower is better 0.8412 0.815–0.870 0.8200 +0.0212",
        "Run run-7 was published on 2026-11-20. Difference: this model minus the published run",
    ]
    places = [table.index(figure) for figure in figures]
    assert places == sorted(places)
    coverage, hits = PairedFigure(0.3, 0.21, 0.09), PairedFigure(0.3237, 0.3, 0.0237, Interval(0.01, 0.03))
    whole = replace(lists, others={"hit_rate": hits, "coverage": coverage})
    stars = replace(COMPARISON.figures, others={"mae": PairedFigure(0.6, 0.65432, -0.05432)})
    text = Page(written(tmp_path, comparison=replace(COMPARISON, lists=whole, figures=stars))).words()
    assert "higher is better 0.3237 0.3000 +0.0237 +0.0100 to +0.0300 better 0.4550 popularity" in text
    assert re.search(r"Published run, on 9,000 ratings 0\.8200 0\.6543", text)
    assert re.search(r"Recommendation lists metric \S.* published run ", text)
    assert "coverage 0.2100" in re.sub(r"(coverage) \S+ (?=0\.2100)", r"\1 ", text)
    worse = replace(COMPARISON.figures, interval=Interval(0.01, 0.03))  # of an error
    chance = replace(lists, interval=Interval(-0.01, 0.03))
    text = Page(written(tmp_path, comparison=replace(COMPARISON, figures=worse, lists=chance))).words()
    assert "+0.0212 +0.0100 to +0.0300 worse" in text
    assert "+0.0100 -0.0100 to +0.0300 within chance" in text


@pytest.mark.usefixtures("undrawn")
def test_a_first_run_and_one_of_another_source_say_why_nothing_stands_beside(tmp_path: Path) -> None:
    assert "There is no published run to compare with: this is the first, or" in Page(written(tmp_path)).words()
    note = "not compared: this model was trained on a.csv, the published run on b.csv"
    text = Page(written(tmp_path, comparison=Comparison("run-7", "2026-11-20T03:15:00+00:00", note))).words()
    assert f"Run run-7, published on 2026-11-20, is {note}." in text
    assert "this model simple baseline" in text


@pytest.mark.usefixtures("undrawn")
def test_every_entry_of_the_contents_leads_to_a_section(tmp_path: Path) -> None:
    parameters = {"Gate": {"max_rmse": 0.9, "force_publish": False, "note": ""}}
    tried = {"number": 1, "value": 0.8412, "seconds": 2.0, "solver": "vb", "options": {"factors": 16}, "failure": ""}
    sweep = {"objective": "rmse", "best": 1, "trials": 1, "failed": 0, "solver": "vb", "tried": [tried]}
    page = Page(written(tmp_path, parameters=parameters, sweep=sweep))
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    ids = [f"#{attributes['id']}" for tag, attributes in page.elements if "id" in attributes]
    assert links == ids
    assert len(ids) == 9
    assert "Gate max_rmse 0.9 force_publish no note –" in page.words()
    assert json.loads((tmp_path / "evaluation.json").read_text())["parameters"]["Gate"]["max_rmse"] == 0.9


@pytest.mark.usefixtures("undrawn")
def test_a_refusal_starts_with_its_reasons(tmp_path: Path) -> None:
    text = Page(written(tmp_path, decision=REFUSED, comparison=COMPARISON)).words()
    reason = f"Evaluation of a recommendation model Refused: not published {FAILED.text}. The published run run-7 stays"
    assert reason in text
    assert f"passed {PASSED[0].text} failed {FAILED.text}" in text
    assert "Published run, on 9,000 ratings 0.8200 – User + movie biases" in text
    assert "run-7 of 2026-11-20, compared on 9,000 of these ratings; this model's RMSE on them is 0.8412." in text
    assert "The comparison is clean: these ratings are newer." in text


@pytest.mark.usefixtures("undrawn")
def test_a_first_run_that_is_refused_leaves_nothing_published(tmp_path: Path) -> None:
    text = Page(written(tmp_path, decision=REFUSED)).words()
    assert f"Refused: not published {FAILED.text}. There is no published run. Key figures" in text


@pytest.mark.usefixtures("undrawn")
def test_a_forced_publication_names_the_failed_check(tmp_path: Path) -> None:
    text = Page(written(tmp_path, decision=replace(REFUSED, publish=True, forced=True))).words()
    assert (
        f"Accepted by force_publish {FAILED.text}. Without force_publish the gate would have refused this model."
        in text
    )


@pytest.mark.usefixtures("undrawn")
def test_a_published_run_that_is_not_comparable_has_no_row(tmp_path: Path) -> None:
    text = Page(written(tmp_path, comparison=replace(COMPARISON, figures=None))).words()
    assert "Published run" not in text


@pytest.mark.usefixtures("undrawn")
def test_example_users_have_their_best_rated_and_their_recommended_movies(tmp_path: Path) -> None:
    text = Page(written(tmp_path)).words()
    assert "User ann, 21 ratings highest rated rated predicted The Silent River (1999) 5 4.62" in text
    assert "recommended rated predicted movie 7 – 4.87 Léon 4.5 4.40" in text
    assert "Example users" not in Page(written(tmp_path, examples=())).words()


def test_without_a_training_curve_and_without_lists_their_parts_are_left_out(tmp_path: Path) -> None:
    nobody = replace(
        EVALUATION.ranking, model=None, user_movie_bias=None, popularity=None, reason="nobody liked a movie"
    )
    page = Page(written(tmp_path, replace(EVALUATION, ranking=nobody, exposure=()), history=[]))
    assert "No figures: nobody liked a movie." in page.words()
    assert "epoch" not in page.text
    assert len(page.images()) == 5


@pytest.mark.usefixtures("undrawn")
def test_new_users_with_a_relevant_movie_have_an_ndcg_of_their_own(tmp_path: Path) -> None:
    text = Page(written(tmp_path, replace(EVALUATION, ranking_unseen_users=EVALUATION.ranking))).words()
    assert "NDCG@10 of the 556 new users: 0.0712, by popularity 0.1235." in text


@pytest.mark.usefixtures("undrawn")
def test_without_bootstrap_there_are_no_intervals(tmp_path: Path) -> None:
    scores = {name: errors(1.0, 0.5) for name in ("model", "global_mean", "user_movie_bias")}
    text = Page(written(tmp_path, replace(EVALUATION, **scores, rmse_difference=None))).words()
    assert "This model 1.0000 0.5000 User + movie biases 1.0000 0.5000" in text
    assert "intervals" not in text
    assert "minus that of" not in text


def test_each_plot_is_an_svg_with_an_alternative_text(page: Page) -> None:
    images = page.images()
    assert len(images) == 7
    for image in images:
        kind, data = str(image["src"]).split(",")
        assert kind == "data:image/svg+xml;base64"
        assert b"<svg" in base64.b64decode(data)
        assert len(str(image["alt"])) > 30


def test_the_report_needs_no_network_and_no_javascript(html: str) -> None:
    assert not re.search(r"https?:|url\(|@import|src=\"(?!data:)", html)
    elements = Page(html).elements
    assert not {tag for tag, _ in elements} & {"script", "link", "iframe", "object", "embed"}
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]


@pytest.mark.usefixtures("undrawn")
def test_names_from_outside_cannot_become_markup(tmp_path: Path) -> None:
    hostile = '"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}'
    movies = (Movie(hostile, None, 5.0, 4.6), Movie(1, hostile, 5.0, 4.6))
    attacked = Page(
        written(
            tmp_path,
            facts={hostile: hostile},
            parameters={hostile: {hostile: hostile, "lists": [hostile[:5]]}},
            when=hostile,
            decision=Decision(False, False, (hostile,), (Check("champion", 1, 1, False, hostile),)),
            comparison=replace(COMPARISON, run_id=hostile, note=hostile),
            examples=[Example(hostile, 3, movies, movies)],
        )
    )
    assert attacked.text.count(hostile) == 17
    assert {tag for tag, _ in attacked.elements} == {
        tag for tag, _ in Page(written(tmp_path, comparison=COMPARISON, parameters={"a": {"b": "c"}})).elements
    }


@pytest.mark.usefixtures("undrawn")
def test_the_json_has_every_number_of_the_page(tmp_path: Path) -> None:
    text = Page(written(tmp_path, decision=REFUSED, comparison=COMPARISON)).words()
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["decision"]["reasons"] == [FAILED.text]
    assert found["champion"]["figures"]["champion_rmse"] == 0.82
    assert found["examples"][0]["recommended"][1] == {"movie_id": 8, "title": "Léon", "actual": 4.5, "predicted": 4.4}
    assert (found["training"], found["facts"]) == (HISTORY, FACTS)
    figures = {f"{figure:.4f}" for figure in numbers(found)}
    shown = re.findall(r"(?<![\d.])\d\.\d{4}(?!\d)", text)
    assert len(shown) > 30
    assert set(shown) - figures == {"0.0271"}  # the gain in the page's title


@pytest.mark.usefixtures("undrawn")
def test_a_metric_that_is_not_finite_is_null_in_json(tmp_path: Path) -> None:
    written(tmp_path, replace(EVALUATION, model=errors(math.nan, math.inf)))
    assert json.loads((tmp_path / "evaluation.json").read_text())["model"]["rmse"] is None


def numbers(value: Any) -> list[float]:
    """Every number within ``value``, without its sign."""
    if isinstance(value, dict | list):
        return [n for part in (value.values() if isinstance(value, dict) else value) for n in numbers(part)]
    return [abs(value)] if isinstance(value, int | float) else []


@pytest.mark.usefixtures("undrawn")
def test_a_long_title_is_cut(tmp_path: Path) -> None:
    long = Movie(1, "x" * 100_000, 5.0, 4.6)
    assert "x" * 81 not in written(tmp_path, examples=[Example("ann", 1, (long,), ())])


@pytest.mark.usefixtures("undrawn")
def test_a_file_name_that_is_not_utf_8_is_escaped(tmp_path: Path) -> None:
    assert "ratings&#56575;.csv" in written(tmp_path, facts={"Source": "ratings\udcff.csv"})


def test_the_same_input_gives_the_same_bytes_whatever_the_user_set_in_matplotlib(tmp_path: Path, html: str) -> None:
    with matplotlib.rc_context({"axes.labelcolor": "red", "svg.hashsalt": "other"}):
        before = dict(matplotlib.rcParams)
        assert written(tmp_path) == html
        assert dict(matplotlib.rcParams) == before
    dated = [image for image in Page(html).images() if b"dc:date" in base64.b64decode(str(image["src"]).split(",")[1])]
    assert dated == []


@pytest.mark.usefixtures("undrawn")
def test_a_full_disk_leaves_the_previous_report_and_no_temporary_file(tmp_path: Path) -> None:
    before = written(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            written(tmp_path, facts={"Source": "another.csv"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["evaluation.json", "report.html"]
