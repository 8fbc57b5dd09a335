"""Open-source Kubeflow Pipelines: the compiled documents, and kfp.Client against a fake of its REST API."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from compiling import compile_once
from fake_kubeflow import FakeKubeflow, fake_kubeflow
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines import follow
from pipelines.__main__ import main
from pipelines.compiled import compile_pipeline
from pipelines.doctor import machine
from pipelines.settings import Settings

DIGEST = f"@sha256:{'0' * 64}"
SETTINGS = {
    "target": "kubeflow",
    "pipeline_root": "minio://mlpipeline/mf",
    "service_account": "pipeline-runner",
    "image_repository": "registry.example/mf",
    "cpu_image": f"registry.example/mf/mf-python-cpu{DIGEST}",
    "gpu_image": f"registry.example/mf/mf-python-gpu{DIGEST}",
    "supabase_url": "https://example.supabase.co",
    "kubernetes_secret": "supabase",
    "experiment": "nightly",
}
Run = Callable[..., str]
Doctor = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("compiled") / "mf-training-kubeflow.yaml"
    compile_pipeline(Settings.of(**SETTINGS), file)
    return file


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubeflow]:
    compile_once(monkeypatch)
    monkeypatch.setattr(follow, "POLL_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with fake_kubeflow() as fake:
        yield fake


@pytest.fixture
def run(kubeflow: FakeKubeflow, tmp_path: Path, compiled: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command, which must exit with ``status``, and returns its output."""

    def call(command: str, *words: str, status: int = 0, file: Path | None = compiled, **other: str) -> str:
        toml = tmp_path / "settings.toml"
        settings = {**SETTINGS, "kubeflow_host": kubeflow.url, **other}
        toml.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
        files = ["--file", str(file)] if file and command in ("submit", "schedule") else []
        try:
            main([command, "--settings", str(toml), *files, *words])
            ended: Any = 0
        except SystemExit as end:
            ended = end.code
        printed = capsys.readouterr()
        assert ended == status, printed
        return printed.out + printed.err

    return call


def test_the_file_is_two_documents_that_the_packages_read(compiled: Path) -> None:
    pipeline, platforms = yaml.safe_load_all(compiled.read_text())
    spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    assert spec.pipeline_info.name == "mf-training"
    parsed = json_format.ParseDict(platforms, pipeline_spec_pb2.PlatformSpec())
    pods = {
        name.removeprefix("exec-"): json_format.ParseDict(
            json_format.MessageToDict(config), kubernetes_executor_config_pb2.KubernetesExecutorConfig()
        )
        for name, config in parsed.platforms["kubernetes"].deployment_spec.executors.items()
    }
    assert {pod.pod_metadata.labels["app.kubernetes.io/part-of"] for pod in pods.values()} == {"mf-training"}
    given = {
        step: {
            one.key_to_env[0].env_var: (one.secret_name_parameter.runtime_value.constant.string_value, one.optional)
            for one in pod.secret_as_env
        }
        for step, pod in pods.items()
    }
    supabase = {"SUPABASE_KEY": ("supabase", False), "SUPABASE_DB_URL": ("supabase", True)}
    assert given["split"] == given["train"] == {}
    assert given["evaluate"] == given["export"] == supabase
    assert given["ingest"].items() > supabase.items()
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"} < given["ingest"].keys()


def test_the_gpu_is_a_resource_of_kubernetes(compiled: Path, tmp_path: Path) -> None:
    pipeline, _ = yaml.safe_load_all(compiled.read_text())
    assert (
        pipeline["root"]["inputDefinitions"]["parameters"]["train_accelerator_type"]["defaultValue"] == "nvidia.com/gpu"
    )
    inputs = pipeline["root"]["dag"]["tasks"]["ingest"]["inputs"]["parameters"]
    assert [*inputs["gpus"]["runtimeValue"]["constant"]] == ["nvidia.com/gpu"]
    assert "SUPABASE_KEY_SECRET" not in compiled.read_text().split("deploymentSpec:")[0]
    compile_pipeline(Settings.of(**SETTINGS, parameters={"train_accelerator_count": 0}), tmp_path / "cpu.yaml")
    cpu, _ = yaml.safe_load_all((tmp_path / "cpu.yaml").read_text())
    assert "accelerator" not in cpu["deploymentSpec"]["executors"]["exec-train"]["container"]["resources"]


def test_a_run_is_started_with_its_parameters_and_both_documents(kubeflow: FakeKubeflow, run: Run) -> None:
    said = run("submit", "--param=epochs=3", "--param=ratings_csv=s3://data/r.csv")
    ((method, _, body),) = [change for change in kubeflow.changes if change[1] == "/runs"]
    assert method == "POST"
    assert body["runtime_config"]["parameters"] == {"epochs": 3, "ratings_csv": "s3://data/r.csv"}
    assert body["runtime_config"]["pipeline_root"] == "minio://mlpipeline/mf"
    assert body["service_account"] == "pipeline-runner"
    assert body["pipeline_spec"].keys() == {"pipeline_spec", "platform_spec"}
    assert [one["display_name"] for one in kubeflow.experiments.values()] == ["nightly"]
    (key,) = kubeflow.runs
    lines = said.splitlines()
    assert lines[0] == f"submitted {key}"
    assert "  train     8 CPU, 32G, 1 nvidia.com/gpu" in lines
    assert lines[-1].startswith("note      a step whose pod is killed starts over")


def test_a_run_is_followed_and_followed_again(kubeflow: FakeKubeflow, run: Run) -> None:
    train = [{"display_name": "train", "state": "RUNNING"}]
    kubeflow.states = [
        {"state": "RUNNING"},
        {"state": "RUNNING", "run_details": {"task_details": train}},
        {"state": "FAILED", "error": {"code": 2, "message": "out of\nmemory"}},
    ]
    said = run("submit", "--wait", status=6)
    assert re.findall(r"^\d\d:\d\d:\d\d  (\S+) +(.*)$", said, re.MULTILINE) == [
        ("run", "running"),
        ("train", "running"),
        ("run", "failed"),
    ]
    assert said.endswith("error: the run failed: out of memory\n")
    (key,) = kubeflow.runs
    kubeflow.states = [{"state": "SUCCEEDED"}]
    kubeflow.refused = []
    assert run("watch", "--job", key).endswith("succeeded\n")
    assert run("watch", "--job", f"9{key[1:]}", status=2).startswith("error: there is no run ")


def test_following_survives_an_outage_and_ends_where_it_may_not_read(kubeflow: FakeKubeflow, run: Run) -> None:
    run("submit")
    (key,) = kubeflow.runs
    kubeflow.states = [{"state": "RUNNING"}, {"state": "RUNNING"}, {"state": "SUCCEEDED"}]
    kubeflow.outages = [(2, 401), (4, 503)]
    assert run("watch", "--job", key).endswith("succeeded\n")
    kubeflow.refused = [(403, "not yours")]
    assert "not yours" in run("watch", "--job", key, status=5)


def test_a_refused_run_exits_with_4_and_a_missing_host_too(kubeflow: FakeKubeflow, run: Run) -> None:
    kubeflow.refused = [(403, "not allowed")] * 3
    said = run("submit", status=4)
    assert said.startswith("error: Kubeflow could not start the run: 403 ")
    assert "not allowed" in said
    assert "\n" not in said.rstrip("\n")
    kubeflow.refused = []
    assert run("submit", status=4, kubeflow_host="http://127.0.0.1:1").startswith(
        "error: Kubeflow could not be reached: "
    )
    assert kubeflow.runs == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--param=train_accelerator_type=NVIDIA_L4"],
            "error: train_accelerator_type: found 'NVIDIA_L4', expected the ",
        ),
        (["--param=train_accelerator_count=0"], "error: train_accelerator_count: found 0 in a run of a pipeline that "),
        (["--param=train_accelerator_count=17"], "error: train_accelerator_count: found 17, a machine has 1, 2, "),
        (["--param=ratings_csv=r.csv"], "error: ratings_csv: expected s3://bucket/object or gs://bucket/object, found"),
        (
            ["--param=ratings_csv=/gcs/b/r.csv"],
            "error: ratings_csv: expected s3://bucket/object or gs://bucket/object, found",
        ),
        (["--param=epoch=1"], "error: the pipeline has no parameter 'epoch'; it has "),
        (["--param=supabase_url="], "error: supabase_url is empty: "),
    ],
)
def test_a_mistake_is_one_line_before_any_request(
    kubeflow: FakeKubeflow, run: Run, words: list[str], said: str
) -> None:
    found = run("submit", *words, status=2)
    assert found.startswith(said)
    assert found.count("\n") == 1
    assert kubeflow.changes == []


def test_a_lacking_setting_and_a_file_of_the_other_target_are_refused(
    kubeflow: FakeKubeflow, run: Run, tmp_path: Path
) -> None:
    assert run("submit", status=2, kubernetes_secret="").startswith("error: the settings lack kubernetes_secret: set ")
    vertex = tmp_path / "mf-training.yaml"
    compile_pipeline(Settings.of(image_repository="registry.example/mf", image_tag="v1"), vertex)
    for command, more in (("submit", []), ("schedule", ["--cron=0 3 * * *"])):
        said = run(command, *more, status=2, file=vertex)
        assert said == (
            f"error: {vertex} is compiled for vertex, and the settings have the target kubeflow: run "
            "`make compile TARGET=kubeflow`\n"
        )
    assert kubeflow.changes == []


def test_a_recurring_run_is_replaced_by_name(kubeflow: FakeKubeflow, run: Run) -> None:
    said = run("schedule", "--cron=0 3 * * mon", "--name=nightly", "--param=epochs=2")
    (first,) = kubeflow.recurring
    assert said.startswith(f"scheduled nightly: {first}\n")
    body = kubeflow.recurring[first]
    assert body["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * mon"
    assert (body["max_concurrency"], body["no_catchup"], body["mode"]) == (1, True, "ENABLE")
    assert body["runtime_config"]["parameters"] == {"epochs": 2, "split": "hash"}
    run("schedule", "--cron=0 5 * * *", "--name=other")
    assert f"deleted   the previous one: {first}" in run("schedule", "--cron=0 4 * * *", "--name=nightly")
    assert sorted(one["display_name"] for one in kubeflow.recurring.values()) == ["nightly", "other"]
    assert "nightly  enabled  0 0 4 * * *" in run("schedules")
    run("pause", "--name=nightly")
    assert "nightly  disabled" in run("schedules")
    run("resume", "--name=nightly")
    run("unschedule", "--name=nightly")
    assert run("unschedule", "--name=nightly") == "there is no recurring run nightly\n"
    assert run("pause", "--name=nightly", status=2) == "error: there is no recurring run nightly\n"
    assert run("schedule", "--cron=0 3 * * *", "--tz=Europe/Berlin", status=2).startswith("error: time zone: found ")


@pytest.mark.parametrize(
    ("health", "said"),
    [
        ((403, {"error": "no session"}), "Kubeflow could not be reached: 403 Forbidden: no session"),
        (
            (200, b"<html>Log in</html>"),
            "Kubeflow could not be reached: the answer is not that of Kubeflow Pipelines, but ",
        ),
        (
            (502, b"<html>bad gateway</html>"),
            "Kubeflow could not be reached: 502 Bad Gateway: <html>bad gateway</html>",
        ),
    ],
)
def test_an_api_that_refuses_or_is_none_is_one_line_and_starts_nothing(
    kubeflow: FakeKubeflow, run: Run, health: tuple[int, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    kubeflow.health = health
    found = run("submit", status=4)
    assert found.startswith(f"error: {said}")
    assert (found.count("\n"), caplog.records, kubeflow.runs) == (1, [], {})


def test_a_kubeflow_of_several_users_needs_the_namespace(kubeflow: FakeKubeflow, run: Run) -> None:
    kubeflow.health = (200, {"multi_user": True})
    assert run("submit", status=2).startswith("error: kubeflow_namespace is empty in ")
    assert run("submit", kubeflow_namespace="me").startswith("submitted ")


def test_following_ends_when_the_session_does(
    kubeflow: FakeKubeflow, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy sends its login page with the status 200, which kfp takes for a run without a state."""
    monkeypatch.setattr(follow, "MAX_FAILED_POLLS", 2)
    run("submit")
    (key,) = kubeflow.runs
    kubeflow.states = [{"state": "RUNNING"}]
    get = kubeflow._runs

    def expiring(*call: Any) -> Any:
        if kubeflow.health[1] == b"<html>Log in</html>":
            return kubeflow.health
        kubeflow.health = (200, b"<html>Log in</html>") if len(seen) else kubeflow.health
        seen.append(call)
        return get(*call)

    seen: list[Any] = []
    monkeypatch.setattr(kubeflow, "_runs", expiring)
    said = run("watch", "--job", key, status=5)
    assert "error: the run continues, but its state cannot be fetched: the answer is not that of Kubeflow Pip" in said
    assert re.search(rf"; to follow it again: make watch SETTINGS=\S+ JOB={key}\n$", said)


def test_without_a_host_and_without_kubectl_the_setting_is_named(
    kubeflow: FakeKubeflow, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "/nowhere/config")
    said = run("submit", status=2, kubeflow_host="")
    assert said.startswith("error: kubeflow_host is empty, and neither ")
    assert "kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80" in said


KUBE_CONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: here, user: me}}]
clusters: [{name: here, cluster: {server: "URL"}}]
users: [{name: me, user: {token: planted-token}}]
"""
SECRET = "namespaces/kubeflow/secrets/supabase"
CREATE = (
    'read -rs KEY && printf %s "$KEY" | '
    "kubectl -n kubeflow create secret generic supabase --from-file=SUPABASE_KEY=/dev/stdin"
)


@pytest.fixture
def doctor(
    kubeflow: FakeKubeflow, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, str]]:
    """Runs the doctor and returns its lines by check. Supabase does not answer there."""
    (tmp_path / "kubeconfig").write_text(KUBE_CONFIG.replace("URL", kubeflow.url))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(machine, "checks", list)
    for name in ("SUPABASE_URL", "SUPABASE_KEY", "SUPABASE_DB_URL"):
        monkeypatch.delenv(name, raising=False)
    kubeflow.objects = {
        SECRET: {"data": {"SUPABASE_KEY": base64.b64encode(b"sb_secret_planted").decode()}},
        "namespaces/kubeflow/serviceaccounts/pipeline-runner": {"metadata": {"name": "pipeline-runner"}},
        "nodes": {"items": [{"status": {"allocatable": {"nvidia.com/gpu": "2", "cpu": "7910m"}}}, {"status": {}}]},
    }

    def examine(status: int = 1, **changed: Any) -> dict[str, str]:
        said = run("doctor", status=status, supabase_url="http://127.0.0.1:1", **changed)
        assert "planted" not in said
        return {line[9:].partition(": ")[0]: line for line in said.splitlines()}

    return examine


def test_the_doctor_finds_what_a_run_needs(doctor: Doctor, kubeflow: FakeKubeflow) -> None:
    lines = doctor()
    assert [line for line in lines.values() if not line.startswith("ok ")] == [
        "missing  Supabase: http://127.0.0.1:1 does not answer: correct supabase_url, or look at the project's "
        "dashboard: is it paused?",
        "unknown  migration, grants, table of ratings: they need a project that accepts the key",
    ]
    assert lines["Kubeflow Pipelines"] == (
        f"ok       Kubeflow Pipelines: {kubeflow.url} answers; there may be no experiment nightly yet: the first run "
        "creates it"
    )
    assert lines["secret"] == "ok       secret: supabase has SUPABASE_KEY"
    assert lines["GPU"] == "ok       GPU: 1 of 2 nodes have 1 nvidia.com/gpu or more"
    assert re.fullmatch(r"ok       kfp-kubernetes: 2\.\S+", lines["kfp-kubernetes"])
    assert lines["pipeline root"].startswith(
        "ok       pipeline root: minio://mlpipeline/mf; whether the pods may write "
    )
    assert kubeflow.changes == []


@pytest.mark.parametrize(
    ("path", "found", "changed", "check", "said"),
    [
        (SECRET, 404, {}, "secret", f"missing  secret: there is no supabase in the namespace kubeflow: {CREATE}"),
        (SECRET, 403, {}, "secret", "unknown  secret: Kubernetes answered 403 Forbidden"),
        (
            SECRET,
            {"data": {"SUPABASE_URL": "eA=="}},
            {},
            "secret",
            "missing  secret: supabase has no SUPABASE_KEY: kubectl -n kubeflow delete secret supabase && " + CREATE,
        ),
        ("nodes", 403, {}, "GPU", "unknown  GPU: Kubernetes answered 403 Forbidden"),
        (
            "nodes",
            {"items": [{"status": {"allocatable": {"nvidia.com/mig-1g.10gb": "7"}}}]},
            {},
            "GPU",
            "unknown  GPU: none of 1 nodes has 1 nvidia.com/gpu now, but there is nvidia.com/mig-1g.10gb: the ",
        ),
        (
            "",
            {},
            {"service_account": "other"},
            "service account",
            "missing  service account: there is no other in the ",
        ),
        ("", {}, {"kubernetes_secret": ""}, "secret", "unknown  secret: the settings have no kubernetes_secret"),
        ("", {}, {"kubernetes_secret": ""}, "settings", "missing  settings: "),
        ("", {}, {"project": "p1"}, "settings", "missing  settings: "),
        (
            "",
            {},
            {"kubeflow_host": "http://127.0.0.1:1"},
            "Kubeflow Pipelines",
            "missing  Kubeflow Pipelines: Kubeflow could not be reached: ",
        ),
    ],
)
def test_what_a_cluster_lacks_is_one_line(
    doctor: Doctor, kubeflow: FakeKubeflow,
    path: str, found: Any, changed: dict[str, str], check: str, said: str,
) -> None:  # fmt: skip
    kubeflow.objects[path] = found
    status = 0 if (path, found) == (SECRET, 403) else 1  # Supabase is not looked at without a key
    assert doctor(status, **changed)[check].startswith(said)
