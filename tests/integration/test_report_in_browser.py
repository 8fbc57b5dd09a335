"""The report of a run on the sample in a real browser: opened from disk, and in a sandboxed frame as in a console."""

import io
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from browser import Seen, accessibility_faults, picture, watch
from PIL import Image
from playwright.sync_api import Browser, Frame, Page

from mf.evaluation.bootstrap import Interval
from mf.evaluation.champion import Comparison, PairedNdcg, PairedRmse
from mf.evaluation.config import EvaluateConfig, GateConfig
from mf.evaluation.evaluate import evaluate
from mf.evaluation.examples import examples
from mf.evaluation.gate import decide
from mf.evaluation.judge import judge
from mf.evaluation.plots import BASELINE, DARK, MODEL
from mf.evaluation.report import Report, write_report
from mf.ingest import ingest
from mf.model_directory import Header, TrainedModel
from mf.ranking import RankingConfig
from mf.ratings.config import IngestConfig, SplitConfig
from mf.ratings.schema import read_ratings
from mf.ratings.split import split
from mf.ratings.titles import titles_beside
from mf.sample import write_sample
from mf.solvers.config import VBConfig
from mf.solvers.sgd import SGDConfig
from mf.supabase.target import Judged, PublishedRun
from mf.train import train

PHONE, LAPTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 800}
MEGABYTE = 1 << 20
HEADLINES = {
    "accepted": "Accepted for publication",
    "refused": "Refused: not published",
    "first": "Accepted for publication",
    "lists": "Accepted for publication",
}


class Published:
    """A target whose published run has ``model``, in ``directory``, as its judged twin."""

    def __init__(self, model: TrainedModel, directory: Path) -> None:
        header = Header("20261123-031500-5f0c7a", model.factors, 3.4, 0.5, 5.0)
        judged = Judged(False, run_id=model.run_id, model=str(directory))
        self.run = PublishedRun(header, 320, 240, "2026-11-23T03:15:00+00:00", model.trained_on, judged=judged)

    def published_run(self) -> PublishedRun:
        return self.run


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run better than the published one, a run worse than it, a first run, and one with a ranking model."""
    folder = tmp_path_factory.mktemp("reports")
    csv = str(write_sample(folder).ratings_csv)
    provenance = ingest(IngestConfig.of(ratings_csv=csv), folder / "ratings.parquet", folder / "rejects.csv")
    seen, validation, test = split(read_ratings(folder / "ratings.parquet")[0], SplitConfig())
    model = train(seen, validation, SGDConfig(epochs=5), device=torch.device("cpu"))
    evaluation = evaluate(seen, test, model, EvaluateConfig(bootstrap=100), validation)
    titles = titles_beside(csv)
    users = examples(seen, validation, test, model, titles)
    facts = {"source": provenance.summary(), "hash": provenance.content_hash, "solver": "sgd"}

    def against(champion: float) -> Comparison:
        difference = evaluation.model["rmse"] - champion
        interval = Interval(difference - 0.01, difference + 0.01)
        note = "clean: the published run was trained on the same ratings as this model, not on these"
        figures = PairedRmse(len(test), evaluation.model["rmse"], champion, difference, interval, clean=True)
        paired = PairedNdcg(10, 500, 0.25, 0.24, 0.01, Interval(0.001, 0.02), True, "ranking model", note)
        return Comparison("20261123-031500-5f0c7a", "2026-11-23T03:15:00+00:00", note, figures, paired)

    cases = {
        "accepted": (evaluation, against(evaluation.model["rmse"] + 0.02)),
        "refused": (replace(evaluation, model=evaluation.global_mean), against(evaluation.model["rmse"] - 0.05)),
        "first": (evaluation, None),
    }
    for name, (found, comparison) in cases.items():
        decision = decide(found, comparison, GateConfig(), users=len(model.users), movies=len(model.movies))
        parameters = {"Star model (sgd)": model.config, "Ranking model": {}, "Gate": GateConfig().model_dump()}
        when = "28 November 2026, 21:05 UTC, 34 s after the run began"
        tried = {"number": 1, "value": 0.84, "seconds": 2.0, "solver": "sgd", "options": {"lr": 0.05}, "failure": ""}
        sweep = {"objective": "rmse", "best": 1, "trials": 1, "failed": 0, "solver": "sgd", "tried": [tried]}
        report = Report(found, decision, comparison, users, model.metrics["epochs"], facts, parameters, when, sweep)
        write_report(report, folder / f"{name}.html", folder / f"{name}.json")

    # As a run of the pipeline, beside a smaller one that is published.
    cpu = {"device": torch.device("cpu"), "provenance": provenance}
    smaller = train(seen, validation, SGDConfig(epochs=5), ranking=RankingConfig(factors=2), **cpu)
    smaller.save(folder / "published")
    best = train(seen, validation, VBConfig(), ranking=RankingConfig(), **cpu)
    judge(
        best, seen, test, validation,
        html=folder / "lists.html", document=folder / "lists.json", target=Published(smaller, folder / "published"),
        titles=titles, provenance=replace(provenance, source="ratings.csv"), parameters={"solver": "", "epochs": -1},
        started=datetime.now(UTC) - timedelta(seconds=34),
    )  # fmt: skip

    clicks = [part.drop_columns(["rating"]) for part in (seen, validation, test)]
    lists_only = train(*clicks[:2], SGDConfig(), device=torch.device("cpu"), ranking=RankingConfig())
    paths = {"html": folder / "clicks.html", "document": folder / "clicks.json"}
    judge(lists_only, clicks[0], clicks[2], clicks[1], **paths, titles=titles)
    return {name: folder / f"{name}.html" for name in (*cases, "lists", "clicks")}


def opened(browser: Browser, report: Path, **options: object) -> tuple[Page, Seen]:
    page = browser.new_page(**options)
    seen = watch(page)
    page.goto(report.as_uri())
    return page, seen


def assert_whole(place: Page | Frame) -> None:
    """Every image is decoded, and nothing reaches beyond the right edge."""
    images = place.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
    assert len(images) == 7
    assert all(images)
    assert place.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("case", HEADLINES)
@pytest.mark.parametrize("size", [PHONE, LAPTOP], ids=["phone", "laptop"])
def test_the_report_opens_from_disk_with_the_verdict_on_the_first_screen_and_no_requests(
    browser: Browser, reports: dict[str, Path], tmp_path: Path, case: str, size: dict[str, int]
) -> None:
    page, seen = opened(browser, reports[case], viewport=size)
    assert_whole(page)
    assert page.locator("h1").inner_text() == HEADLINES[case]
    verdict = page.locator("header")
    assert "RMSE" in verdict.inner_text()
    box = verdict.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < size["height"] / 2
    page.screenshot(path=tmp_path / f"{case}.png", full_page=True)
    # With all tables open, wide ones scroll within themselves.
    page.evaluate("document.querySelectorAll('details').forEach(folded => folded.open = true)")
    assert_whole(page)
    assert (seen.errors, seen.failed, seen.requests) == ([], [], [reports[case].as_uri()])
    page.close()


def test_the_report_shows_in_a_sandboxed_frame(browser: Browser, reports: dict[str, Path], tmp_path: Path) -> None:
    page = browser.new_page(viewport=LAPTOP)
    seen = watch(page)
    page.set_content('<iframe sandbox style="width: 100%; height: 700px; border: 0"></iframe>')
    page.locator("iframe").evaluate("(frame, html) => frame.srcdoc = html", reports["accepted"].read_text())
    frame = page.frames[1]
    frame.locator("h1").wait_for()
    assert_whole(frame)
    page.screenshot(path=tmp_path / "frame.png")
    assert (seen.errors, seen.failed, seen.outside("about:")) == ([], [], [])
    page.close()


def test_colours_follow_the_colour_scheme_in_the_plots_too(browser: Browser, reports: dict[str, Path]) -> None:
    used = {}
    for scheme in ("light", "dark"):
        page, _ = opened(browser, reports["accepted"], viewport=PHONE, color_scheme=scheme)
        picture = Image.open(io.BytesIO(page.locator("img").first.screenshot())).convert("RGB")
        used[scheme] = {f"#{red:02x}{green:02x}{blue:02x}" for _, (red, green, blue) in picture.getcolors(1 << 20)}
        page.close()
    assert {MODEL, BASELINE, "#ffffff"} <= used["light"]
    assert {DARK[MODEL], DARK[BASELINE], "#14191f"} <= used["dark"]
    assert not used["dark"] & {MODEL, BASELINE, "#ffffff"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("case", ["refused", "first", "lists", "clicks"])
def test_axe_finds_nothing(browser: Browser, reports: dict[str, Path], case: str, scheme: str) -> None:
    page, _ = opened(browser, reports[case], viewport=PHONE, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(folded => folded.open = true)")
    for size in (PHONE, LAPTOP):
        page.set_viewport_size(size)
        assert accessibility_faults(page) == []
    page.close()


def test_a_report_of_clicks_speaks_of_no_stars(browser: Browser, reports: dict[str, Path]) -> None:
    page, seen = opened(browser, reports["clicks"], viewport=PHONE)
    assert "NDCG@10" in page.locator("#key-figures").inner_text()
    page.evaluate("document.querySelector('#parameters').remove()")  # where limits of stars have their names
    text = page.locator("body").inner_text()
    assert re.findall(r".*\b(?:RMSE|ratings?|stars?)\b.*", text) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert (seen.errors, seen.failed) == ([], [])
    page.close()


@pytest.mark.parametrize(("size", "scheme"), [(LAPTOP, "light"), (PHONE, "dark")], ids=["laptop", "phone"])
def test_pictures_of_the_report(
    browser: Browser, reports: dict[str, Path], tmp_path: Path, size: dict[str, int], scheme: str
) -> None:
    page, seen = opened(browser, reports["lists"], viewport=size, color_scheme=scheme)
    text = page.locator("#key-figures").inner_text()
    assert "Run 20261123-031500-5f0c7a was published on 2026-11-23" in text
    figures = r"\s+-?0\.\d{4}\s+[+-]0\.\d{4}\s+[+-]0\.\d{4} to [+-]0\.\d{4}\s+(better|within chance)"
    assert len(re.findall(figures, text)) == 3  # NDCG, hit rate and RMSE; coverage has no interval
    assert " s after the run began" in page.locator("header").inner_text()
    taken = picture(page, f"report-{size['width']}-{scheme}", tmp_path)
    assert taken.stat().st_size < 200_000
    assert seen.errors == []
    page.close()


def test_a_report_is_smaller_than_a_megabyte(reports: dict[str, Path]) -> None:
    assert all(report.stat().st_size < MEGABYTE for report in reports.values())
