"""GPUs, machines and regions: what Vertex AI does not have is refused by name."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from google.cloud.aiplatform.constants.base import SUPPORTED_REGIONS
from google.cloud.aiplatform_v1.types import AcceleratorType

from mf.errors import ConfigError
from pipelines.settings import Resources
from pipelines.training import NO_GPU
from pipelines.vertex import machines
from pipelines.vertex.machines import CUDA_BUILDS, DEFAULT_CUDA, GPUS, all_regions, gpus_in, is_region

STEPS = {step: Resources(cpu="4", memory="16G") for step in ("ingest", "train", "export")}
L4 = {"train_accelerator_type": "NVIDIA_L4", "train_accelerator_count": 1}


def refusal(region: str = "", steps: dict[str, Resources] = STEPS, **gpus: Any) -> str:
    with pytest.raises(ConfigError) as error:
        machines.check(steps, {**L4, **gpus}, region)
    return str(error.value)


def test_the_gpus_are_those_of_the_sdk_that_google_still_has() -> None:
    listed = {name for name in AcceleratorType.__members__ if name.startswith("NVIDIA_")}
    assert {*GPUS} == listed - {"NVIDIA_TESLA_K80"}


def test_the_regions_of_the_gpus_are_regions_of_the_sdk() -> None:
    assert {region for gpu in GPUS.values() for region in gpu.regions} <= {*all_regions()} < SUPPORTED_REGIONS


@pytest.mark.parametrize(
    ("name", "expected"),
    [("europe-west4", True), ("us-west8", True), ("global", False), ("europe-west4-a", False), ("", False)],
)
def test_a_region_is_one_with_a_known_gpu_or_one_of_the_sdk(name: str, expected: bool) -> None:
    assert is_region(name) is expected


def test_compiling_for_a_region_with_gpus_does_not_import_the_sdk() -> None:
    code = (
        "import sys, pipelines.compiled; from pipelines.settings import Settings; "
        "Settings.of(region='europe-west4'); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "google.cloud.aiplatform" not in done.stdout.split()


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        (
            {"train_accelerator_type": "L4"},
            "train_accelerator_type: found 'L4', expected one of NVIDIA_TESLA_T4, NVIDIA_L4, ",
        ),
        (
            {"train_accelerator_type": "NVIDIA_TESLA_K80"},
            "train_accelerator_type: found 'NVIDIA_TESLA_K80', expected one",
        ),
        ({"train_accelerator_count": 3}, "train_accelerator_count: found 3, a machine has 1, 2, 4, 8 of NVIDIA_L4"),
        (
            {"train_accelerator_count": 0},
            "train_accelerator_count: found 0 in a run of a pipeline that was compiled with a GPU: set it to 0 under ",
        ),
        (
            {"train_accelerator_type": "NVIDIA_TESLA_V100"},
            "train_accelerator_type: PyTorch's build cu130 has no code for NVIDIA_TESLA_V100 (compute capability 7; it "
            "has 7.5, 8, 8.6, 9, 10, 12): expected one of NVIDIA_TESLA_T4, NVIDIA_L4, ",
        ),
        (
            {"train_accelerator_type": "NVIDIA_GB200"},
            "train_accelerator_type: the machines of NVIDIA_GB200 have ARM processors, and the images are for x86: ",
        ),
    ],
)
def test_gpus_that_there_are_not_are_refused_with_those_that_there_are(gpus: dict[str, Any], said: str) -> None:
    assert refusal(**gpus).startswith(said)


@pytest.mark.parametrize(
    ("step", "machine", "said"),
    [
        (
            "train",
            {"memory": "256G"},
            "machines.train: found 4 CPU cores and 256G; the largest machine with 1 NVIDIA_L4 ",
        ),
        (
            "train",
            {"cpu": "48"},
            "machines.train: found 48 CPU cores and 16G; the largest machine with 1 NVIDIA_L4 has 32",
        ),
        ("ingest", {"cpu": "97"}, "machines.ingest.cpu: found 97, a step has at most 96"),
        ("export", {"memory": "1T"}, "machines.export.memory: found 1T, a step has at most 624G"),
    ],
)
def test_a_machine_that_there_is_not_is_refused(step: str, machine: dict[str, str], said: str) -> None:
    own = STEPS[step].model_dump()
    assert refusal(steps={**STEPS, step: Resources(**{**own, **machine})}).startswith(said)


def test_every_fault_is_named_in_one_error() -> None:
    steps = {**STEPS, "ingest": Resources(cpu="97", memory="16G")}
    said = refusal("us-west2", steps, train_accelerator_count=3)
    assert said.startswith("3 values are not valid: machines.ingest.cpu: found 97")
    assert "train_accelerator_count: found 3" in said
    assert "region us-west2 has no NVIDIA_L4" in said


def test_a_region_without_the_gpu_is_refused_with_those_that_have_it() -> None:
    said = refusal("us-west2", train_accelerator_type="NVIDIA_TESLA_A100")
    assert said.startswith("region us-west2 has no NVIDIA_TESLA_A100; those that have are asia-northeast1, ")
    assert "europe-west4" in said


def test_a_region_that_has_the_gpu_is_not_refused() -> None:
    machines.check(STEPS, L4, "northamerica-northeast1")


def test_where_a_gpu_is_not_known_to_be_is_no_reason_to_refuse_it() -> None:
    machines.check(STEPS, {**L4, "train_accelerator_type": "NVIDIA_H100_80GB"}, "europe-north2")


@pytest.mark.parametrize("cuda", CUDA_BUILDS)
def test_every_gpu_that_the_image_can_use_can_be_had_in_each_of_its_numbers(cuda: str) -> None:
    for gpu, counts in gpus_in("", cuda).items():
        for count in counts:
            machines.check(STEPS, {"train_accelerator_type": gpu, "train_accelerator_count": count}, cuda=cuda)


def test_a_gpu_is_offered_where_google_has_it_and_the_image_has_code_for_it() -> None:
    assert {*GPUS} - {*gpus_in("")} == {f"NVIDIA_{name}" for name in ("TESLA_V100", "TESLA_P100", "TESLA_P4", "GB200")}
    assert {*GPUS} - {*gpus_in("", "cu126")} == {"NVIDIA_B200", "NVIDIA_GB200", "NVIDIA_RTX_PRO_6000"}
    assert "NVIDIA_TESLA_V100" in gpus_in("europe-west4", "cu126")
    said = refusal("europe-west4", train_accelerator_type="NVIDIA_TESLA_V100")
    assert said.endswith('; or set cuda = "cu126" in pipelines/settings.toml and run `make images`')


def test_the_default_build_is_the_locked_wheels() -> None:
    """Architectures are not in a wheel's metadata: a new version of torch or CUDA needs a look at
    ``torch.cuda.get_arch_list()``."""
    lock = (Path(__file__).parents[2] / "requirements/cuda.lock").read_text()
    assert re.findall(r"^(torch|cuda-toolkit)==(\d+\.\d+)", lock, re.MULTILINE) == [
        ("cuda-toolkit", "13.0"),
        ("torch", "2.13"),
    ]
    assert DEFAULT_CUDA == "cu130"
    assert CUDA_BUILDS["cu130"] == ((75, 80, 86, 90, 100, 120), "580.65.06")
    if torch.version.cuda:  # not a CPU build
        build = CUDA_BUILDS[f"cu{torch.version.cuda.replace('.', '')}"]
        own = [int(name.removeprefix("sm_")) for name in torch.cuda.get_arch_list() if "sm_" in name]
        assert build.architectures == tuple(own)


def test_a_region_without_gpus_can_train_on_cpus() -> None:
    without = [region for region in all_regions() if not any(region in gpu.regions for gpu in GPUS.values())]
    assert len(without) >= 14
    for region in without:
        machines.check(STEPS, {**L4, "train_accelerator_count": 0}, region, has_gpu=False)
    assert machines.train_machine(STEPS["train"], NO_GPU).name == "e2-standard-4"
    assert machines.train_machine(Resources(cpu="8", memory="60G"), NO_GPU).name == "e2-highmem-8"
    assert machines.train_machine(Resources(cpu="96", memory="600G"), NO_GPU).name == "n2-highmem-96"


@pytest.mark.parametrize(
    ("machine", "gpus", "name"),
    [
        ({}, {}, "g2-standard-4"),
        ({"cpu": "8", "memory": "32G"}, {}, "g2-standard-8"),
        ({"cpu": "500m", "memory": "17Gi"}, {}, "g2-standard-8"),
        ({}, {"train_accelerator_count": 2}, "g2-standard-24"),
        ({}, {"train_accelerator_count": 1.0}, "g2-standard-4"),
        ({"memory": "128Gi"}, {}, "g2-standard-32"),
        ({}, {"train_accelerator_type": "NVIDIA_TESLA_T4"}, "n1-standard-4"),
        ({"memory": "16Gi"}, {"train_accelerator_type": "NVIDIA_TESLA_T4"}, "n1-highmem-4"),
        ({}, {"train_accelerator_type": "NVIDIA_TESLA_A100", "train_accelerator_count": 16}, "a2-megagpu-16g"),
    ],
)
def test_the_smallest_machine_that_suffices_is_taken(machine: dict[str, str], gpus: dict[str, Any], name: str) -> None:
    resources = Resources(**{"cpu": "4", "memory": "16G", **machine})
    assert machines.train_machine(resources, {**L4, **gpus}).name == name


@pytest.mark.parametrize("given", [{"train_accelerator_type": "NVIDIA_TESLA_T4"}, {"train_accelerator_count": 2}])
def test_a_spot_machine_is_settled_when_the_pipeline_is_compiled(given: dict[str, Any]) -> None:
    machines.check_custom_job(L4, L4)
    with pytest.raises(ConfigError) as error:
        machines.check_custom_job({**L4, **given}, L4)
    assert str(error.value) == (
        f"{', '.join(given)}: the train step's machine was settled when the pipeline was compiled, with 1 "
        "NVIDIA_L4: set it under [parameters] in pipelines/settings.toml and run `make compile`"
    )
