import base64
import re
import resource
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest

from mf.evaluation.evaluate import ActivityBin, Evaluation, RatingBin, Score, Unseen
from mf.evaluation.report import verdict, write_report

EVALUATION = Evaluation(
    train_rows=90_753,
    test_rows=10_083,
    model=Score(0.8412, 0.6411),
    global_mean=Score(1.0498, 0.8342),
    user_movie_bias=Score(0.8683, 0.6635),
    unseen_users=Unseen(0, 0, None),
    unseen_movies=Unseen(375, 397, 1.0127),
    by_activity=(ActivityBin(0, 0, 83, 0.9611, 0.9622), ActivityBin(12, 2418, 10_000, 0.8401, 0.8677)),
    by_rating=(RatingBin(0.5, 0.5, 83, 2.78, 1.95, 3.65), RatingBin(4, 4.5, 10_000, 3.87, 3.33, 4.37)),
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
