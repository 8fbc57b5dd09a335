"""GPUs, machines and regions: what Vertex AI does not have is refused by name."""

import subprocess
import sys
from typing import Any

import pytest
from google.cloud.aiplatform.constants.base import SUPPORTED_REGIONS
from google.cloud.aiplatform_v1.types import AcceleratorType

from mf.errors import ConfigError
from pipelines.vertex import machines
from pipelines.vertex.machines import GPUS, STEPS, all_regions, is_region

ASKED: dict[str, Any] = {
    **{f"{step}_cpu": "4" for step in STEPS},
    **{f"{step}_memory": "16G" for step in STEPS},
    "train_accelerator_type": "NVIDIA_L4",
    "train_accelerator_count": 1,
}


def refusal(region: str = "", **asked: Any) -> str:
    with pytest.raises(ConfigError) as error:
        machines.check({**ASKED, **asked}, region)
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
    ("asked", "said"),
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
        ({"train_accelerator_count": 0}, "train_accelerator_count: found 0, a machine has 1, 2, 4, 8 of NVIDIA_L4"),
        (
            {"train_memory": "256G"},
            "train_cpu 4 and train_memory 256G: the largest machine with 1 NVIDIA_L4 has 32 and 128G",
        ),
        (
            {"train_cpu": "48"},
            "train_cpu 48 and train_memory 16G: the largest machine with 1 NVIDIA_L4 has 32 and 128G (",
        ),
        ({"ingest_cpu": "97"}, "ingest_cpu: found 97, a step has at most 96"),
        ({"export_memory": "1T"}, "export_memory: found 1T, a step has at most 624G"),
        ({"split_cpu": "four"}, "split_cpu: found 'four', expected a number of CPU cores, for example 4"),
        ({"split_cpu": "0"}, "split_cpu: found '0', expected"),
        ({"split_memory": "16"}, "split_memory: found '16', expected an amount of memory, for example 16G"),
        ({"split_memory": "0G"}, "split_memory: found '0G', expected"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(asked: dict[str, Any], said: str) -> None:
    assert refusal(**asked).startswith(said)


def test_a_region_without_the_gpu_is_refused_with_those_that_have_it() -> None:
    said = refusal("us-west2", train_accelerator_type="NVIDIA_TESLA_A100")
    assert said.startswith("region us-west2 has no NVIDIA_TESLA_A100; those that have are asia-northeast1, ")
    assert "europe-west4" in said


def test_a_region_that_has_the_gpu_is_not_refused() -> None:
    machines.check(ASKED, "northamerica-northeast1")


def test_where_a_gpu_is_not_known_to_be_is_no_reason_to_refuse_it() -> None:
    machines.check({**ASKED, "train_accelerator_type": "NVIDIA_H100_80GB"}, "europe-north2")


@pytest.mark.parametrize("gpu", GPUS)
def test_every_gpu_can_be_had_in_each_of_its_numbers(gpu: str) -> None:
    for count in GPUS[gpu].machines:
        asked = {"train_accelerator_type": gpu, "train_accelerator_count": count}
        machines.check({**ASKED, **asked})


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({}, "g2-standard-4"),
        ({"train_cpu": "8", "train_memory": "32G"}, "g2-standard-8"),
        ({"train_cpu": "500m", "train_memory": "17Gi"}, "g2-standard-8"),
        ({"train_accelerator_count": 2}, "g2-standard-24"),
        ({"train_accelerator_count": 1.0}, "g2-standard-4"),
        ({"train_memory": "128Gi"}, "g2-standard-32"),
        ({"train_accelerator_type": "NVIDIA_TESLA_T4"}, "n1-standard-4"),
        ({"train_accelerator_type": "NVIDIA_TESLA_T4", "train_memory": "16Gi"}, "n1-highmem-4"),
        ({"train_accelerator_type": "NVIDIA_TESLA_A100", "train_accelerator_count": 16}, "a2-megagpu-16g"),
    ],
)
def test_the_smallest_machine_that_has_what_is_asked_for_is_taken(asked: dict[str, Any], name: str) -> None:
    assert machines.train_machine({**ASKED, **asked}).name == name


@pytest.mark.parametrize(
    "given",
    [
        {"train_accelerator_type": "NVIDIA_TESLA_T4"},
        {"train_accelerator_count": 2},
        {"train_cpu": "8"},
        {"train_memory": "17G"},
        {"train_cpu": "3"},  # another machine or not: it would not be heard
        {"train_cpu": "8", "train_memory": "17G"},
    ],
)
def test_a_spot_machine_is_settled_when_the_pipeline_is_compiled(given: dict[str, Any]) -> None:
    machines.check_spot(ASKED, ASKED)
    with pytest.raises(ConfigError) as error:
        machines.check_spot({**ASKED, **given}, ASKED)
    assert str(error.value) == (
        f"{', '.join(given)}: the train step's spot machine was settled when the pipeline was compiled, as "
        "g2-standard-4: set it under [parameters] in pipelines/settings.toml and run `make compile`"
    )
