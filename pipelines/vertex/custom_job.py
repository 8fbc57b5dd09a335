"""A step that trains as a Vertex custom job: on spot machines, or on several machines."""

from collections.abc import Mapping
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from pipelines.settings import Resources, Settings
from pipelines.vertex.machines import train_machine


def as_custom_job(component: BaseComponent, settings: Settings, resources: Resources, gpus: Mapping[str, Any]) -> Any:
    """A component with its inputs and outputs, as a Vertex custom job.

    Unlike a step of a pipeline a custom job can run on a spot machine and on several machines, and its machines are set
    at compile time. Each of several runs the step's command; CLUSTER_SPEC tells it which one it is (``mf.nodes``).

    Args:
        component: train or refit.
        settings: the account, network and labels of the job, which does not inherit them from the pipeline's run.
        resources: CPU and memory that the machine has at least.
        gpus: ``train_accelerator_type`` and ``train_accelerator_count``; no GPU for a count of 0.

    Raises:
        ConfigError: there is no such machine.
    """
    # Imported here because a laptop has no use for Google's components.
    from google_cloud_pipeline_components.v1.custom_job import create_custom_training_job_from_component

    # The wrapper reads the image from the component; set on the task it would replace the launcher's.
    with_image = dsl.component(
        component.python_func,
        base_image=settings.image("gpu" if gpus["train_accelerator_count"] else "cpu"),
        install_kfp_package=False,
    )
    return create_custom_training_job_from_component(
        with_image,
        display_name=f"mf-{component.name}",
        machine_type=train_machine(resources, gpus, settings.cuda).name,
        accelerator_type=gpus["train_accelerator_type"],
        accelerator_count=gpus["train_accelerator_count"],
        replica_count=settings.train_nodes,
        strategy="SPOT" if settings.spot else "STANDARD",
        restart_job_on_worker_restart=True,
        service_account=settings.service_account,
        network=settings.network,
        labels=dict(settings.labels),
    )
