"""GPUs of a Kubernetes cluster: resources such as ``nvidia.com/gpu``."""

import re
from collections.abc import Mapping
from typing import Any

from mf.errors import ConfigError
from mf.parameters import check_gpus

DEFAULT = "nvidia.com/gpu"
MOST = 16  # GPUs of one machine


def offered(resource: str) -> dict[str, list[int]]:
    """The GPUs that a run may ask for, each with its counts: what a cluster has is not known."""
    return {resource: [*range(1, MOST + 1)]}


def check(parameters: Mapping[str, Any], *, has_gpu: bool) -> None:
    """Refuses GPUs that no node can have: with another name the pod would wait for ever.

    Args:
        parameters: all of the pipeline's.
        has_gpu: the pipeline is compiled with a GPU.

    Raises:
        ConfigError: naming what is expected.
    """
    if not has_gpu:
        return
    name = parameters["train_accelerator_type"]
    if not re.fullmatch(r"nvidia\.com/[a-z0-9][a-z0-9.-]*", name):
        raise ConfigError(
            f"train_accelerator_type: found {name!r}, expected the name of a Kubernetes resource, {DEFAULT} or one "
            "such as nvidia.com/mig-1g.10gb: with another name the step's pod would wait for ever"
        )
    check_gpus(parameters, offered(name))
