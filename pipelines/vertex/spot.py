"""The train step on a machine that Google may take back at any time, for a fraction of the price."""

from collections.abc import Mapping
from typing import Any

from kfp import dsl

import components
from pipelines.settings import Settings
from pipelines.vertex.machines import train_machine


def train_on_spot(settings: Settings, machine: Mapping[str, Any]) -> Any:
    """The component ``train``, its inputs and outputs, as a Vertex custom job: unlike a step of a pipeline it may run
    on a spot machine, and unlike a step's its machine is settled when the pipeline is compiled.

    Args:
        settings: the account, network and labels of the job, which does not take them from the pipeline's run.
        machine: ``train_accelerator_type``, ``train_accelerator_count``, ``train_cpu`` and ``train_memory``; the
            smallest machine with all of them is taken.

    Raises:
        ConfigError: there is no such machine.
    """
    # Not for the laptop: it has no use for Google's components.
    from google_cloud_pipeline_components.v1.custom_job import create_custom_training_job_from_component

    # The wrapper takes the image from the component; set on the task, it would be the launcher's.
    with_image = dsl.component(
        components.train.python_func, base_image=settings.image("gpu"), install_kfp_package=False
    )
    return create_custom_training_job_from_component(
        with_image,
        display_name="mf-train",
        machine_type=train_machine(machine).name,
        accelerator_type=machine["train_accelerator_type"],
        accelerator_count=machine["train_accelerator_count"],
        strategy="SPOT",
        restart_job_on_worker_restart=True,
        service_account=settings.service_account,
        network=settings.network,
        labels=dict(settings.labels),
    )
