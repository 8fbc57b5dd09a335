"""What the real SDK sends to start a run, and what a person is told when it cannot."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_vertex import FakeVertex, fake_vertex
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from google.cloud.aiplatform.utils import resource_manager_utils

from pipelines.__main__ import main

COMPILED = Path(__file__).parents[1] / "golden" / "mf-training.yaml"
SETTINGS = {
    "project": "p1",
    "region": "europe-west4",
    "pipeline_root": "gs://mf-bucket/runs",
    "service_account": "steps@p1.iam.gserviceaccount.com",
    "supabase_key_secret": "projects/p1/secrets/supabase-key",
}
Submit = Callable[..., str]


@pytest.fixture
def vertex(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVertex]:
    with fake_vertex() as fake:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
        here = {"api_endpoint": fake.url, "api_transport": "rest", "credentials": AnonymousCredentials()}
        monkeypatch.setattr(aiplatform, "init", functools.partial(aiplatform.init, **here))
        # The SDK asks Cloud Resource Manager for the number over gRPC, at an address that cannot be chosen: without a
        # network that takes a minute.
        monkeypatch.setattr(resource_manager_utils, "get_project_number", lambda *_, **__: "123")
        yield fake


@pytest.fixture
def submit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Submit:
    """Runs the command with ``settings``, and gives what it printed; it must end as ``status`` says."""

    def run(*params: str, settings: dict[str, str] = SETTINGS, file: Path = COMPILED, status: int = 0) -> str:
        toml = tmp_path / "settings.toml"
        toml.write_text("".join(f'{name} = "{value}"\n' for name, value in settings.items()))
        flags = [word for param in params for word in ("--param", param)]
        command = ["submit", "--settings", str(toml), "--file", str(file), *flags]
        if not status:
            main(command)
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as end:
            main(command)
        printed = capsys.readouterr()
        assert (end.value.code, printed.out, printed.err.count("\n")) == (status, "", 1)
        return printed.err

    return run


def test_one_run_is_started_with_what_was_asked_for(vertex: FakeVertex, submit: Submit) -> None:
    said = submit("epochs=3", "lr=0.01", "ratings_csv=gs://data/r=1.csv")
    (sent,) = [request for request in vertex.requests if request.method != "GET"]
    assert sent.path == "/v1/projects/p1/locations/europe-west4/pipelineJobs"
    job = sent.body
    assert job["displayName"] == "mf-training"
    assert job["serviceAccount"] == SETTINGS["service_account"]
    assert set(job["labels"]) >= {"git_sha"}
    config = job["runtimeConfig"]
    assert config["gcsOutputDirectory"] == SETTINGS["pipeline_root"]
    assert config["parameterValues"] == {"epochs": 3, "lr": 0.01, "ratings_csv": "gs://data/r=1.csv"}

    run = f"{sent.path.removeprefix('/v1/')}/{sent.query['pipelineJobId']}"
    submitted, watch = said.splitlines()
    assert submitted == f"submitted {run}"
    assert watch.startswith("https://console.cloud.google.com/vertex-ai/")


def test_each_step_keeps_its_own_say_about_the_cache(vertex: FakeVertex, submit: Submit) -> None:
    submit()
    tasks = vertex.requests[-1].body["pipelineSpec"]["root"]["dag"]["tasks"]
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == {"split", "train"}


def test_without_an_account_the_projects_own_is_used(vertex: FakeVertex, submit: Submit) -> None:
    submit(settings={name: value for name, value in SETTINGS.items() if name != "service_account"})
    assert "serviceAccount" not in vertex.requests[-1].body


@pytest.mark.parametrize(
    ("settings", "params", "said"),
    [
        ({}, [], "error: the settings lack project, pipeline_root, supabase_key_secret: set them in "),
        (SETTINGS | {"region": ""}, [], "error: the settings lack region: set them in pipelines/settings.toml\n"),
        (SETTINGS, ["epoch=3"], "error: the pipeline has no parameter 'epoch'; it has "),
        (SETTINGS, ["train_accelerator_type=L4"], "error: train_accelerator_type: found 'L4', expected one of NVIDIA_"),
        (SETTINGS, ["supabase_url="], "error: supabase_url is empty: set it in pipelines/settings.toml and run"),
        (SETTINGS, ["epochs=x"], "error: parameter epochs: expected a whole number, found 'x'\n"),
    ],
)
def test_what_is_missing_or_cannot_be_is_said_before_anything_is_sent(
    vertex: FakeVertex, submit: Submit, settings: dict[str, str], params: list[str], said: str
) -> None:
    assert submit(*params, settings=settings, status=2).startswith(said)
    assert vertex.requests == []


def test_a_pipeline_that_was_not_compiled_is_one_line(vertex: FakeVertex, submit: Submit, tmp_path: Path) -> None:
    file = tmp_path / "none.yaml"
    assert submit(file=file, status=2) == f"error: {file}: no compiled pipeline there: run `make compile`\n"
    assert vertex.requests == []


def test_a_missing_bucket_is_not_made_but_said_with_the_command_that_makes_it(
    vertex: FakeVertex, submit: Submit
) -> None:
    vertex.buckets.clear()
    assert submit(status=2) == (
        "error: pipeline_root: there is no bucket mf-bucket; make it: "
        "gcloud storage buckets create gs://mf-bucket --location=europe-west4\n"
    )
    assert {request.method for request in vertex.requests} == {"GET"}


def test_a_refusal_is_one_line_in_googles_own_words(vertex: FakeVertex, submit: Submit) -> None:
    vertex.denied = "Permission 'aiplatform.pipelineJobs.create' denied"
    said = submit(status=2)
    assert said.startswith("error: Vertex AI did not take the run: 403 ")
    assert vertex.denied in said
