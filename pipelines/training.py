"""The training pipeline, top to bottom:

ratings ─> ingest ─> split ─> train (GPU) ─> evaluate ─> good enough? ─> export
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

from kfp import dsl
from kfp.dsl import PipelineTask
from kfp.dsl.graph_component import GraphComponent
from kfp.dsl.pipeline_channel import PipelineChannel

import components
from mf.evaluation.config import PUBLISH, GateConfig
from mf.ratings.config import IngestConfig, SplitConfig
from mf.supabase.config import ExportConfig
from mf.train import DEFAULT_SOLVER, SOLVERS_OWN
from pipelines.describe import described
from pipelines.parameters import with_defaults
from pipelines.settings import Settings
from pipelines.vertex.spot import train_on_spot

NAME = "mf-training"

OWN_TEXT, OWN = SOLVERS_OWN
INGEST, SPLIT, GATE, EXPORT = IngestConfig(import_table="ratings"), SplitConfig(), GateConfig(), ExportConfig()
TRAIN_MACHINE: dict[str, Any] = {
    "train_accelerator_type": "NVIDIA_L4",
    "train_accelerator_count": 1,
    "train_cpu": "8",
    "train_memory": "32G",
}


def build(settings: Settings, defaults: Mapping[str, Any] = MappingProxyType({})) -> GraphComponent:
    """The pipeline for the images and secrets of ``settings``; compiled for Vertex AI and run on a laptop alike.

    Args:
        settings: where it runs.
        defaults: of parameters, in place of those that stand here.
    """

    @dsl.pipeline(name=NAME)  # type: ignore[untyped-decorator]
    @described
    @with_defaults(defaults)
    def training(
        ratings_csv: str = INGEST.ratings_csv,
        import_table: str = INGEST.import_table,
        supabase_url: str = settings.supabase_url,
        columns: str = INGEST.columns,
        user_column: str = INGEST.user_column,
        movie_column: str = INGEST.movie_column,
        rating_column: str = INGEST.rating_column,
        timestamp_column: str = INGEST.timestamp_column,
        key_columns: str = INGEST.key_columns,
        rated_since: str = INGEST.rated_since,
        rated_before: str = INGEST.rated_before,
        max_reject_fraction: float = INGEST.max_reject_fraction,
        split: str = SPLIT.split,
        val_size: float = SPLIT.val_size,
        test_size: float = SPLIT.test_size,
        seed: int = SPLIT.seed,
        solver: str = DEFAULT_SOLVER,
        init_from: str = "",
        factors: int = 64,
        epochs: int = OWN,
        batch_size: int = OWN,
        lr: float = OWN,
        weight_decay: float = OWN,
        l2: float = OWN,
        bias_damping: float = OWN,
        dropout: float = OWN,
        clip_grad: float = OWN,
        schedule: str = OWN_TEXT,
        patience: int = OWN,
        init_std: float = OWN,
        block_users: int = OWN,
        row_damping: float = OWN,
        rank: int = OWN,
        fits: int = OWN,
        burn_in: int = OWN,
        relevance_threshold: float = OWN,
        max_regression: float = GATE.max_regression,
        max_rmse: float = GATE.max_rmse,
        min_rows: int = GATE.min_rows,
        min_users: int = GATE.min_users,
        min_movies: int = GATE.min_movies,
        force_publish: bool = GATE.force_publish,
        movie_export_table: str = EXPORT.movie_export_table,
        user_export_table: str = EXPORT.user_export_table,
        hnsw_index: bool = EXPORT.hnsw_index,
        train_accelerator_type: str = TRAIN_MACHINE["train_accelerator_type"],
        train_accelerator_count: int = TRAIN_MACHINE["train_accelerator_count"],
        ingest_cpu: str = "4",
        ingest_memory: str = "16G",
        split_cpu: str = "4",
        split_memory: str = "16G",
        train_cpu: str = TRAIN_MACHINE["train_cpu"],
        train_memory: str = TRAIN_MACHINE["train_memory"],
        evaluate_cpu: str = "4",
        evaluate_memory: str = "16G",
        export_cpu: str = "2",
        export_memory: str = "8G",
    ) -> None:
        """Turns ratings into user and movie embeddings in Supabase, when they are good enough."""
        train = train_on_spot(settings, {**TRAIN_MACHINE, **defaults}) if settings.spot else components.train

        with final_step(settings):
            ingested = components.ingest(
                ratings_csv=ratings_csv,
                import_table=import_table,
                supabase_url=supabase_url,
                columns=columns,
                user_column=user_column,
                movie_column=movie_column,
                rating_column=rating_column,
                timestamp_column=timestamp_column,
                key_columns=key_columns,
                rated_since=rated_since,
                rated_before=rated_before,
                max_reject_fraction=max_reject_fraction,
                init_from=init_from,
            )
            parts = components.split(
                ratings=ingested.outputs["ratings"], split=split, val_size=val_size, test_size=test_size, seed=seed
            )
            trained = train(
                train_ratings=parts.outputs["train_ratings"],
                validation_ratings=parts.outputs["validation_ratings"],
                initial_model=ingested.outputs["initial_model"],
                solver=solver,
                factors=factors,
                seed=seed,
                epochs=epochs,
                batch_size=batch_size,
                lr=lr,
                weight_decay=weight_decay,
                l2=l2,
                bias_damping=bias_damping,
                dropout=dropout,
                clip_grad=clip_grad,
                schedule=schedule,
                patience=patience,
                init_std=init_std,
                block_users=block_users,
                row_damping=row_damping,
                rank=rank,
                fits=fits,
                burn_in=burn_in,
                gpus=train_accelerator_count,
            )
            evaluated = components.evaluate(
                train_ratings=parts.outputs["train_ratings"],
                validation_ratings=parts.outputs["validation_ratings"],
                test_ratings=parts.outputs["test_ratings"],
                model=trained.outputs["model"],
                supabase_url=supabase_url,
                relevance_threshold=relevance_threshold,
                max_regression=max_regression,
                max_rmse=max_rmse,
                min_rows=min_rows,
                min_users=min_users,
                min_movies=min_movies,
                force_publish=force_publish,
            )
            registered = []
            with dsl.If(evaluated.outputs["Output"] == PUBLISH, name="good-enough"):
                exported = components.export(
                    model=trained.outputs["model"],
                    supabase_url=supabase_url,
                    movie_export_table=movie_export_table,
                    user_export_table=user_export_table,
                    hnsw_index=hnsw_index,
                )
                if settings.model_registry:
                    registered.append(
                        components.register(
                            ratings=ingested.outputs["ratings"],
                            model=trained.outputs["model"],
                            evaluation=evaluated.outputs["evaluation"],
                            name=NAME,
                            run_id=exported.output,
                            job=dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER,
                            image=settings.image("cpu"),
                        )
                    )

        run_on(ingested, settings.image("cpu"), ingest_cpu, ingest_memory)
        run_on(parts, settings.image("cpu"), split_cpu, split_memory)
        run_on(evaluated, settings.image("cpu"), evaluate_cpu, evaluate_memory)
        run_on(exported, settings.image("cpu"), export_cpu, export_memory)
        for task in registered:
            run_on(task, settings.image("cpu"), "1", "4G")
        if not settings.spot:
            run_on(trained, settings.image("gpu"), train_cpu, train_memory)
            trained.set_accelerator_type(train_accelerator_type).set_accelerator_limit(train_accelerator_count)
            passed_down(trained, train_accelerator_type, train_accelerator_count)
        # A table's, a file's and the published run's content are not in the cache's key.
        for task in (ingested, evaluated, exported, *registered):
            task.set_caching_options(False)
        # Machines go away, and services are busy.
        for task in (ingested, trained, evaluated, exported, *registered):
            if settings.retries:
                task.set_retry(settings.retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="600s")
        secrets = {
            "SUPABASE_KEY_SECRET": settings.supabase_key_secret,
            "SUPABASE_DB_URL_SECRET": settings.supabase_db_url_secret,
        }
        for task in (ingested, evaluated, exported):
            for variable, name in secrets.items():
                if name:
                    task.set_env_variable(variable, name)

    return training


def run_on(task: PipelineTask, image: str, cpu: str, memory: str) -> None:
    """The image of a step and the least machine for it."""
    task.set_container_image(image).set_cpu_limit(cpu).set_memory_limit(memory)
    passed_down(task, cpu, memory)


def passed_down(task: PipelineTask, *values: Any) -> None:
    """Lets those of ``values`` that are parameters come through the groups that the task stands in, which the setters
    of a machine forget: the group would have no input of the name that the task asks it for."""
    task.register_pipeline_channels([value for value in values if isinstance(value, PipelineChannel)])


def final_step(settings: Settings) -> AbstractContextManager[Any]:
    """Adds what runs when the steps of its block have come to their end, whatever that is; nothing unless asked for."""
    if settings.notify_emails:
        from google_cloud_pipeline_components.v1.vertex_notification_email import VertexNotificationEmailOp

        last = VertexNotificationEmailOp(recipients=list(settings.notify_emails))
    elif settings.notify_log:
        last = components.notify()
        run_on(last, settings.image("cpu"), "1", "2G")
    else:
        return nullcontext()
    handler: AbstractContextManager[Any] = dsl.ExitHandler(last, name="run")
    return handler
