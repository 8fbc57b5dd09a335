"""What the settings add to the pipeline: a spot machine, retries, the Model Registry, a final step."""

import json
from typing import Any

import pytest
from google.cloud.aiplatform_v1.types import AcceleratorType, CustomJob
from google.protobuf import json_format

from mf.errors import ConfigError
from pipelines.settings import Settings
from pipelines.training import build

STEPS = {"ingest", "split", "train", "evaluate", "refit", "export"}
GROUP = "condition-1"  # of what only a model that is good enough comes to
SETTINGS = {
    "project": "p1",
    "image_repository": "eu/p1/mf",
    "image_tag": "v1",
    "service_account": "steps@p1.iam.gserviceaccount.com",
    "network": "projects/1/global/networks/private",
    "labels": {"team": "films"},
}


def compiled(**settings: Any) -> dict[str, Any]:
    return json_format.MessageToDict(build(Settings.of(**SETTINGS, **settings)).pipeline_spec)


def tasks(pipeline: dict[str, Any]) -> dict[str, Any]:
    """All of them, those of a group too."""
    found = dict(pipeline["root"]["dag"]["tasks"])
    for component in pipeline["components"].values():
        found.update(component.get("dag", {}).get("tasks", {}))
    return found


def container(pipeline: dict[str, Any], step: str) -> dict[str, Any]:
    return dict(pipeline["deploymentSpec"]["executors"][f"exec-{step}"]["container"])


def test_the_train_step_and_those_that_speak_to_a_service_are_run_again_after_a_growing_while() -> None:
    policies = {name: task.get("retryPolicy") for name, task in tasks(compiled(retries=3, model_registry=True)).items()}
    policy = {"maxRetryCount": 3, "backoffDuration": "30s", "backoffFactor": 2.0, "backoffMaxDuration": "600s"}
    again = {"ingest", "train", "evaluate", "refit", "export", "register"}
    assert policies == {name: policy if name in again else None for name in STEPS | {GROUP, "register"}}


def test_without_retries_none_is_asked_for() -> None:
    assert [name for name, task in tasks(compiled(retries=0)).items() if "retryPolicy" in task] == []


def test_on_spot_the_step_is_a_custom_job_that_runs_the_plain_steps_command() -> None:
    plain, spot = compiled(), compiled(spot=True)
    launcher = container(spot, "train")
    assert "google-cloud-pipeline-components" in launcher["image"]
    assert "resources" not in launcher
    assert tasks(spot).keys() == STEPS | {GROUP}

    inputs = spot["components"]["comp-train"]["inputDefinitions"]["parameters"]
    (pool,) = inputs["worker_pool_specs"]["defaultValue"]
    plain_step = container(plain, "train")
    assert pool["container_spec"]["image_uri"] == "eu/p1/mf/mf-python-gpu:v1" == plain_step["image"]
    assert pool["container_spec"]["command"] == plain_step["command"]
    assert [word for word in pool["container_spec"]["args"] if word != "{{$.json_escape[1]}}"] == [
        word for word in plain_step["args"] if word != "{{$}}"
    ]
    own, theirs = (tasks(pipeline)["train"]["inputs"]["parameters"] for pipeline in (spot, plain))
    assert own == {name: value for name, value in theirs.items() if name in own}
    assert {"solver", "solver_options", "epochs", "train_accelerator_count"} <= own.keys()
    assert tasks(plain)["train"]["inputs"]["artifacts"] == tasks(spot)["train"]["inputs"]["artifacts"]
    assert (
        spot["components"]["comp-train"]["outputDefinitions"]["artifacts"]
        == plain["components"]["comp-train"]["outputDefinitions"]["artifacts"]
    )


def test_the_custom_job_is_one_that_the_api_knows_with_the_account_network_and_labels_of_the_settings() -> None:
    spot = compiled(spot=True)
    words = container(spot, "train")["args"]
    payload = words[words.index("--payload") + 1]
    parameters = spot["components"]["comp-train"]["inputDefinitions"]["parameters"]
    empty = {"LIST": [], "STRUCT": {}}
    given = {name: p.get("defaultValue", empty.get(p["parameterType"], "")) for name, p in parameters.items()}
    job = resolved(payload, given)
    message = json_format.ParseDict(job, CustomJob.pb()(), ignore_unknown_fields=False)
    assert message.job_spec.scheduling.strategy == 4  # SPOT
    assert message.job_spec.scheduling.restart_job_on_worker_restart
    (pool,) = message.job_spec.worker_pool_specs
    machine = (pool.machine_spec.machine_type, pool.machine_spec.accelerator_type, pool.machine_spec.accelerator_count)
    assert machine == ("g2-standard-8", AcceleratorType.NVIDIA_L4, 1)
    assert message.job_spec.service_account == SETTINGS["service_account"]
    assert message.job_spec.network == SETTINGS["network"]
    assert dict(message.labels) == SETTINGS["labels"]


@pytest.mark.parametrize(("spot", "strategy"), [(False, 3), (True, 4)])  # STANDARD, SPOT
def test_several_machines_are_worker_pools_that_run_the_same_command(spot: bool, strategy: int) -> None:
    pipeline = compiled(train_nodes=3, spot=spot)
    for step in ("train", "refit"):
        words = container(pipeline, step)["args"]
        parameters = pipeline["components"][f"comp-{step}"]["inputDefinitions"]["parameters"]
        empty = {"LIST": [], "STRUCT": {}}
        given = {name: p.get("defaultValue", empty.get(p["parameterType"], "")) for name, p in parameters.items()}
        job = resolved(words[words.index("--payload") + 1], given)
        message = json_format.ParseDict(job, CustomJob.pb()(), ignore_unknown_fields=False)
        assert message.job_spec.scheduling.strategy == strategy
        first, others = message.job_spec.worker_pool_specs
        assert (first.replica_count, others.replica_count) == (1, 2)
        assert first.container_spec == others.container_spec
        assert first.machine_spec == others.machine_spec
        assert first.machine_spec.machine_type == "g2-standard-8"


def test_one_machine_without_spot_is_a_plain_step() -> None:
    assert compiled(train_nodes=1) == compiled()


def resolved(text: str, values: dict[str, Any]) -> dict[str, Any]:
    """The payload as Vertex AI fills it in: a value that is a text stands in quotes already."""
    for name, value in values.items():
        placeholder = f"{{{{$.inputs.parameters['{name}']}}}}"
        quoted = isinstance(value, str) and f'"{placeholder}"' in text
        text = text.replace(placeholder, value if quoted else json.dumps(value))
    return dict(json.loads(text))


def test_the_spot_machine_is_the_smallest_for_what_the_step_asks_for() -> None:
    def machine(cpu: str = "", **parameters: Any) -> Any:
        settings = Settings.of(**SETTINGS, spot=True, machines={"train": {"cpu": cpu}})
        pipeline = json_format.MessageToDict(build(settings, parameters).pipeline_spec)
        inputs = pipeline["components"]["comp-train"]["inputDefinitions"]["parameters"]
        return inputs["worker_pool_specs"]["defaultValue"][0]["machine_spec"]["machine_type"]

    assert machine() == "g2-standard-8"
    assert machine(cpu="12") == "g2-standard-12"
    assert machine(train_accelerator_type="NVIDIA_TESLA_A100") == "a2-highgpu-1g"
    with pytest.raises(ConfigError, match=r"machines.train: found 200 .* the largest machine"):
        machine(cpu="200")


def test_a_published_model_is_registered_when_that_is_asked_for() -> None:
    pipeline = compiled(model_registry=True)
    register = tasks(pipeline)["register"]
    assert tasks(pipeline).keys() == STEPS | {GROUP, "register"}
    assert pipeline["components"][f"comp-{GROUP}"]["dag"]["tasks"].keys() == {"refit", "export", "register"}
    assert register["dependentTasks"] == ["export", "refit"]
    parameters = register["inputs"]["parameters"]
    assert parameters["run_id"]["taskOutputParameter"] == {"producerTask": "export", "outputParameterKey": "Output"}
    assert parameters["job"] == {"runtimeValue": {"constant": "{{$.pipeline_job_resource_name}}"}}
    assert parameters["image"] == {"runtimeValue": {"constant": "eu/p1/mf/mf-python-cpu:v1"}}
    assert register["cachingOptions"] == {}
    assert container(pipeline, "register")["image"] == "eu/p1/mf/mf-python-cpu:v1"


@pytest.mark.parametrize(
    "settings",
    [{}, {"model_registry": True}, {"notify_log": True}, {"notify_emails": ["a@example.com"]}, {"spot": True}],
    ids=str,
)
def test_all_that_a_task_takes_from_its_group_the_group_is_given(settings: dict[str, Any]) -> None:
    pipeline = compiled(**settings)
    taken = 0
    for group in (pipeline["root"], *pipeline["components"].values()):
        given = {**group.get("inputDefinitions", {}).get("parameters", {})}
        given |= group.get("inputDefinitions", {}).get("artifacts", {})
        for task in group.get("dag", {}).get("tasks", {}).values():
            inputs = [*task["inputs"].get("parameters", {}).values(), *task["inputs"].get("artifacts", {}).values()]
            names = {i.get("componentInputParameter") or i.get("componentInputArtifact") for i in inputs} - {None}
            assert names <= given.keys()
            taken += len(names)
    assert taken > 60


@pytest.mark.parametrize("final", ["notify", "vertex-pipelines-notification-email"])
def test_a_final_step_runs_whatever_becomes_of_the_others(final: str) -> None:
    wanted = {"notify_log": True} if final == "notify" else {"notify_emails": ["a@example.com", "b@example.com"]}
    pipeline = compiled(**wanted)
    root = pipeline["root"]["dag"]["tasks"]
    assert root.keys() == {"exit-handler-1", final}
    assert root["exit-handler-1"]["taskInfo"] == {"name": "run"}
    assert root[final]["dependentTasks"] == ["exit-handler-1"]
    assert root[final]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    (group,) = tasks(pipeline).keys() - STEPS - {"exit-handler-1", final}
    assert group.startswith("condition-")
    assert tasks(pipeline)[group]["triggerPolicy"]["condition"].endswith(" == 'publish'")
    (status,) = [p for p in root[final]["inputs"]["parameters"].values() if "taskFinalStatus" in p]
    assert status == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}
    if final != "notify":
        recipients = root[final]["inputs"]["parameters"]["recipients"]["runtimeValue"]["constant"]
        assert recipients == ["a@example.com", "b@example.com"]


def test_two_final_steps_and_no_address_are_refused() -> None:
    with pytest.raises(ConfigError, match="notify_log and notify_emails are both set"):
        Settings.of(notify_log=True, notify_emails=["a@example.com"])
    with pytest.raises(ConfigError, match=r"notify_emails"):
        Settings.of(notify_emails=["nobody"])
