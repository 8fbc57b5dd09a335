"""The training pipeline, top to bottom:

ratings ─> ingest ─> split ─> train (GPU) ─> evaluate ─> good enough? ─> refit on all ratings (GPU) ─> export
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import PipelineTask
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.graph_component import GraphComponent

import components
from mf.errors import ConfigError
from mf.evaluation.config import PUBLISH, GateConfig
from mf.parameters import BEST_SOLVER, SOLVERS_OWN
from mf.ranking.config import DEFAULT_RANKING
from mf.ratings.config import IngestConfig, SplitConfig
from mf.supabase.config import ExportConfig
from mf.sweep.config import SweepConfig
from pipelines.describe import described
from pipelines.kubeflow import gpus
from pipelines.kubeflow.pods import configure_pod
from pipelines.parameters import with_defaults, without
from pipelines.settings import Resources, Settings
from pipelines.vertex import machines
from pipelines.vertex.custom_job import as_custom_job

NAME = "mf-training"


class Step(NamedTuple):
    """How a step runs. The settings can override CPU and memory."""

    image: str  # cpu or gpu
    cpu: str  # cores
    memory: str
    cached: bool = False
    retried: bool = False  # because machines go away and services are busy
    secrets: bool = False  # whether it gets the names of the Supabase secrets


STEPS = {
    # Ingest, evaluate and export read a table, a file or the published run, whose content the cache key does not hold.
    "ingest": Step("cpu", "4", "16G", retried=True, secrets=True),
    "split": Step("cpu", "4", "16G", cached=True),
    "train": Step("gpu", "8", "32G", cached=True, retried=True),
    "evaluate": Step("cpu", "4", "16G", retried=True, secrets=True),
    "export": Step("cpu", "2", "8G", retried=True, secrets=True),
    "register": Step("cpu", "1", "4G", retried=True),
    "notify": Step("cpu", "1", "2G"),
}
INGEST, SPLIT, GATE, EXPORT = IngestConfig(import_table="ratings"), SplitConfig(), GateConfig(), ExportConfig()
SWEEP = SweepConfig()
NO_OPTIONS: dict[str, Any] = {}
TRAIN_GPUS: dict[str, Any] = {"train_accelerator_type": "NVIDIA_L4", "train_accelerator_count": 1}
NO_GPU: dict[str, Any] = {"train_accelerator_type": "", "train_accelerator_count": 0}


def build(settings: Settings, defaults: Mapping[str, Any] = MappingProxyType({})) -> GraphComponent:
    """The pipeline for the images and secrets of ``settings``, for Vertex AI and a laptop alike.

    Args:
        settings: where it runs.
        defaults: defaults of parameters, instead of those in the signature below. With a ``train_accelerator_count`` of
            0 the train step has no GPU and the pipeline no parameters for one.

    Raises:
        ConfigError: the settings name a step that the pipeline does not have.
    """
    gpu = {**TRAIN_GPUS, **({"train_accelerator_type": gpus.DEFAULT} if settings.target == "kubeflow" else {})}
    gpu |= {name: value for name, value in defaults.items() if name in gpu}
    if not gpu["train_accelerator_count"]:
        gpu = NO_GPU

    @dsl.pipeline(name=NAME)  # type: ignore[untyped-decorator]
    @described
    @without(NO_GPU if gpu == NO_GPU else {})
    @with_defaults({**gpu, **defaults})
    def training(
        ratings_csv: str = INGEST.ratings_csv,
        import_table: str = INGEST.import_table,
        supabase_url: str = settings.supabase_url,
        columns: str = INGEST.columns,
        user_column: str = INGEST.user_column,
        movie_column: str = INGEST.movie_column,
        rating_column: str = INGEST.rating_column,
        timestamp_column: str = INGEST.timestamp_column,
        ignore_ratings: str = INGEST.ignore_ratings,
        key_columns: str = INGEST.key_columns,
        rated_since: str = INGEST.rated_since,
        rated_before: str = INGEST.rated_before,
        max_reject_fraction: float = INGEST.max_reject_fraction,
        split: str = SPLIT.split,
        val_size: float = SPLIT.val_size,
        test_size: float = SPLIT.test_size,
        seed: int = SPLIT.seed,
        solver: str = BEST_SOLVER,
        solver_options: dict = NO_OPTIONS,  # type: ignore[type-arg]  # KFP knows no other
        ranking: str = DEFAULT_RANKING,
        ranking_options: dict = NO_OPTIONS,  # type: ignore[type-arg]
        factors: int = 64,
        epochs: int = SOLVERS_OWN,
        batch_size: int = SOLVERS_OWN,
        lr: float = SOLVERS_OWN,
        init_from: str = "",
        trials: int = SWEEP.trials,
        trial_minutes: float = SWEEP.trial_minutes,
        trial_objective: str = SWEEP.trial_objective,
        refit: bool = True,
        relevance_threshold: str = "",
        max_regression: float = GATE.max_regression,
        max_ndcg_regression: float = GATE.max_ndcg_regression,
        max_rmse: float = GATE.max_rmse,
        min_rows: int = GATE.min_rows,
        min_users: int = GATE.min_users,
        min_movies: int = GATE.min_movies,
        force_publish: bool = GATE.force_publish,
        movie_export_table: str = EXPORT.movie_export_table,
        user_export_table: str = EXPORT.user_export_table,
        hnsw_index: bool = EXPORT.hnsw_index,
        train_accelerator_type: str = TRAIN_GPUS["train_accelerator_type"],
        train_accelerator_count: int = TRAIN_GPUS["train_accelerator_count"],
    ) -> None:
        """Trains user and movie embeddings on ratings and publishes them to Supabase if they are good enough."""
        parameters = dict(locals())  # every parameter goes to the step inputs of its name
        train, fit_again = components.train, components.refit
        if settings.custom_job:
            train, fit_again = (
                as_custom_job(one, settings, machines_of(settings)["train"], gpu) for one in (train, fit_again)
            )

        def inputs(component: BaseComponent) -> dict[str, Any]:
            """The parameters of the pipeline that ``component`` takes, by name."""
            return {name: parameters[name] for name in component.component_spec.inputs if name in parameters}

        tasks: dict[str, PipelineTask] = {}
        with final_step(settings):
            # Ingest takes all parameters, because it validates those of every step.
            ingested = components.ingest(
                **inputs(components.ingest), gpus=gpus_of(settings, gpu), train_nodes=settings.train_nodes
            )
            parts = components.split(ratings=ingested.outputs["ratings"], **inputs(components.split))
            trained = train(
                train_ratings=parts.outputs["train_ratings"],
                validation_ratings=parts.outputs["validation_ratings"],
                initial_model=ingested.outputs["initial_model"],
                **inputs(components.train),
            )
            evaluated = components.evaluate(
                train_ratings=parts.outputs["train_ratings"],
                validation_ratings=parts.outputs["validation_ratings"],
                test_ratings=parts.outputs["test_ratings"],
                model=trained.outputs["model"],
                **inputs(components.evaluate),
            )
            with dsl.If(evaluated.outputs["Output"] == PUBLISH, name="good-enough"):
                refitted = fit_again(
                    ratings=ingested.outputs["ratings"],
                    train_ratings=parts.outputs["train_ratings"],
                    judged_model=trained.outputs["model"],
                    initial_model=ingested.outputs["initial_model"],
                    **inputs(components.refit),
                )
                exported = components.export(
                    model=refitted.outputs["model"],
                    judged_model=trained.outputs["model"],
                    evaluation=evaluated.outputs["evaluation"],
                    **inputs(components.export),
                )
                if settings.model_registry:
                    tasks["register"] = components.register(
                        ratings=ingested.outputs["ratings"],
                        model=refitted.outputs["model"],
                        evaluation=evaluated.outputs["evaluation"],
                        name=NAME,
                        run_id=exported.output,
                        job=dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER,
                        image=settings.image("cpu"),
                    )

        tasks |= {"ingest": ingested, "split": parts, "train": trained, "evaluate": evaluated, "export": exported}
        for name, task in tasks.items():
            configure(task, name, settings, has_gpu=gpu != NO_GPU)
        configure(refitted, "train", settings, has_gpu=gpu != NO_GPU)  # the same machine
        if not settings.custom_job and gpu != NO_GPU:
            for task in (trained, refitted):
                task.set_accelerator_type(train_accelerator_type).set_accelerator_limit(train_accelerator_count)
                # The setters forget to pass parameters into the groups that the task stands in.
                task.register_pipeline_channels([train_accelerator_type, train_accelerator_count])

    return training


def gpus_of(settings: Settings, gpu: Mapping[str, Any]) -> dict[str, list[int]]:
    """The GPUs that a run may ask for, each with its counts; the first step refuses others.

    Args:
        settings: of the pipeline.
        gpu: ``train_accelerator_type`` and ``train_accelerator_count`` that it is compiled with.
    """
    if gpu == NO_GPU:
        return {}
    if settings.target == "kubeflow":
        return gpus.offered(gpu["train_accelerator_type"])
    if settings.custom_job:  # whose machine is compiled in
        return {gpu["train_accelerator_type"]: [gpu["train_accelerator_count"]]}
    return machines.gpus_in(settings.region, settings.cuda)


def machines_of(settings: Settings) -> dict[str, Resources]:
    """CPU and memory of each step of a run with these settings.

    Raises:
        ConfigError: the settings name a step that does not exist.
    """
    if unknown := [name for name in settings.machines if name not in STEPS]:
        raise ConfigError(f"machines: there is no step {unknown[0]!r}; the steps are {', '.join(STEPS)}")
    off = {"register": not settings.model_registry, "notify": not settings.notify_log}
    return {
        name: Resources(cpu=step.cpu, memory=step.memory).overridden(settings.machines.get(name))
        for name, step in STEPS.items()
        if not off.get(name)
    }


def configure(task: PipelineTask, name: str, settings: Settings, *, has_gpu: bool = False) -> None:
    """Sets the image, machine, caching, retries and secrets of a step, as ``STEPS`` and the settings say."""
    step, machine = STEPS[name], machines_of(settings)[name]
    if not (name == "train" and settings.custom_job):  # the custom job sets its own machine
        task.set_container_image(settings.image(step.image if has_gpu else "cpu"))
        task.set_cpu_limit(machine.cpu).set_memory_limit(machine.memory)
    if not step.cached:
        task.set_caching_options(False)
    if step.retried and settings.retries:
        task.set_retry(settings.retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="600s")
    if settings.target == "kubeflow":
        secret = settings.kubernetes_secret
        configure_pod(task, NAME, secret, supabase=step.secrets, files=name == "ingest")
    secrets = {
        "SUPABASE_KEY_SECRET": settings.supabase_key_secret,
        "SUPABASE_DB_URL_SECRET": settings.supabase_db_url_secret,
    }
    for variable, secret in secrets.items():
        if step.secrets and secret:
            task.set_env_variable(variable, secret)


def final_step(settings: Settings) -> AbstractContextManager[Any]:
    """A block whose end, whether it succeeded or failed, is reported by a final step if the settings ask for one."""
    if settings.notify_emails:
        from google_cloud_pipeline_components.v1.vertex_notification_email import VertexNotificationEmailOp

        last = VertexNotificationEmailOp(recipients=list(settings.notify_emails))
    elif settings.notify_log:
        last = components.notify()
        configure(last, "notify", settings)
    else:
        return nullcontext()
    handler: AbstractContextManager[Any] = dsl.ExitHandler(last, name="run")
    return handler
