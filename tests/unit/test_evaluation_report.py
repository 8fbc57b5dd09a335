import base64
import re
import resource
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest

from mf.evaluation.evaluate import (
    CalibrationBin,
    CountBin,
    Distribution,
    Evaluation,
    ExposureBin,
    Interval,
    Ranking,
    RankingScore,
    RatingBin,
    Score,
    Unseen,
)
from mf.evaluation.report import verdict, write_report

EVALUATION = Evaluation(
    train_rows=90_753,
    test_rows=10_083,
    test_users=597,
    model=Score(0.8412, 0.6411, Interval(0.8151, 0.8702), Interval(0.6204, 0.6633)),
    global_mean=Score(1.0498, 0.8342, Interval(1.0165, 1.0861), Interval(0.8052, 0.8662)),
    user_movie_bias=Score(0.8683, 0.6635, Interval(0.8419, 0.8967), Interval(0.6416, 0.6871)),
    rmse_difference=Interval(-0.0317, -0.0170),
    unseen_users=Unseen(0, 0, None),
    unseen_movies=Unseen(375, 397, 1.0127, 1.0128, 1.1512),
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
        model=RankingScore(0.0712, 0.0676, 0.0349, 0.3237, 0.0688, Interval(0.0604, 0.0827)),
        user_movie_bias=RankingScore(0.0288, 0.0228, 0.0162, 0.1241, 0.0027, Interval(0.0205, 0.0371)),
        popularity=RankingScore(0.1235, 0.1182, 0.0671, 0.4550, 0.0089, Interval(0.1086, 0.1383)),
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


def written(
    tmp_path: Path,
    evaluation: Evaluation = EVALUATION,
    history: Sequence[Mapping[str, float | None]] = HISTORY,
    facts: Mapping[str, str] = FACTS,
) -> str:
    write_report(evaluation, history, facts, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


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

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == "img"]


def test_the_verdict_says_by_how_much_the_model_is_better() -> None:
    expected = "RMSE 0.8412 on 10,083 test ratings: 0.0271 better than user + movie biases (0.8683)"
    assert verdict(EVALUATION) == expected


def test_the_verdict_says_plainly_that_the_model_is_worse() -> None:
    assert "0.0317 worse than user + movie biases (0.8683)" in verdict(replace(EVALUATION, model=Score(0.9, 0.7)))


def test_a_difference_that_the_figures_do_not_show_is_no_better() -> None:
    assert "0.8683 on 10,083 test ratings: no better than" in verdict(replace(EVALUATION, model=Score(0.86828, 0.7)))


def test_the_report_holds_the_figures_beside_the_baselines(tmp_path: Path) -> None:
    text = " ".join(Page(written(tmp_path)).text.split())
    assert text.index(verdict(EVALUATION)) < text.index("Error on the test part")
    assert "Model 0.8412 0.6411 User + movie biases 0.8683 0.6635 Global mean 1.0498 0.8342" in text
    assert "Trained on 90,753 ratings" in text
    assert "Users 0 0 – Movies 375 397 1.0127" in text
    assert "1 0.9512 0.9333 1.2 2 0.8002 – 1.5" in text
    assert "0.5 83 2.78 1.95 3.65 4–4.5 10,000 3.87 3.33 4.37" in text
    assert "0 83 0.9611 0.9622 12–2,418 10,000 0.8401 0.8677" in text
    assert "Source ratings.csv Solver adam" in text


def test_each_plot_is_an_svg_with_a_text_for_those_who_cannot_see_it(tmp_path: Path) -> None:
    images = Page(written(tmp_path)).images()
    assert len(images) == 3
    for image in images:
        kind, data = str(image["src"]).split(",")
        assert kind == "data:image/svg+xml;base64"
        assert b"<svg" in base64.b64decode(data)
        assert len(str(image["alt"])) > 30


def test_without_a_history_there_is_no_training_curve(tmp_path: Path) -> None:
    page = Page(written(tmp_path, history=[]))
    assert len(page.images()) == 2
    assert "epoch" not in page.text


def test_the_report_needs_no_network_and_no_javascript(tmp_path: Path) -> None:
    html = written(tmp_path)
    assert not re.search(r"https?:|url\(|@import|src=\"(?!data:)", html)
    elements = Page(html).elements
    assert not {tag for tag, _ in elements} & {"script", "link", "iframe", "object", "embed"}
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]


def test_names_from_outside_cannot_become_markup(tmp_path: Path) -> None:
    hostile = '"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}'
    plain, attacked = Page(written(tmp_path)), Page(written(tmp_path, facts={**FACTS, hostile: hostile}))
    assert attacked.text.count(hostile) == 2
    assert {tag for tag, _ in attacked.elements} == {tag for tag, _ in plain.elements}
    assert len(attacked.images()) == 3


def test_a_file_name_that_is_not_utf_8_does_not_stop_the_report(tmp_path: Path) -> None:
    assert "ratings&#56575;.csv" in written(tmp_path, facts={"Source": "ratings\udcff.csv"})


def test_the_same_input_gives_the_same_bytes_whatever_the_user_set_in_matplotlib(tmp_path: Path) -> None:
    first = written(tmp_path)
    with matplotlib.rc_context({"axes.labelcolor": "red", "svg.hashsalt": "other"}):
        assert written(tmp_path) == first
    dated = [image for image in Page(first).images() if b"dc:date" in base64.b64decode(str(image["src"]).split(",")[1])]
    assert dated == []


def test_matplotlib_is_left_as_it_was(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    written(tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_a_report_that_meets_a_full_disk_leaves_the_one_before_and_nothing_beside_it(tmp_path: Path) -> None:
    before = written(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            written(tmp_path, facts={"Source": "another.csv"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
