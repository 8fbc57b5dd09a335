"""GPUs, machine types and regions of Vertex AI.

The tables come from Google's documentation: Compute Engine's GPU machine types and Vertex AI's limits of a pipeline
step. The regions of a GPU were compared in November 2026 with a public catalogue of Compute Engine's zones (SkyPilot's,
version 8). A region is listed when either source has it, since Vertex AI has no GPU where Compute Engine has none. Add
what Google has added since. A test compares the names with the SDK's.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from mf.errors import ConfigError
from mf.parameters import check_gpus

TRAIN = ("train_accelerator_type", "train_accelerator_count")
# Limits of a pipeline step: vCPUs, and GB of memory.
MOST_CPU, MOST_MEMORY = 96, 624
# Patterns of a step's CPU and memory.
CPU, MEMORY = r"\d*[1-9]\d*(\.\d+)?|0\.\d*[1-9]\d*|\d*[1-9]\d*m", r"\d*[1-9]\d*([MGT]i?)"
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
    """A GPU.

    Attributes:
        capability: CUDA's compute capability without its dot: 89 is 8.9.
        machines: machine types by number of GPUs, the smallest first.
        regions: those that have it; empty: not known.
        arm: its machines have ARM processors, on which no image of ours runs.
    """

    capability: int
    machines: Mapping[int, tuple[Machine, ...]]
    regions: frozenset[str] = frozenset()
    arm: bool = False


class Cuda(NamedTuple):
    """A CUDA build of PyTorch.

    Attributes:
        architectures: compute capabilities that it has machine code for.
        driver: the oldest NVIDIA driver for Linux that it runs with.
    """

    architectures: tuple[int, ...]
    driver: str

    def runs_on(self, gpu: Gpu) -> bool:
        """Whether the build has code for the GPU. Code runs on GPUs of the same major version, and not older ones."""
        return not gpu.arm and any(
            own // 10 == gpu.capability // 10 and own <= gpu.capability for own in self.architectures
        )


# The builds of torch 2.13. cu130: as torch.cuda.get_arch_list() of the locked wheel names them; cu126: as the
# case 12.6 of PyTorch's .ci/manywheel/build_cuda.sh and the support matrix of its RELEASE.md do (pytorch#182849). The
# project plans to drop cu126 in 2.15 (pytorch#190385).
CUDA_BUILDS = {
    "cu130": Cuda((75, 80, 86, 90, 100, 120), "580.65.06"),
    "cu126": Cuda((50, 60, 70, 75, 80, 86, 90), "525.60.13"),
}
DEFAULT_CUDA = "cu130"


def _n1(most_cpu: int) -> tuple[Machine, ...]:
    sizes = [cpu for cpu in (4, 8, 16, 32, 64, 96) if cpu <= most_cpu]
    kinds = {"standard": 3.75, "highmem": 6.5}
    return tuple(Machine(f"n1-{kind}-{cpu}", cpu, cpu * memory) for cpu in sizes for kind, memory in kinds.items())


def _g2(*sizes: int) -> tuple[Machine, ...]:
    return tuple(Machine(f"g2-standard-{cpu}", cpu, 4 * cpu) for cpu in sizes)


def _cpu_only() -> tuple[Machine, ...]:
    """Machines without a GPU, which every region has: E2, and N2 above E2's largest."""
    e2 = [Machine(f"e2-{kind}-{cpu}", cpu, cpu * gb) for kind, gb, sizes in (
        ("standard", 4, (4, 8, 16, 32)), ("highmem", 8, (4, 8, 16))) for cpu in sizes]  # fmt: skip
    n2 = [Machine(f"n2-{kind}-{cpu}", cpu, cpu * gb) for kind, gb in (("standard", 4), ("highmem", 8))
          for cpu in (32, 48, 64, 80, 96)]  # fmt: skip
    return tuple(sorted([*e2, *n2], key=lambda machine: machine[1:]))


def _one(name: str, cpu: int, memory: int) -> tuple[Machine, ...]:
    return (Machine(name, cpu, memory),)


GPUS = {
    "NVIDIA_TESLA_T4": Gpu(
        75,
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
        89,
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
        80,
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
        80,
        {n: _one(f"a2-ultragpu-{n}g", 12 * n, 170 * n) for n in (1, 2, 4, 8)},
        _regions("asia-southeast1 europe-west4 us-central1 us-east4 us-east5 us-east7"),
    ),
    "NVIDIA_H100_80GB": Gpu(90, {n: _one(f"a3-highgpu-{n}g", 26 * n, 234 * n) for n in (1, 2, 4, 8)}),
    "NVIDIA_H100_MEGA_80GB": Gpu(90, {8: _one("a3-megagpu-8g", 208, 1872)}),
    "NVIDIA_H200_141GB": Gpu(90, {8: _one("a3-ultragpu-8g", 224, 2952)}),
    "NVIDIA_B200": Gpu(100, {8: _one("a4-highgpu-8g", 224, 3968)}),
    "NVIDIA_GB200": Gpu(100, {4: _one("a4x-highgpu-4g", 140, 884)}, arm=True),
    "NVIDIA_RTX_PRO_6000": Gpu(120, {n: _one(f"g4-standard-{48 * n}", 48 * n, 180 * n) for n in (1, 2, 4, 8)}),
    "NVIDIA_TESLA_V100": Gpu(
        70,
        {1: _n1(12), 2: _n1(24), 4: _n1(48), 8: _n1(96)},
        _regions("asia-east1 europe-west4 us-central1 us-east1 us-west1"),
    ),
    "NVIDIA_TESLA_P100": Gpu(
        60,
        {1: _n1(16), 2: _n1(32), 4: _n1(96)},
        _regions("asia-east1 australia-southeast1 europe-west1 europe-west4 us-central1 us-east1 us-west1"),
    ),
    "NVIDIA_TESLA_P4": Gpu(
        61,
        {1: _n1(24), 2: _n1(48), 4: _n1(96)},
        _regions(
            """
            asia-southeast1 australia-southeast1 europe-west4 northamerica-northeast1 us-central1 us-east4 us-west2
            """
        ),
    ),
}


class Resources(Protocol):
    """CPU and memory of a step, as ``CPU`` and ``MEMORY`` describe them."""

    @property
    def cpu(self) -> str: ...

    @property
    def memory(self) -> str: ...


def check(
    steps: Mapping[str, Resources],
    parameters: Mapping[str, Any],
    region: str = "",
    *,
    has_gpu: bool = True,
    cuda: str = DEFAULT_CUDA,
) -> None:
    """Refuses machines that Vertex AI would refuse when a step's turn comes, and GPUs that the image cannot use.

    Args:
        steps: CPU and memory of every step.
        parameters: all of the pipeline's, ``train_accelerator_type`` and ``train_accelerator_count`` among them.
        region: of the run; empty: whether it has the GPU is not checked.
        has_gpu: the pipeline is compiled with a GPU.
        cuda: the image's build of PyTorch, one of ``CUDA_BUILDS``.

    Raises:
        ConfigError: naming every GPU and machine that does not exist or is not in the region, and what there is.
    """
    faults: list[str] = []
    for step, machine in steps.items():
        if cores(machine) > MOST_CPU:
            faults.append(f"machines.{step}.cpu: found {machine.cpu}, a step has at most {MOST_CPU}")
        if gigabytes(machine) > MOST_MEMORY:
            faults.append(f"machines.{step}.memory: found {machine.memory}, a step has at most {MOST_MEMORY}G")
    gpu = parameters["train_accelerator_type"] if has_gpu else ""
    if gpu in GPUS and not CUDA_BUILDS[cuda].runs_on(GPUS[gpu]):
        faults.append(f"train_accelerator_type: {_cannot_run(gpu, cuda)}")
        gpu = ""
    elif has_gpu:
        try:
            train_machine(steps["train"], parameters, cuda)
        except ConfigError as error:
            faults += error.faults
    if gpu in GPUS and gpu not in gpus_in(region, cuda):
        faults.append(
            f"region {region} has no {gpu}; those that have are {', '.join(sorted(GPUS[gpu].regions))}; "
            "a newer one can be added in pipelines/vertex/machines.py"
        )
    if faults:
        raise ConfigError(*faults)


def _cannot_run(name: str, cuda: str) -> str:
    """Why the image cannot use a GPU, and what to use instead."""
    gpu = GPUS[name]
    offered = f"expected one of {', '.join(gpus_in('', cuda))}"
    if gpu.arm:
        return f"the machines of {name} have ARM processors, and the images are for x86: {offered}"
    build = CUDA_BUILDS[cuda]
    able = [other for other, its in CUDA_BUILDS.items() if its.runs_on(gpu)]
    return (
        f"PyTorch's build {cuda} has no code for {name} (compute capability {gpu.capability / 10:g}; it has "
        f"{', '.join(f'{one / 10:g}' for one in build.architectures)}): {offered}"
        + (f'; or set cuda = "{able[0]}" in pipelines/settings.toml and run `make images`' if able else "")
    )


def gpus_in(region: str, cuda: str = DEFAULT_CUDA) -> dict[str, list[int]]:
    """The GPU types that may be in a region (empty: in any) and that the image can use, each with the counts in which a
    machine has it."""
    build = CUDA_BUILDS[cuda]
    return {
        name: [*gpu.machines]
        for name, gpu in GPUS.items()
        if build.runs_on(gpu) and (not region or not gpu.regions or region in gpu.regions)
    }


def check_custom_job(parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuses parameters of a run that have no effect because a custom job's machine is compiled in.

    Args:
        parameters: all of the run's.
        defaults: all of the compiled pipeline's.

    Raises:
        ConfigError: the run names other GPUs for the train step.
    """
    if changed := [name for name in TRAIN if parameters.get(name) != defaults.get(name)]:
        raise ConfigError(
            f"{', '.join(changed)}: the train step's machine was settled when the pipeline was compiled, with "
            f"{defaults['train_accelerator_count']:g} {defaults['train_accelerator_type']}: set it under [parameters] "
            "in pipelines/settings.toml and run `make compile`"
        )


def train_machine(resources: Resources, parameters: Mapping[str, Any], cuda: str = DEFAULT_CUDA) -> Machine:
    """The smallest machine for the GPUs, CPU and memory of the train step; without GPUs for a count of 0.

    Raises:
        ConfigError: there is no such GPU, or no machine with so many of it, so much CPU or so much memory.
    """
    name, count = parameters["train_accelerator_type"], parameters["train_accelerator_count"]
    machines, of = _cpu_only(), "no GPU"
    if name or count:
        check_gpus(parameters, gpus_in("", cuda))
        machines, of = GPUS[name].machines[int(count)], f"{count:g} {name}"
    for machine in machines:
        if machine.cpu >= cores(resources) and machine.memory >= gigabytes(resources):
            return machine
    largest = machines[-1]
    raise ConfigError(
        f"machines.train: found {resources.cpu} CPU cores and {resources.memory}; the largest machine with {of} has "
        f"{largest.cpu} and {largest.memory:g}G ({largest.name})"
    )


def cores(resources: Resources) -> float:
    """CPU cores; ``500m`` is half a core."""
    cpu = resources.cpu
    return int(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)


def gigabytes(resources: Resources) -> float:
    """Memory in the GB of machine types, which are 2**30 bytes."""
    number, unit = re.findall(r"\d+|[MGT]i?", resources.memory)
    return int(number) * _BYTES[unit] / 2**30
