"""GPUs, machine types and regions of Vertex AI.

The tables come from Google's documentation: Compute Engine's GPU machine types and Vertex AI's limits of a pipeline
step. The regions of a GPU were compared in November 2026 with a public catalogue of Compute Engine's zones (SkyPilot's,
version 8). A region is listed when either source has it, since Vertex AI has no GPU where Compute Engine has none. Add
what Google has added since. A test compares the names with the SDK's.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mf.errors import ConfigError

STEPS = ("ingest", "split", "train", "evaluate", "export")
TRAIN = ("train_accelerator_type", "train_accelerator_count", "train_cpu", "train_memory")
# Limits of a pipeline step: vCPUs, and GB of memory.
MOST_CPU, MOST_MEMORY = 96, 624
_BYTES = {"M": 1e6, "G": 1e9, "T": 1e12, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def _regions(names: str) -> frozenset[str]:
    return frozenset(names.split())


def is_region(name: str) -> bool:
    """Whether Vertex AI has a region of this name."""
    # The SDK's list comes second: importing the SDK takes two seconds.
    return any(name in gpu.regions for gpu in GPUS.values()) or name in all_regions()


def all_regions() -> list[str]:
    """The regions of Vertex AI, as its SDK lists them."""
    from google.cloud.aiplatform.constants.base import SUPPORTED_REGIONS

    return sorted(SUPPORTED_REGIONS - {"global"})


class Machine(NamedTuple):
    """A machine type: vCPUs, and memory in GB (2**30 bytes)."""

    name: str
    cpu: int
    memory: float


class Gpu(NamedTuple):
    """A GPU: machine types by number of GPUs, the smallest first, and regions (empty: not known)."""

    machines: Mapping[int, tuple[Machine, ...]]
    regions: frozenset[str] = frozenset()


def _n1(most_cpu: int) -> tuple[Machine, ...]:
    sizes = [cpu for cpu in (4, 8, 16, 32, 64, 96) if cpu <= most_cpu]
    kinds = {"standard": 3.75, "highmem": 6.5}
    return tuple(Machine(f"n1-{kind}-{cpu}", cpu, cpu * memory) for cpu in sizes for kind, memory in kinds.items())


def _g2(*sizes: int) -> tuple[Machine, ...]:
    return tuple(Machine(f"g2-standard-{cpu}", cpu, 4 * cpu) for cpu in sizes)


def _one(name: str, cpu: int, memory: int) -> tuple[Machine, ...]:
    return (Machine(name, cpu, memory),)


GPUS = {
    "NVIDIA_TESLA_T4": Gpu(
        {1: _n1(48), 2: _n1(48), 4: _n1(96)},
        _regions(
            """
            asia-east1 asia-east2 asia-northeast1 asia-northeast3 asia-south1 asia-southeast1 asia-southeast2
            australia-southeast1 europe-central2 europe-west1 europe-west2 europe-west3 europe-west4 me-west1
            northamerica-northeast1 southamerica-east1 us-central1 us-east1 us-east4 us-west1 us-west2 us-west3 us-west4
            """
        ),
    ),
    "NVIDIA_L4": Gpu(
        {1: _g2(4, 8, 12, 16, 32), 2: _g2(24), 4: _g2(48), 8: _g2(96)},
        _regions(
            """
            asia-east1 asia-northeast1 asia-northeast3 asia-south1 asia-southeast1 australia-southeast1 europe-west1
            europe-west2 europe-west3 europe-west4 europe-west6 me-central2 northamerica-northeast1
            northamerica-northeast2 us-central1 us-east1 us-east4 us-east5 us-west1 us-west3 us-west4
            """
        ),
    ),
    "NVIDIA_TESLA_A100": Gpu(
        {
            **{n: _one(f"a2-highgpu-{n}g", 12 * n, 85 * n) for n in (1, 2, 4, 8)},
            16: _one("a2-megagpu-16g", 96, 1360),
        },
        _regions(
            """
            asia-northeast1 asia-northeast3 asia-southeast1 europe-west4 me-west1 us-central1 us-east1 us-west1 us-west3
            us-west4
            """
        ),
    ),
    "NVIDIA_A100_80GB": Gpu(
        {n: _one(f"a2-ultragpu-{n}g", 12 * n, 170 * n) for n in (1, 2, 4, 8)},
        _regions("asia-southeast1 europe-west4 us-central1 us-east4 us-east5 us-east7"),
    ),
    "NVIDIA_H100_80GB": Gpu({n: _one(f"a3-highgpu-{n}g", 26 * n, 234 * n) for n in (1, 2, 4, 8)}),
    "NVIDIA_H100_MEGA_80GB": Gpu({8: _one("a3-megagpu-8g", 208, 1872)}),
    "NVIDIA_H200_141GB": Gpu({8: _one("a3-ultragpu-8g", 224, 2952)}),
    "NVIDIA_B200": Gpu({8: _one("a4-highgpu-8g", 224, 3968)}),
    "NVIDIA_GB200": Gpu({4: _one("a4x-highgpu-4g", 140, 884)}),
    "NVIDIA_RTX_PRO_6000": Gpu({n: _one(f"g4-standard-{48 * n}", 48 * n, 180 * n) for n in (1, 2, 4, 8)}),
    "NVIDIA_TESLA_V100": Gpu(
        {1: _n1(12), 2: _n1(24), 4: _n1(48), 8: _n1(96)},
        _regions("asia-east1 europe-west4 us-central1 us-east1 us-west1"),
    ),
    "NVIDIA_TESLA_P100": Gpu(
        {1: _n1(16), 2: _n1(32), 4: _n1(96)},
        _regions("asia-east1 australia-southeast1 europe-west1 europe-west4 us-central1 us-east1 us-west1"),
    ),
    "NVIDIA_TESLA_P4": Gpu(
        {1: _n1(24), 2: _n1(48), 4: _n1(96)},
        _regions(
            """
            asia-southeast1 australia-southeast1 europe-west4 northamerica-northeast1 us-central1 us-east4 us-west2
            """
        ),
    ),
}


def check(parameters: Mapping[str, Any], region: str = "") -> None:
    """Refuses here what Vertex AI would refuse when a step's turn came.

    Args:
        parameters: all of the pipeline's, ``train_accelerator_type``, ``ingest_cpu``, ``ingest_memory`` … among them.
        region: of the run; empty: whether it has the GPU is not checked.

    Raises:
        ConfigError: there is no such GPU or machine, or not there; names those that there are.
    """
    for step in STEPS:
        cpu, memory = _cpu(f"{step}_cpu", parameters), _memory(f"{step}_memory", parameters)
        if cpu > MOST_CPU:
            raise ConfigError(f"{step}_cpu: found {parameters[f'{step}_cpu']}, a step has at most {MOST_CPU}")
        if memory > MOST_MEMORY:
            raise ConfigError(f"{step}_memory: found {parameters[f'{step}_memory']}, a step has at most {MOST_MEMORY}G")
    train_machine(parameters)
    name = parameters["train_accelerator_type"]
    if region and GPUS[name].regions and region not in GPUS[name].regions:
        raise ConfigError(
            f"region {region} has no {name}; those that have are {', '.join(sorted(GPUS[name].regions))}; "
            "a newer one can be added in pipelines/vertex/machines.py"
        )


def check_spot(parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuses parameters of a run that would change nothing, since the spot machine was compiled in.

    Args:
        parameters: all of the run's.
        defaults: all of the compiled pipeline's.

    Raises:
        ConfigError: the run names another GPU, CPU or memory for the train step.
    """
    if changed := [name for name in TRAIN if parameters[name] != defaults[name]]:
        raise ConfigError(
            f"{', '.join(changed)}: the train step's spot machine was settled when the pipeline was compiled, as "
            f"{train_machine(defaults).name}: set it under [parameters] in pipelines/settings.toml and run "
            "`make compile`"
        )


def train_machine(parameters: Mapping[str, Any]) -> Machine:
    """The smallest machine for the GPUs, CPU and memory of the train step.

    Raises:
        ConfigError: there is no such GPU, or none with so many of it, or with so much CPU or memory.
    """
    name, count = parameters["train_accelerator_type"], parameters["train_accelerator_count"]
    if name not in GPUS:
        raise ConfigError(f"train_accelerator_type: found {name!r}, expected one of {', '.join(GPUS)}")
    machines = GPUS[name].machines
    if count not in machines:
        counts = ", ".join(map(str, machines))
        raise ConfigError(f"train_accelerator_count: found {count:g}, a machine has {counts} of {name}")
    cpu, memory = _cpu("train_cpu", parameters), _memory("train_memory", parameters)
    for machine in machines[count]:
        if machine.cpu >= cpu and machine.memory >= memory:
            return machine
    largest = machines[count][-1]
    raise ConfigError(
        f"train_cpu {parameters['train_cpu']} and train_memory {parameters['train_memory']}: the largest machine with "
        f"{count:g} {name} has {largest.cpu} and {largest.memory:g}G ({largest.name})"
    )


def _cpu(name: str, parameters: Mapping[str, Any]) -> float:
    text = parameters[name]
    if not re.fullmatch(r"\d+(\.\d+)?|\d+m", text) or not (cpu := _number(text)):
        raise ConfigError(f"{name}: found {text!r}, expected a number of CPU cores, for example 4")
    return cpu


def _number(cpu: str) -> float:
    return int(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)


def _memory(name: str, parameters: Mapping[str, Any]) -> float:
    """In the GB of machine types, which are 2**30 bytes."""
    text = parameters[name]
    match = re.fullmatch(r"(\d+)([MGT]i?)", text)
    if not match or not int(match[1]):
        raise ConfigError(f"{name}: found {text!r}, expected an amount of memory, for example 16G")
    return int(match[1]) * _BYTES[match[2]] / 2**30
