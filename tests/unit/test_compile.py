"""The compiled pipeline, from settings that do not change."""

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.json_format import MessageToDict

from mf.errors import ConfigError
from pipelines.__main__ import main
from pipelines.compiled import check_current, compile_pipeline, definitions, definitions_in
from pipelines.settings import Settings
from pipelines.training import build

ROOT = Path(__file__).parents[2]
GOLDEN, SETTINGS = ROOT / "tests/golden/mf-training.yaml", ROOT / "tests/golden/settings.toml"
REWRITE = (
    "when the change is meant, write the golden copy anew: "
    "python -m pipelines compile --settings tests/golden/settings.toml --file tests/golden/mf-training.yaml"
)
STEPS = ["ingest", "split", "train", "evaluate", "export"]
SECRETIVE = re.compile("secret|password|token|credential|(^|_)key($|_(?!columns))")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("compiled") / "mf-training.yaml"
    compile_pipeline(Settings.load(SETTINGS), file)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    return file.read_bytes()


@pytest.fixture(scope="module")
def pipeline(compiled: bytes) -> dict[str, Any]:
    (document,) = yaml.safe_load_all(compiled)
    assert isinstance(document, dict)
    return document


def executors(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step: pipeline["deploymentSpec"]["executors"][f"exec-{step}"]["container"] for step in STEPS}


def tasks(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those of the root, and the one that stands under the condition."""
    (group,) = [name for name in pipeline["root"]["dag"]["tasks"] if name not in STEPS]
    return pipeline["root"]["dag"]["tasks"] | pipeline["components"][f"comp-{group}"]["dag"]["tasks"]


def parameter(name: str) -> str:
    return f"{{{{$.inputs.parameters['pipelinechannel--{name}']}}}}"


def test_the_pipeline_is_the_golden_copy_to_the_byte(compiled: bytes) -> None:
    assert compiled == GOLDEN.read_bytes(), REWRITE


def test_another_process_with_another_hash_seed_writes_the_same_bytes(compiled: bytes, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "compile", "--settings", SETTINGS, "--file", tmp_path / "b.yaml"]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"wrote {tmp_path / 'b.yaml'}\n"
    assert (tmp_path / "b.yaml").read_bytes() == compiled


def test_its_name_and_tasks_are_what_others_know_them_by(pipeline: dict[str, Any]) -> None:
    assert pipeline["pipelineInfo"]["name"] == "mf-training"
    root = pipeline["root"]["dag"]["tasks"]
    assert sorted(root) == sorted([*STEPS[:-1], "condition-1"])
    for before, after in pairwise([*STEPS[:-1], "condition-1"]):
        assert before in root[after]["dependentTasks"]


def test_only_a_model_that_is_good_enough_is_exported(pipeline: dict[str, Any]) -> None:
    group = pipeline["root"]["dag"]["tasks"]["condition-1"]
    verdict = "inputs.parameter_values['pipelinechannel--evaluate-Output']"
    assert group["triggerPolicy"] == {"condition": f"{verdict} == 'publish'"}
    assert group["inputs"]["parameters"]["pipelinechannel--evaluate-Output"] == {
        "taskOutputParameter": {"outputParameterKey": "Output", "producerTask": "evaluate"}
    }
    assert group["taskInfo"]["name"] == "good-enough"
    assert [*pipeline["components"]["comp-condition-1"]["dag"]["tasks"]] == ["export", "refit"]


def test_what_lies_outside_of_the_caches_key_is_never_served_from_it(pipeline: dict[str, Any]) -> None:
    cached = {step: tasks(pipeline)[step]["cachingOptions"].get("enableCache", False) for step in STEPS}
    assert cached == {"ingest": False, "split": True, "train": True, "evaluate": False, "export": False}


def machines(pipeline: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """CPU and memory of each step."""
    resources = {step: container["resources"] for step, container in executors(pipeline).items()}
    return {step: (found["resourceCpuLimit"], found["resourceMemoryLimit"]) for step, found in resources.items()}


def test_each_steps_machine_is_the_settings_else_the_steps_own(pipeline: dict[str, Any]) -> None:
    own = {"ingest": ("4", "16G"), "split": ("4", "16G"), "train": ("8", "32G"), "evaluate": ("4", "16G")}
    assert machines(pipeline) == {**own, "export": ("2", "8G")}
    other = Settings.of(machines={"train": {"cpu": "16", "memory": "64G"}, "split": {"memory": "8G"}})
    changed = {"train": ("16", "64G"), "split": ("4", "8G"), "export": ("2", "8G")}
    assert machines(MessageToDict(build(other).pipeline_spec)) == {**own, **changed}
    assert [step for step, found in executors(pipeline).items() if "accelerator" in found["resources"]] == ["train"]


def test_train_has_one_l4_by_default(pipeline: dict[str, Any]) -> None:
    assert executors(pipeline)["train"]["resources"]["accelerator"] == {
        "resourceType": parameter("train_accelerator_type"),
        "resourceCount": parameter("train_accelerator_count"),
    }
    inputs = pipeline["root"]["inputDefinitions"]["parameters"]
    assert inputs["train_accelerator_type"]["defaultValue"] == "NVIDIA_L4"
    assert inputs["train_accelerator_count"]["defaultValue"] == 1


def test_train_runs_in_the_gpu_image_and_every_other_step_in_the_cpu_image(pipeline: dict[str, Any]) -> None:
    images = {step: container["image"] for step, container in executors(pipeline).items()}
    registry = "europe-west4-docker.pkg.dev/golden-project/mf/mf-python"
    assert images == {step: f"{registry}-{'gpu' if step == 'train' else 'cpu'}:golden" for step in STEPS}


@pytest.mark.parametrize("spot", [False, True])
def test_without_a_gpu_train_runs_in_the_cpu_image_and_no_parameter_asks_for_one(tmp_path: Path, spot: bool) -> None:
    file = tmp_path / "cpu.yaml"
    other = {"parameters": {"train_accelerator_count": 0}, "region": "asia-northeast2", "spot": spot}
    settings = Settings.load(SETTINGS, {}).model_copy(update=other)
    compile_pipeline(settings, file)
    text, pipeline = file.read_text(), yaml.safe_load(file.read_text())
    assert {*definitions()} - {*definitions_in(file)} == {"train_accelerator_type", "train_accelerator_count"}
    assert "mf-python-gpu" not in text
    assert "accelerator" not in executors(pipeline)["train"].get("resources", {})
    assert "pipelinechannel--train_accelerator" not in text
    given = pipeline["root"]["dag"]["tasks"]["train"]["inputs"]["parameters"]["train_accelerator_count"]
    assert given == {"runtimeValue": {"constant": 0.0}}
    inputs = pipeline["root"]["dag"]["tasks"]["ingest"]["inputs"]["parameters"]
    assert [inputs[name]["runtimeValue"]["constant"] for name in ("gpus", "train_accelerator_count")] == [{}, 0.0]
    if spot:
        pools = pipeline["components"]["comp-train"]["inputDefinitions"]["parameters"]["worker_pool_specs"]
        assert pools["defaultValue"][0]["machine_spec"] == {"machine_type": "e2-standard-8"}


def test_the_first_step_is_told_the_one_machine_of_spot() -> None:
    pipeline = MessageToDict(build(Settings(spot=True)).pipeline_spec)
    gpus = pipeline["root"]["dag"]["tasks"]["ingest"]["inputs"]["parameters"]["gpus"]["runtimeValue"]["constant"]
    assert gpus == {"NVIDIA_L4": [1]}


@pytest.mark.parametrize("settings", [{"project": "p1"}, {"pipeline_root": "gs://b1/a"}, {"image_repository": "me/mf"}])
def test_settings_of_a_project_without_a_registry_do_not_compile(tmp_path: Path, settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"image_repository(: found 'me/mf', which names| is empty: set it)"):
        compile_pipeline(Settings.of(**settings), tmp_path / "a.yaml")
    assert [*tmp_path.iterdir()] == []


def test_untouched_settings_compile_to_images_that_nobody_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MF_IMAGE_TAG", "v1")
    main(["compile", "--file", str(tmp_path / "a.yaml")])
    (pipeline,) = yaml.safe_load_all((tmp_path / "a.yaml").read_text())
    images = {container["image"] for container in executors(pipeline).values()}
    assert images == {f"image-repository-is-not-set.invalid/mf-python-{kind}:v1" for kind in ("cpu", "gpu")}
    assert "names no registry of images yet, so this file can be read and not run" in capsys.readouterr().err


def test_images_are_named_by_digest_when_the_settings_have_one() -> None:
    digest = f"@sha256:{'0' * 64}"
    images = {"cpu_image": f"r/cpu{digest}", "gpu_image": f"r/gpu{digest}"}
    container = executors(MessageToDict(build(Settings(**images)).pipeline_spec))
    found = {step: container[step]["image"] for step in STEPS}
    assert found == {step: images["gpu_image" if step == "train" else "cpu_image"] for step in STEPS}


def test_the_settings_say_other_defaults(tmp_path: Path) -> None:
    file, before = tmp_path / "other.yaml", definitions_in(GOLDEN)
    other = {"train_accelerator_count": 4, "epochs": 3, "hnsw_index": True, "solver_options": {"patience": 1}}
    compile_pipeline(Settings.load(SETTINGS, {}).model_copy(update={"parameters": other}), file)
    changed = {name: found["defaultValue"] for name, found in definitions_in(file).items() if found != before[name]}
    assert changed == other


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"epoch": 3}, "the pipeline has no parameter 'epoch'; it has "),
        ({"epochs": "many"}, "parameter epochs: expected a whole number, found 'many'"),
        ({"val_size": 2}, "val_size: Input should be less than 1"),
        ({"train_accelerator_count": 3}, "train_accelerator_count: found 3, a machine has 1, 2, 4, 8 of NVIDIA_L4"),
        ({"columns": "sb_secret_hunter2"}, "parameter columns looks like a Supabase secret key"),
        ({"train_accelerator_type": "NVIDIA_TESLA_A100"}, "region europe-west6 has no NVIDIA_TESLA_A100; those that"),
        ({"train_accelerator_type": "NVIDIA_TESLA_V100"}, "train_accelerator_type: PyTorch's build cu130 has no code"),
        (
            {"ratings_csv": "r.csv"},
            "ratings_csv: expected gs://bucket/object, found 'r.csv', which the steps cannot read",
        ),
        ({"train_accelerator_count": -1}, "train_accelerator_count: found -1, a machine has 1, 2, 4, 8 of NVIDIA_L4"),
    ],
)
def test_a_default_that_cannot_be_is_refused_as_a_parameter_of_a_run_is(
    tmp_path: Path, parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        compile_pipeline(Settings(region="europe-west6", parameters=parameters), tmp_path / "a.yaml")
    assert str(error.value).startswith(f"the settings: {said}")
    assert [*tmp_path.iterdir()] == []


def test_a_machine_of_a_step_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        compile_pipeline(Settings.of(machines={"trian": {"cpu": "4"}}), tmp_path / "a.yaml")
    steps = "ingest, split, train, evaluate, export, register, notify"
    assert str(error.value) == f"the settings: machines: there is no step 'trian'; the steps are {steps}"


def test_the_secrets_names_go_to_the_steps_that_speak_to_supabase(pipeline: dict[str, Any]) -> None:
    secrets = {"SUPABASE_KEY_SECRET": "supabase-key", "SUPABASE_DB_URL_SECRET": "supabase-db-url"}
    names = [
        {"name": variable, "value": f"projects/golden-project/secrets/{secret}/versions/latest"}
        for variable, secret in secrets.items()
    ]
    given = {step: container.get("env", []) for step, container in executors(pipeline).items()}
    assert given == {step: names if step in ("ingest", "evaluate", "export") else [] for step in STEPS}


def test_without_a_secret_no_step_is_given_a_name() -> None:
    assert "SUPABASE_KEY_SECRET" in GOLDEN.read_text()
    container = executors(MessageToDict(build(Settings()).pipeline_spec))
    assert [step for step in STEPS if "env" in container[step]] == []


def test_no_parameter_is_a_secret(pipeline: dict[str, Any]) -> None:
    assert SECRETIVE.search("supabase_key")
    assert not SECRETIVE.search("key_columns")
    assert [name for name in pipeline["root"]["inputDefinitions"]["parameters"] if SECRETIVE.search(name)] == []


def test_every_parameter_reaches_a_step(pipeline: dict[str, Any]) -> None:
    reached = {
        given.get("componentInputParameter")
        for task in pipeline["root"]["dag"]["tasks"].values()
        for given in task["inputs"].get("parameters", {}).values()
    }
    assert {*pipeline["root"]["inputDefinitions"]["parameters"]} - reached == set()


def test_a_parameter_goes_to_the_input_that_bears_its_name(pipeline: dict[str, Any]) -> None:
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    for step, task in tasks(pipeline).items():
        inputs = task["inputs"]["parameters"]
        group = "pipelinechannel--" if step in ("refit", "export") else ""
        for name in inputs.keys() & parameters.keys():
            assert inputs[name] == {"componentInputParameter": f"{group}{name}"}


def test_the_first_step_gets_every_parameter_and_the_gpus_of_the_region(pipeline: dict[str, Any]) -> None:
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    inputs = pipeline["root"]["dag"]["tasks"]["ingest"]["inputs"]["parameters"]
    assert inputs.keys() == {*parameters, "gpus", "train_nodes"}
    gpus = inputs["gpus"]["runtimeValue"]["constant"]
    assert gpus["NVIDIA_L4"] == [1, 2, 4, 8]
    elsewhere = MessageToDict(build(Settings.of(region="us-west2")).pipeline_spec)
    offered = elsewhere["root"]["dag"]["tasks"]["ingest"]["inputs"]["parameters"]["gpus"]["runtimeValue"]["constant"]
    assert {"NVIDIA_TESLA_T4"} <= offered.keys() < gpus.keys() - {"NVIDIA_L4"}


def test_a_compiled_pipeline_tells_its_parameters() -> None:
    expected = definitions()
    # The one default that is the settings' to say.
    expected["supabase_url"]["defaultValue"] = "https://example.supabase.co"
    assert definitions_in(GOLDEN) == expected


@pytest.mark.parametrize("text", ["", "a: b", "[1]", "a: b: c", "\0"])
def test_a_file_that_is_no_compiled_pipeline_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        definitions_in(file)
    assert str(error.value) == f"{file} is not a compiled pipeline: run `make compile`"


def test_a_missing_file_says_which_command_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file, expected a compiled pipeline: run `make comp"):
        definitions_in(tmp_path / "none.yaml")


def test_what_the_code_and_the_settings_compile_to_is_current(compiled: bytes, tmp_path: Path) -> None:
    file = tmp_path / "now.yaml"
    file.write_bytes(compiled)
    check_current(Settings.load(SETTINGS, {}), file)


@pytest.mark.parametrize(
    ("found", "now", "difference"),
    [
        (
            "mf-python-cpu:golden",
            "mf-python-cpu:older",
            "deploymentSpec.executors.exec-evaluate.container.image is "
            "'europe-west4-docker.pkg.dev/golden-project/mf/mf-python-cpu:older', now "
            "'europe-west4-docker.pkg.dev/golden-project/mf/mf-python-cpu:golden'",
        ),
        (
            "defaultValue: NVIDIA_L4",
            "defaultValue: NVIDIA_L3",
            "root.inputDefinitions.parameters.train_accelerator_type.defaultValue is 'NVIDIA_L3', now 'NVIDIA_L4'",
        ),
        ("titles_beside", "titles", "deploymentSpec.executors.exec-evaluate.container.command differs"),
        ("      epochs:\n", "      epoch:\n", "components.comp-ingest.inputDefinitions.parameters.epoch is "),
    ],
)
def test_a_file_of_other_code_or_settings_is_refused_with_the_first_difference(
    compiled: bytes, tmp_path: Path, found: str, now: str, difference: str
) -> None:
    file, text = tmp_path / "old.yaml", compiled.decode()
    assert found in text
    file.write_text(text.replace(found, now))
    with pytest.raises(ConfigError) as error:
        check_current(Settings.load(SETTINGS, {}), file)
    said = str(error.value)
    assert said.startswith(f"{file} is not what this code and these settings compile to, {difference}")
    assert said.endswith(": run `make compile`")
