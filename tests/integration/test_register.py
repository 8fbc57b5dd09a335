"""The step that uploads a published model to the Model Registry, run by KFP's executor."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_registry import FakeRegistry, fake_registry
from kfp.dsl.executor import Executor
from steps import executor_input, output

import components
from mf import registry
from mf.errors import MfError
from mf.ingest import ingest
from mf.ratings.config import IngestConfig
from mf.registry import label

PLACE = "projects/123/locations/europe-west4"
JOB = f"{PLACE}/pipelineJobs/mf-training-20261124"
MODEL = f"{PLACE}/models/mf-training"
RUN = "20261124-120000-abc123"
IMAGE = "europe-west4-docker.pkg.dev/p1/mf/mf-python-cpu@sha256:" + "0" * 64


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRegistry]:
    with fake_registry() as fake:
        monkeypatch.setattr(registry, "session", fake.session)
        monkeypatch.setattr(registry, "POLL_S", 0.01)
        monkeypatch.setenv("MF_GIT_SHA", "0123456789ab-dirty")
        yield fake


STARS = {"model": {"rmse": 0.87314}, "ranking": {"model": None}}


def registered(folder: Path, run_id: str = RUN, job: str = JOB, evaluation: Any = STARS) -> str:
    """The step's output for a model with RMSE 0.87314 on two ratings."""
    folder.mkdir(exist_ok=True)
    (folder / "ratings.csv").write_text("userId,movieId,rating\n1,2,3\n1,3,4\n")
    ingest(IngestConfig(ratings_csv=str(folder / "ratings.csv")), folder / "ratings.parquet", folder / "rejects.csv")
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    inputs = {"ratings": folder / "ratings.parquet", "evaluation": folder / "evaluation.json"}
    given = executor_input(
        components.register,
        folder / "register",
        {**inputs, "model": folder / "model"},
        name="mf-training",
        run_id=run_id,
        job=job,
        image=IMAGE,
    )
    Executor(given, components.register.python_func).execute()
    return str(output(folder / "register")["parameterValues"]["Output"])


def refused(folder: Path, capsys: pytest.CaptureFixture[str], job: str = JOB) -> str:
    with pytest.raises(SystemExit) as end:
        registered(folder, job=job)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_published_model_is_the_default_version_with_labels_of_its_metrics_data_and_code(
    fake: FakeRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert registered(tmp_path) == f"{MODEL}@1"
    (version,) = fake.models[MODEL]
    assert (version["artifactUri"], version["pipelineJob"]) == (str(tmp_path / "model"), JOB)
    assert version["containerSpec"] == {"imageUri": IMAGE}
    assert version["versionAliases"] == ["default", f"run-{RUN}"]
    assert len(version["labels"].pop("data_hash")) == 16
    assert version["labels"] == {"run_id": RUN, "rmse": "0-8731", "rows": "2", "git_sha": "0123456789ab-dirty"}
    assert capsys.readouterr().out == f"registered {MODEL}@1\n"


def test_a_model_of_clicks_is_labelled_with_its_ndcg(fake: FakeRegistry, tmp_path: Path) -> None:
    registered(tmp_path, evaluation={"model": {}, "ranking": {"model": {"ndcg": 0.25614}}})
    (version,) = fake.models[MODEL]
    assert "rmse" not in version["labels"]
    assert version["labels"]["ndcg"] == "0-2561"


def test_the_next_run_is_a_version_of_the_same_model(fake: FakeRegistry, tmp_path: Path) -> None:
    registered(tmp_path)
    assert registered(tmp_path, run_id="20261125-120000-def456") == f"{MODEL}@2"
    assert [version["versionId"] for version in fake.models[MODEL]] == ["1", "2"]


def test_a_repeated_step_finds_its_version(fake: FakeRegistry, tmp_path: Path) -> None:
    assert registered(tmp_path) == registered(tmp_path) == f"{MODEL}@1"
    assert len(fake.models[MODEL]) == 1
    assert [method for method, _ in fake.asked].count("POST") == 1


def test_an_error_is_reported_with_googles_message_and_the_fix(
    fake: FakeRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.denied = "Permission 'aiplatform.models.get' denied"
    assert refused(tmp_path, capsys) == (
        f"error: the model registry refused {MODEL}@run-{RUN}: 403 Permission 'aiplatform.models.get' "
        "denied: give the account that runs the steps roles/aiplatform.user"
    )


def test_a_failed_upload_fails_the_step(fake: FakeRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.failure = "the artifacts cannot be read"
    said = refused(tmp_path, capsys)
    assert said == "error: the model registry did not register the model: the artifacts cannot be read"


def test_an_upload_has_a_time_limit(
    fake: FakeRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.polls = 10_000
    monkeypatch.setattr(registry, "WAIT_S", 0.1)
    assert refused(tmp_path, capsys).startswith("error: the model registry did not register the model within 0.1 s: ")


def test_an_invalid_response_and_an_unreachable_server_are_one_line(
    fake: FakeRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.broken = True
    assert refused(tmp_path, capsys).startswith(f"error: the model registry refused {PLACE}/models:upload: ")
    fake.url = "http://127.0.0.1:9"
    assert "refused" in refused(tmp_path, capsys)


def test_a_run_outside_vertex_ai_is_refused_with_the_setting(
    fake: FakeRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(tmp_path, capsys, job="a-local-run").endswith("set model_registry = false")
    assert fake.asked == []


def test_without_credentials_the_step_fails_with_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(MfError, match=r"^no account to register the model with: File .*none\.json was not found"):
        registry.session()


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0.87314, "0-8731"), (23_585_165, "23585165"), ("ABC def/é.1", "abc-def---1"), ("x" * 70, "x" * 63), ("", "")],
)
def test_a_label_is_lower_case_and_short(value: object, encoded: str) -> None:
    assert label(value) == encoded
