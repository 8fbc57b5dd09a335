"""Submitting a run: the requests of the real SDK, the output and the errors."""

import re
import signal
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from compiling import compile_once
from fake_gcs import fake_gcs
from fake_vertex import FakeVertex, Fault, Request, fake_vertex, send_sdk_to
from google.auth.exceptions import TransportError
from google.cloud import aiplatform, storage
from google.cloud.aiplatform import base

from pipelines import follow as pipelines_follow
from pipelines.__main__ import main
from pipelines.compiled import compile_pipeline
from pipelines.settings import Settings

SETTINGS = {
    "project": "p1",
    "region": "europe-west4",
    "pipeline_root": "gs://mf-bucket/runs",
    "service_account": "steps@p1.iam.gserviceaccount.com",
    "network": "projects/123/global/networks/private",
    "image_repository": "eu.example/mf",
    "image_tag": "v1",
    "supabase_url": "https://example.supabase.co",
    "supabase_key_secret": "projects/p1/secrets/supabase-key",
}
Submit = Callable[..., str]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("compiled") / "mf-training.yaml"
    compile_pipeline(Settings.of(**SETTINGS), file)
    return file


@pytest.fixture
def vertex(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVertex]:
    compile_once(monkeypatch)
    with fake_vertex() as fake:
        send_sdk_to(fake, monkeypatch)
        monkeypatch.setattr(pipelines_follow, "POLL_S", 0.01)
        yield fake


@pytest.fixture
def submit(tmp_path: Path, compiled: Path, capsys: pytest.CaptureFixture[str]) -> Submit:
    """Runs the command, which must exit with ``status``, and returns its output. A user's mistake must be one line on
    stderr and nothing else."""

    def run(
        *given: str, settings: Mapping[str, str] = SETTINGS, more: str = "", file: Path = compiled, status: int = 0
    ) -> str:
        toml = tmp_path / "settings.toml"
        toml.write_text("".join(f'{name} = "{value}"\n' for name, value in settings.items()) + more)
        words = [word if word.startswith("--") else f"--param={word}" for word in given]
        command = ["submit", "--settings", str(toml), "--file", str(file), *words]
        if not status:
            main(command)
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as end:
            main(command)
        printed = capsys.readouterr()
        assert end.value.code == status
        if status == 2 and "--wait" not in given:
            assert (printed.out, printed.err.count("\n")) == ("", 1)
        return printed.out + printed.err

    return run


def test_a_run_is_started_with_the_given_parameters_and_settings(vertex: FakeVertex, submit: Submit) -> None:
    said = submit("epochs=3", "lr=0.01", "ratings_csv=gs://data/r=1.csv", more='[labels]\nteam = "films"\n')
    (sent,) = vertex.changes
    assert sent.path == "/v1/projects/p1/locations/europe-west4/pipelineJobs"
    job = sent.body
    assert job["displayName"] == "mf-training"
    assert (job["serviceAccount"], job["network"]) == (SETTINGS["service_account"], SETTINGS["network"])
    assert {*job["labels"]} == {"git_sha", "version", "team"}
    assert (job["labels"]["version"], job["labels"]["team"]) == ("0_1_0", "films")
    config = job["runtimeConfig"]
    assert config["gcsOutputDirectory"] == SETTINGS["pipeline_root"]
    assert config["parameterValues"] == {"epochs": 3, "lr": 0.01, "ratings_csv": "gs://data/r=1.csv"}

    run = f"{sent.path.removeprefix('/v1/')}/{sent.query['pipelineJobId']}"
    submitted, *_, console = said.splitlines()
    assert submitted == f"submitted {run}"
    assert console.startswith("console   https://console.cloud.google.com/vertex-ai/")


def test_the_machines_of_the_steps_are_printed(vertex: FakeVertex, submit: Submit, tmp_path: Path) -> None:
    machines = '[machines]\ntrain = {cpu = "32", memory = "100G"}\nexport = {memory = "4G"}\n'
    file = tmp_path / "other.yaml"
    compile_pipeline(Settings.of(**SETTINGS, machines=tomllib.loads(machines)["machines"]), file)
    said = submit("train_accelerator_count=4", file=file, more=machines)
    assert said.splitlines()[1:-1] == [
        "  ingest    4 CPU, 16G",
        "  split     4 CPU, 16G",
        "  train     32 CPU, 100G, 4 NVIDIA_L4",
        "  evaluate  4 CPU, 16G",
        "  export    2 CPU, 4G",
    ]


def test_each_step_keeps_its_own_caching_option(vertex: FakeVertex, submit: Submit) -> None:
    submit()
    pipeline = vertex.requests[-1].body["pipelineSpec"]
    dags = [one["dag"]["tasks"] for one in (pipeline["root"], *pipeline["components"].values()) if "dag" in one]
    said = {name: task["cachingOptions"] for dag in dags for name, task in dag.items() if "cachingOptions" in task}
    assert said.keys() >= {"ingest", "split", "train", "evaluate", "refit", "export"}
    assert {name for name, options in said.items() if options.get("enableCache")} == {"split", "train", "refit"}


def test_without_an_account_or_a_network_none_is_sent(vertex: FakeVertex, submit: Submit) -> None:
    submit(settings={name: value for name, value in SETTINGS.items() if name not in ("service_account", "network")})
    assert {"serviceAccount", "network"} & vertex.requests[-1].body.keys() == set()


@pytest.mark.parametrize(
    ("settings", "params", "said"),
    [
        (
            {},
            [],
            "error: the settings lack project, pipeline_root, supabase_key_secret, supabase_url, image_repository: ",
        ),
        (
            {},
            ["supabase_url=https://example.supabase.co"],
            "error: the settings lack project, pipeline_root, supabase_key_secret, image_repository: set them in ",
        ),
        (
            SETTINGS | {"image_repository": "me/mf"},
            [],
            "error: image_repository: found 'me/mf', which names no registry, and an image without one is looked for ",
        ),
        (
            SETTINGS,
            ["train_accelerator_count=0"],
            "error: train_accelerator_count: found 0 in a run of a pipeline that was compiled with a GPU: set it to 0 ",
        ),
        (SETTINGS, ["train_accelerator_type=NVIDIA_TESLA_P4"], "error: train_accelerator_type: PyTorch's build cu130 "),
        (SETTINGS, ["ratings_csv=r.csv"], "error: ratings_csv: expected gs://bucket/object, found 'r.csv', which the "),
        (
            SETTINGS,
            ["ratings_csv=gs:/b/r.csv"],
            "error: ratings_csv: expected gs://bucket/object, found 'gs:/b/r.csv': give gs://b/r.csv\n",
        ),
        (
            SETTINGS,
            ["ratings_csv=https://storage.cloud.google.com/b/r.csv?x=1"],
            "error: ratings_csv: expected gs://bucket/object, found 'https://storage.cloud.google.com/b/r.csv?x=1', an "
            "address for browsers: give gs://b/r.csv\n",
        ),
        (
            SETTINGS,
            ["ratings_csv=gs://b"],
            "error: ratings_csv: expected gs://bucket/object, found 'gs://b', which names no",
        ),
        (
            SETTINGS,
            ["ratings_csv=GS://b/r.csv"],
            "error: ratings_csv: expected gs://bucket/object, found 'GS://b/r.csv': give",
        ),
        (
            SETTINGS,
            ["ratings_csv=s3:/b/r.csv"],
            "error: ratings_csv: expected gs://bucket/object, found 's3:/b/r.csv': give s",
        ),
        (
            SETTINGS,
            ["ratings_csv=minio://b/r.csv"],
            "error: ratings_csv: expected gs://bucket/object, found 'minio://b/r.csv'",
        ),
        (
            SETTINGS,
            ["ratings_csv=r.csv", "epochs=0"],
            "error: 2 values are not valid: epochs: Input should be greater than or equal to 1 (given: 0); rat",
        ),
        (SETTINGS | {"region": ""}, [], "error: the settings lack region: set it in "),
        (SETTINGS, ["epoch=3"], "error: the pipeline has no parameter 'epoch'; it has "),
        (SETTINGS, ["train_accelerator_type=L4"], "error: train_accelerator_type: found 'L4', expected one of NVIDIA_"),
        (
            SETTINGS,
            ["train_accelerator_count=3"],
            "error: train_accelerator_count: found 3, a machine has 1, 2, 4, 8 of",
        ),
        (
            SETTINGS,
            ["val_size=1", "epochs=0", "max_rmse=-1", "user_export_table=mf_x", "train_accelerator_count=3"],
            "error: 5 values are not valid: val_size: Input should be less than 1 (given: 1.0); "
            "epochs: Input should be greater than or equal to 1 (given: 0); "
            "max_rmse: Input should be greater than or equal to 0 (given: -1.0); "
            "user_export_table: names that start with mf_ are reserved for the tables behind the views: choose another "
            "(given: 'mf_x'); train_accelerator_count: found 3, a machine has 1, 2, 4, 8 of NVIDIA_L4\n",
        ),
        (
            SETTINGS | {"region": "us-west2"},
            [],
            "error: the settings: region us-west2 has no NVIDIA_L4; those that have are asia-",
        ),
        (SETTINGS, ["supabase_url="], "error: supabase_url is empty: leave the parameter out"),
        (SETTINGS, ["epochs=x"], "error: parameter epochs: expected a whole number, found 'x'\n"),
        (SETTINGS, ["columns=sb_secret_a"], "error: parameter columns looks like a Supabase secret key, and shows in "),
    ],
)
def test_a_missing_or_invalid_value_is_reported_before_any_request(
    vertex: FakeVertex, submit: Submit, settings: dict[str, str], params: list[str], said: str
) -> None:
    assert submit(*params, settings=settings, status=2).startswith(said)
    assert vertex.requests == []


@pytest.mark.parametrize(
    "given",
    [["train_accelerator_type=NVIDIA_TESLA_T4"], ["train_accelerator_count=2"]],
)
def test_with_spot_a_run_cannot_have_another_machine(
    vertex: FakeVertex, submit: Submit, tmp_path: Path, given: list[str]
) -> None:
    file = tmp_path / "spot.yaml"
    compile_pipeline(Settings.of(**SETTINGS, spot=True), file)
    said = submit(*given, more="spot = true\n", file=file, status=2)
    assert said == (
        f"error: {given[0].partition('=')[0]}: the train step's machine was settled when the pipeline was "
        "compiled, with 1 NVIDIA_L4: set it under [parameters] in pipelines/settings.toml and run `make compile`\n"
    )
    assert vertex.requests == []


def test_a_missing_compiled_file_is_one_line(vertex: FakeVertex, submit: Submit, tmp_path: Path) -> None:
    file = tmp_path / "none.yaml"
    assert (
        submit(file=file, status=2)
        == f"error: {file}: no such file, expected a compiled pipeline: run `make compile`\n"
    )
    assert vertex.requests == []


def test_a_file_compiled_from_older_code_is_refused_in_one_line(
    vertex: FakeVertex, submit: Submit, compiled: Path, tmp_path: Path
) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(compiled.read_text().replace("solver", "method"))
    said = submit("epochs=3", file=file, status=2)
    assert said.startswith(f"error: {file} is not what this code and these settings compile to, ")
    assert said.endswith(": run `make compile`\n")
    assert vertex.requests == []


def test_a_file_compiled_with_other_settings_is_refused_with_the_difference(
    vertex: FakeVertex, submit: Submit, compiled: Path
) -> None:
    assert submit(settings=SETTINGS | {"image_tag": "v2"}, status=2) == (
        f"error: {compiled} is not what this code and these settings compile to, "
        "deploymentSpec.executors.exec-evaluate.container.image is 'eu.example/mf/mf-python-cpu:v1', "
        "now 'eu.example/mf/mf-python-cpu:v2': run `make compile`\n"
    )
    assert vertex.requests == []


def test_a_missing_bucket_is_reported_with_the_command_and_not_created(vertex: FakeVertex, submit: Submit) -> None:
    vertex.buckets.clear()
    assert submit(status=2) == (
        "error: pipeline_root: there is no bucket mf-bucket; create it: "
        "gcloud storage buckets create gs://mf-bucket --location=europe-west4\n"
    )
    assert vertex.changes == []


def test_an_unreadable_bucket_is_reported_with_the_role(vertex: FakeVertex, submit: Submit) -> None:
    vertex.closed_buckets.add("mf-bucket")
    said = submit(status=2)
    assert said.startswith(
        "error: pipeline_root: you may not see the bucket mf-bucket: gcloud storage buckets add-iam-policy-binding "
        "gs://mf-bucket --member=user:YOU --role=roles/storage.legacyBucketReader (403 "
    )
    assert vertex.changes == []


def test_the_bucket_is_checked_on_a_real_storage_server(
    vertex: FakeVertex, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_gcs() as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        assert submit(status=2).startswith("error: pipeline_root: there is no bucket mf-bucket; create it: ")
        client = storage.Client(project="p1")
        assert [*client.list_buckets()] == []
        client.create_bucket("mf-bucket")
        assert submit().startswith("submitted ")
    assert len(vertex.changes) == 1


def test_an_error_of_google_is_one_line(vertex: FakeVertex, submit: Submit) -> None:
    vertex.denied = "Permission 'aiplatform.pipelineJobs.create' denied"
    said = submit(status=4)
    assert said.startswith("error: Vertex AI could not start the run: 403 ")
    assert vertex.denied in said


def state(run: str, error: str = "", **tasks: str) -> dict[str, Any]:
    """A PipelineJob with these states; ``error`` is the train step's."""
    details: list[dict[str, Any]] = [{"taskName": name, "state": task} for name, task in tasks.items()]
    for task in details:
        if error and task["taskName"] == "train":
            task["error"] = {"code": 9, "message": error}
    whole = {"error": {"code": 9, "message": "The DAG failed."}} if error else {}
    return {"state": f"PIPELINE_STATE_{run}", "jobDetail": {"taskDetails": details}, **whole}


def changes(said: str) -> list[str]:
    """The printed changes of state, without the time."""
    return [" ".join(line.split()[1:]) for line in said.splitlines() if line[2:3] == line[5:6] == ":"]


def test_waiting_prints_every_change_once_until_the_run_ends(vertex: FakeVertex, submit: Submit) -> None:
    vertex.states = [
        state("PENDING"),
        state("RUNNING", ingest="RUNNING"),
        state("RUNNING", ingest="RUNNING"),
        state("RUNNING", ingest="SUCCEEDED", split="SKIPPED"),
        state("SUCCEEDED", ingest="SUCCEEDED", split="SKIPPED"),
    ]
    said = submit("--wait")
    assert changes(said) == [
        "run pending",
        "ingest running",
        "run running",
        "ingest succeeded",
        "split skipped",
        "run succeeded",
    ]


@pytest.mark.parametrize("end", ["FAILED", "CANCELLED"])
def test_waiting_for_a_failed_run_exits_with_6_and_the_errors(vertex: FakeVertex, submit: Submit, end: str) -> None:
    vertex.states = [state("RUNNING", train="RUNNING"), state(end, "out of\nmemory", train="FAILED")]
    said = submit("--wait", status=6)
    assert changes(said) == ["train running", "run running", "train failed", f"run {end.lower()}"]
    assert said.endswith("error: the step train failed: out of memory\nerror: the run failed: The DAG failed.\n")


def test_a_paused_run_has_not_failed(vertex: FakeVertex, submit: Submit) -> None:
    vertex.states = [state("PAUSED")]
    assert re.search(r"^error: the run is paused; to follow it again: make watch ", submit("--wait", status=5), re.M)


def test_a_state_that_is_newer_than_the_sdk_is_shown_as_its_number(vertex: FakeVertex, submit: Submit) -> None:
    vertex.states = [
        {"state": 99, "jobDetail": {"taskDetails": [{"taskName": "train", "state": 98}]}},
        state("SUCCEEDED"),
    ]
    assert changes(submit("--wait")) == ["train state 98", "run state 99", "run succeeded"]


def test_waiting_survives_an_outage(vertex: FakeVertex, submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    vertex.states = [state("RUNNING"), state("SUCCEEDED")]
    vertex.faults = [Fault("GET", "/pipelineJobs/", times=5)]
    monkeypatch.setattr(base, "_DEFAULT_RETRY", None)  # the SDK would retry for two minutes
    assert changes(submit("--wait")) == ["run running", "run succeeded"]


@pytest.mark.parametrize("code", [401, 408, 429, 499, 500, 502])
def test_waiting_survives_an_answer_that_is_no_answer(vertex: FakeVertex, submit: Submit, code: int) -> None:
    vertex.states = [state("RUNNING"), state("SUCCEEDED")]
    vertex.faults = [Fault("GET", "/pipelineJobs/", code=code)]
    assert changes(submit("--wait")) == ["run running", "run succeeded"]


def test_waiting_survives_a_lost_connection(
    vertex: FakeVertex, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    vertex.states = [state("RUNNING"), state("SUCCEEDED")]
    monkeypatch.setattr(base, "_DEFAULT_RETRY", None)
    fetch, lost = aiplatform.PipelineJob._sync_gca_resource, [ConnectionError("reset"), TransportError("no network")]

    def once(job: aiplatform.PipelineJob) -> Any:
        if lost:
            raise lost.pop()
        return fetch(job)

    monkeypatch.setattr(aiplatform.PipelineJob, "_sync_gca_resource", once)
    assert changes(submit("--wait")) == ["run running", "run succeeded"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (400, "error: the run continues, but its state cannot be fetched: 400 "),
        (403, "error: the run continues, but its state cannot be fetched: 403 "),
        (404, "error: there is no such run any more; it may have been deleted; "),
    ],
)
def test_waiting_ends_at_once_where_asking_again_is_of_no_use(
    vertex: FakeVertex, submit: Submit, code: int, said: str
) -> None:
    vertex.faults = [Fault("GET", "/pipelineJobs/", code=code)]
    assert said in submit("--wait", status=5)
    assert len([request for request in vertex.requests if "/pipelineJobs/" in request.path]) == 1


def watch(settings: Path, job: str) -> int:
    """The exit status of the command."""
    try:
        main(["watch", "--settings", str(settings), "--job", job])
    except SystemExit as end:
        return int(str(end.code))
    return 0


def test_a_run_is_followed_again_by_its_id_its_name_or_its_address(
    vertex: FakeVertex, submit: Submit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = submit().splitlines()[0].removeprefix("submitted ")
    job = name.rpartition("/")[2]
    console = f"https://console.cloud.google.com/vertex-ai/locations/europe-west4/pipelines/runs/{job}?project=123"
    for given, ended, status in ((job, "SUCCEEDED", 0), (name, "FAILED", 6), (console, "CANCELLED", 6)):
        vertex.states = [state("RUNNING"), state(ended)]
        assert watch(tmp_path / "settings.toml", given) == status
        assert changes(capsys.readouterr().out)[-1] == f"run {ended.lower()}"
    assert len(vertex.changes) == 1


def test_a_run_that_there_is_not_cannot_be_followed(
    vertex: FakeVertex, submit: Submit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit()
    settings = tmp_path / "settings.toml"
    for job, said, status in (
        ("mf-training-1", "error: there is no run mf-training-1 in p1, europe-west4\n", 2),
        ("Nightly run!", "error: job: found 'Nightly run!', expected a run as `make submit` prints it: ", 2),
        ("", "error: job: found '', expected a run", 2),
    ):
        assert watch(settings, job) == status
        assert capsys.readouterr().err.startswith(said)
    vertex.faults = [Fault("GET", "/pipelineJobs/", code=403)]
    assert watch(settings, "mf-training-1") == 5


def test_a_pipeline_without_a_gpu_is_submitted_and_asked_for_none(
    vertex: FakeVertex, submit: Submit, tmp_path: Path
) -> None:
    file, more = tmp_path / "cpu.yaml", "[parameters]\ntrain_accelerator_count = 0\n"
    settings = SETTINGS | {"region": "asia-northeast2"}
    compile_pipeline(Settings.of(**settings, parameters={"train_accelerator_count": 0}), file)
    said = submit("train_accelerator_count=0", "epochs=2", settings=settings, more=more, file=file)
    assert re.search(r"^  train     8 CPU, 32G, no GPU: about 2 s per epoch ", said, re.MULTILINE)
    assert vertex.changes[-1].body["runtimeConfig"]["parameterValues"] == {"epochs": 2}
    for given in ("train_accelerator_count=1", "train_accelerator_type=NVIDIA_L4"):
        said = submit(given, settings=settings, more=more, file=file, status=2)
        assert said.startswith(
            f"error: {given.partition('=')[0]}: found in the run, and the pipeline was compiled without a"
        )
    assert len(vertex.changes) == 1


def test_a_run_belongs_to_the_experiment_of_the_settings(vertex: FakeVertex, submit: Submit) -> None:
    said = submit(settings=SETTINGS | {"experiment": "nightly"})
    run = said.splitlines()[0].rpartition("/")[2]
    experiment = vertex.contexts["nightly"]
    assert experiment["schemaTitle"] == "system.Experiment"
    assert [child.rpartition("/")[2] for child in experiment["children"]] == [run]
    (job,) = [request.body for request in vertex.changes if request.path.endswith("/pipelineJobs")]
    assert job["displayName"] == "nightly"


def test_a_run_whose_experiment_fails_afterwards_is_not_said_to_have_failed(vertex: FakeVertex, submit: Submit) -> None:
    vertex.faults = [Fault("POST", "addContextChildren", code=403)]
    said = submit(settings=SETTINGS | {"experiment": "nightly"})
    assert re.search(r"^the run is started, but is not part of the experiment nightly: ", said, re.MULTILINE)
    assert re.search(r"^submitted projects/", said, re.MULTILINE)
    vertex.changes.clear()
    vertex.faults = [Fault("GET", "/metadataStores", code=403)]
    said = submit(settings=SETTINGS | {"experiment": "other"}, status=4)
    assert said.startswith("error: the run is not started: Experiment other could not be found or created")


def test_waiting_gives_up_after_a_long_outage_and_says_that_the_run_continues(
    vertex: FakeVertex, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines_follow, "MAX_FAILED_POLLS", 3)
    monkeypatch.setattr(base, "_DEFAULT_RETRY", None)  # the SDK would retry for two minutes
    vertex.faults = [Fault("GET", "/pipelineJobs/", times=99)]
    said = submit("--wait", status=5)
    assert "error: the run continues, but its state cannot be fetched: 503 " in said
    assert re.search(r"; to follow it again: make watch SETTINGS=\S+ JOB=mf-training-\d+\n$", said)
    assert len([request for request in vertex.requests if "/pipelineJobs/" in request.path]) == 3


def test_ctrl_c_stops_following_and_not_the_run(vertex: FakeVertex, submit: Submit) -> None:
    vertex.states = [state("RUNNING")]

    def interrupt(request: Request) -> None:
        if request.method == "GET" and "/pipelineJobs/" in request.path:
            signal.raise_signal(signal.SIGINT)

    vertex.on_request = interrupt
    said = submit("--wait", status=130)
    assert "stopped following; the run continues: https://console.cloud.google.com/vertex-ai/" in said
    assert len(vertex.changes) == 1
