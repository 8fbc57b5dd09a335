"""The gate end to end: the compiled pipeline through ``kfp.local`` against a real Supabase. The assertions are on the
database and the API after each run.

The steps run their own source text with KFP's executor in this process. One process per step, as in ``test_pipeline``
and ``test_make_run``, would import PyTorch fifty times.
"""

import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kfp.dsl.executor import Executor
from kfp.dsl.utils import load_module
from kfp.local import subprocess_task_handler
from pydantic import SecretStr
from targets import pairs

from mf.errors import MfError
from mf.local import LocalSupabase
from mf.supabase.client import call, connect
from mf.supabase.config import SchemaConfig
from mf.supabase.credentials import Credentials
from mf.supabase.recommend import Recommendation, recommend_movies
from mf.supabase.schema import migration
from pipelines.laptop.run import LOCAL, environment, run_steps
from pipelines.settings import Settings

# Ratings are planted with biases and two factors; a model with one factor learns half of them.
TWO_FACTORS = {"solver": "vb", "factors": 2}
ONE_FACTOR = {"solver": "vb", "factors": 1}
UNTRAINED = {"solver": "adam", "epochs": 1, "lr": 1e-9}
YEAR_2020 = 1577836800


@dataclass(frozen=True)
class Outcome:
    """Outcome of one run of the pipeline."""

    steps: list[str]  # those that ran
    evaluation: dict[str, Any]
    printed: str
    log: str
    runs: dict[str, str]  # in the database: run id to status
    recommended: list[Recommendation]  # by the API, to user 1

    @property
    def run_id(self) -> str:
        """Run id of the trained model."""
        return str(re.findall(r"model (\S+): ", self.printed)[0])

    @property
    def published(self) -> str | None:
        return next((run for run, status in self.runs.items() if status == "published"), None)

    @property
    def reasons(self) -> list[str]:
        return list(self.evaluation["decision"]["reasons"])

    def check(self, name: str) -> dict[str, Any]:
        (found,) = [check for check in self.evaluation["decision"]["checks"] if check["name"] == name]
        return dict(found)


def in_this_process(full_command: list[str], env_vars: Any) -> int:
    """Runs a step as would the process ``sh -ec SCRIPT SOURCE --executor_input JSON --function_to_execute NAME``."""
    source, *arguments = full_command[3:]
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    executor_input = json.loads(given["--executor_input"])
    folder = Path(executor_input["outputs"]["outputFile"]).parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ephemeral_component.py").write_text(source)
    step = getattr(load_module("ephemeral_component", str(folder)), given["--function_to_execute"])
    with redirect_stderr(sys.stdout):
        try:
            Executor(executor_input=executor_input, function_to_execute=step).execute()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


@dataclass(frozen=True)
class Project:
    supabase: LocalSupabase
    folder: Path

    def run(
        self, name: str, file: Path, *, direct: bool = False, settings: Settings = LOCAL, **parameters: Any
    ) -> Outcome:
        """Runs the pipeline on ``file``, over the direct database connection if ``direct``."""
        folder, printed = self.folder / name, io.StringIO()
        folder.mkdir()
        supabase = {"SUPABASE_URL": self.supabase.url, "SUPABASE_KEY": self.supabase.secret_key}
        if direct:
            supabase = {"SUPABASE_DB_URL": self.supabase.db_url}
        parameters = {"ratings_csv": str(file), "supabase_url": self.supabase.url, **parameters}
        with environment(**supabase), redirect_stdout(printed):
            run_steps(parameters, folder, settings)
        (outputs,) = folder.glob("mf-training-*")
        evaluation = json.loads((outputs / "evaluate" / "evaluation.json").read_text())
        with connect(Credentials(self.supabase.url, SecretStr(self.supabase.secret_key))) as client:
            runs = {run["run_id"]: run["status"] for run in call(client.rpc("mf_list_runs"), "list the runs")}
            recommended = recommend_movies(client, 1)
        steps = [step.name for step in outputs.iterdir() if step.is_dir()]
        return Outcome(steps, evaluation, printed.getvalue(), (folder / "log.txt").read_text(), runs, recommended)


@pytest.fixture(scope="module")
def project(fresh_stack: Callable[..., LocalSupabase], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess_task_handler, "run_local_subprocess", in_this_process)
        yield Project(fresh_stack(), tmp_path_factory.mktemp("gate"))


def rows(count: int) -> list[str]:
    """Ratings of 3 + b_u + b_m + p·q + noise by 60 users of 40 movies, an hour apart."""
    rng = np.random.default_rng(0)
    of_users, of_movies = (rng.normal(0, [0.5, 1, 1], (n, 3)) for n in (60, 40))
    user, movie = np.divmod(rng.permutation(60 * 40)[:count], 40)
    b, pq = of_users[user, 0] + of_movies[movie, 0], (of_users[user, 1:] * of_movies[movie, 1:]).sum(1)
    rating = (3 + b + pq + rng.normal(0, 0.2, count)).round(2)
    time = YEAR_2020 + np.arange(count) * 3600
    return [f"{u + 1},{m + 1},{r},{t}" for u, m, r, t in zip(user, movie, rating, time, strict=True)]


def write(file: Path, rows: list[str]) -> Path:
    file.write_text("\n".join(["userId,movieId,rating,timestamp", *rows]) + "\n")
    return file


ROWS = rows(1800)
NEWER = "clean: these ratings are newer than all that the published run has seen (2020-"
PARTS = ["ingest", "split", "train", "evaluate"]
EXPORTED = ["refit", "export"]


@pytest.fixture(scope="module")
def story(project: Project) -> dict[str, Outcome]:
    """Runs on one database, one after another; each finds the run that the previous ones published."""
    project.supabase.migrate(migration(SchemaConfig()))
    folder = project.folder
    file, copy = (write(folder / name, ROWS[:1500]) for name in ("ratings.csv", "copy.csv"))
    outcomes: dict[str, Outcome] = {}

    def then(name: str, file: Path, **parameters: Any) -> None:
        outcomes[name] = project.run(name, file, **{"refit": False, **parameters})

    then("too few", file, **TWO_FACTORS, min_rows=5000)
    then("nothing to start from", file, **UNTRAINED, init_from="published")
    then("first", file, **ONE_FACTOR)
    then("better", file, **TWO_FACTORS, direct=True)
    telling = Settings(retries=0, notify_log=True)
    then("worse", file, **ONE_FACTOR, settings=telling)
    then("forced", file, **ONE_FACTOR, settings=telling, force_publish=True)
    then("another source", copy, **ONE_FACTOR)
    then("untrained", file, **UNTRAINED)
    write(copy, ROWS)
    then("grown", copy, **TWO_FACTORS, split="time", test_size=0.15)
    then("grown and worse", copy, **ONE_FACTOR, split="time", test_size=0.15, direct=True)
    then("warm", copy, **UNTRAINED, split="time", test_size=0.15, init_from="published")
    by_hash: dict[str, Any] = {"split": "hash", "refit": True}
    then("refitted", copy, **TWO_FACTORS, **by_hash)
    write(copy, rows(2000))
    then("refitted and grown", copy, **TWO_FACTORS, **by_hash)
    then("refitted and worse", copy, **ONE_FACTOR, **by_hash)
    shutil.rmtree(next((folder / "refitted and grown").glob("mf-training-*/train")))
    then("refitted without the judged", copy, **UNTRAINED, **by_hash, init_from="published")
    return outcomes


def test_a_model_of_too_few_ratings_is_refused_and_the_database_stays_empty(story: dict[str, Outcome]) -> None:
    found = story["too few"]
    assert found.reasons == ["1,200 training ratings, min_rows is 5,000"]
    assert (sorted(found.steps), found.runs, found.recommended) == (sorted(PARTS), {}, [])
    printed = story["nothing to start from"].printed
    assert "ingest    no run is published yet: training starts from scratch\n" in printed


def test_the_first_run_is_compared_with_the_baselines_alone_and_published(story: dict[str, Outcome]) -> None:
    found = story["first"]
    assert found.evaluation["champion"] is None
    assert found.check("champion")["text"] == "there is no published run to compare with"
    assert found.check("baselines")["figure"] < found.check("baselines")["limit"] - 0.1
    assert sorted(found.steps) == sorted([*PARTS, *EXPORTED])
    assert found.runs == {found.run_id: "published"}
    assert len(found.recommended) == 10


def test_a_better_run_replaces_the_published_run(story: dict[str, Outcome]) -> None:
    first, found = story["first"], story["better"]
    assert found.runs == {found.run_id: "published", first.run_id: "retired"}
    assert pairs(found.recommended) != pairs(first.recommended)
    champion = found.evaluation["champion"]
    assert champion["run_id"] == first.run_id
    assert champion["note"].startswith("clean: the published run was trained on the same ratings as this model")
    figures = champion["figures"]
    assert (figures["rows"], figures["clean"]) == (150, True)
    # The champion's own evaluation on the same ratings, before its embeddings went through the database.
    assert figures["champion_rmse"] == pytest.approx(first.evaluation["model"]["rmse"], abs=1e-6)
    assert figures["rmse"] == pytest.approx(found.evaluation["model"]["rmse"], abs=1e-9)
    assert figures["interval"]["high"] < 0
    # Both ranking models are of the same ratings; the champion's came back from the database.
    lists, own = champion["lists"], found.evaluation["ranking"]["model"]["ndcg"]
    assert (lists["ordered_by"], lists["clean"]) == ("ranking model", True)
    assert lists["ndcg"] == pytest.approx(own, abs=1e-9)
    assert lists["champion_ndcg"] == pytest.approx(first.evaluation["ranking"]["model"]["ndcg"], abs=1e-6)
    assert lists["difference"] == pytest.approx(0, abs=1e-6)


def test_a_worse_run_is_refused_without_failing_and_the_api_is_unchanged(story: dict[str, Outcome]) -> None:
    better, found = story["better"], story["worse"]
    (reason,) = found.reasons
    assert f"of the published run {better.run_id} on the same 150 ratings: +" in reason
    assert reason.endswith(", max_regression is 0.01")
    assert found.check("baselines")["passed"]
    assert sorted(found.steps) == sorted([*PARTS, "notify"])
    assert (found.runs, found.recommended) == (better.runs, better.recommended)
    assert re.search(r"Pipeline \S*'mf-training'\S* finished with status \S*SUCCESS", found.log)
    assert f"evaluate  not published: {reason}; lists  NDCG@10 0." in found.printed
    assert f" has succeeded: not published: {reason}; lists  NDCG@10 0." in found.printed  # by the notify step


def test_force_publish_publishes_and_the_log_says_so(story: dict[str, Outcome]) -> None:
    worse, found = story["worse"], story["forced"]
    assert found.published == found.run_id != worse.run_id
    assert sorted(found.steps) == sorted([*PARTS, *EXPORTED, "notify"])
    decision = found.evaluation["decision"]
    assert (decision["publish"], decision["forced"], len(found.reasons)) == (True, True, 1)
    assert " has succeeded: accepted by force_publish although RMSE" in found.printed


def test_a_run_of_another_source_is_not_compared(story: dict[str, Outcome]) -> None:
    found = story["another source"]
    assert found.published == found.run_id
    champion = found.evaluation["champion"]
    assert (champion["run_id"], champion["figures"]) == (story["forced"].run_id, None)
    assert found.check("champion")["text"] == champion["note"]
    assert champion["note"].startswith("not compared: this model was trained on ")
    assert champion["note"].endswith("ratings.csv")


def test_a_model_that_does_not_beat_the_baselines_is_refused(story: dict[str, Outcome]) -> None:
    before, found = story["another source"], story["untrained"]
    (reason,) = found.reasons
    assert re.match(r"RMSE \d\.\d{4} is not below that of user \+ movie biases, \d\.\d{4}$", reason)
    assert (found.runs, found.recommended) == (before.runs, before.recommended)


def test_on_a_grown_source_the_comparison_is_on_ratings_newer_than_the_published_run(
    story: dict[str, Outcome],
) -> None:
    before, found = story["another source"], story["grown"]
    assert found.published == found.run_id
    champion = found.evaluation["champion"]
    assert champion["run_id"] == before.run_id
    assert champion["note"].startswith(NEWER)
    assert (champion["figures"]["clean"], champion["figures"]["rows"]) == (True, 270)
    worse = story["grown and worse"]
    assert worse.evaluation["champion"]["figures"]["clean"]
    assert worse.evaluation["champion"]["note"].startswith("clean: the published run was trained on the same ratings")
    assert worse.published == found.run_id
    assert len(worse.reasons) == 1


def test_a_warm_start_without_training_is_as_good_as_the_published_run(
    story: dict[str, Outcome],
) -> None:
    before, found = story["grown"], story["warm"]
    assert f"ingest    starting from model {before.run_id}\n" in found.printed
    assert f"started from {before.run_id}" in found.printed
    assert found.published == found.run_id
    assert found.evaluation["model"]["rmse"] == pytest.approx(before.evaluation["model"]["rmse"], abs=0.01)
    # It has seen more than the published run's training part, but none of these ratings.
    assert found.evaluation["champion"]["note"].startswith(NEWER)


def test_what_is_published_was_fitted_to_all_ratings_once_more(story: dict[str, Outcome]) -> None:
    found = story["refitted"]
    assert sorted(found.steps) == sorted([*PARTS, *EXPORTED])
    assert found.published != found.run_id  # of the model that was judged
    assert f"refit     model {found.published} is fitted to all 1,800 ratings: RMSE 0." in found.printed
    assert f"of the judged model {found.run_id}\n" in found.printed


def test_after_a_refit_the_next_model_is_compared_with_the_one_that_was_judged(story: dict[str, Outcome]) -> None:
    before, found, worse = story["refitted"], story["refitted and grown"], story["refitted and worse"]
    champion = found.evaluation["champion"]
    assert champion["run_id"] == before.published
    assert champion["note"] == (
        "clean: the published run held these ratings out too (split=hash with the same seed); compared with model "
        f"{before.run_id}, which was judged before it was fitted to all ratings"
    )
    assert (champion["figures"]["clean"], champion["figures"]["rows"]) == (True, found.evaluation["test_rows"])
    assert found.published not in (before.published, found.run_id)
    assert worse.published == found.published
    assert [reason.endswith("max_regression is 0.01") for reason in worse.reasons] == [True]


def test_where_the_judged_model_is_gone_its_run_is_not_compared(story: dict[str, Outcome]) -> None:
    found = story["refitted without the judged"]
    note = found.evaluation["champion"]["note"]
    assert note.startswith("not compared: the published run was trained on all ratings, the model that was judged is ")
    assert found.evaluation["champion"]["figures"] is None
    assert f"the published run {story['refitted and grown'].published} was trained on all ratings" in found.printed


def test_a_supabase_that_does_not_answer_fails_the_step_and_does_not_count_as_having_no_run(
    project: Project, monkeypatch: pytest.MonkeyPatch, story: dict[str, Outcome]
) -> None:
    monkeypatch.setattr("mf.supabase.client.TRIES", 1)
    with pytest.raises(MfError, match=r"^the step evaluate failed: cannot read the published run: no response from "):
        project.run("unreachable", project.folder / "ratings.csv", **ONE_FACTOR, supabase_url="http://127.0.0.1:9")


def test_without_the_migration_evaluate_compares_with_no_run_and_export_says_what_is_missing(
    project: Project, fresh_stack: Callable[..., LocalSupabase], story: dict[str, Outcome]
) -> None:
    bare = Project(fresh_stack(), project.folder)
    with pytest.raises(MfError, match=r"^the step export failed: .*`python -m mf schema` prints it"):
        bare.run("bare", project.folder / "ratings.csv", **ONE_FACTOR)
