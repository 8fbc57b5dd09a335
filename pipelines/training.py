"""The training pipeline, top to bottom:

ratings ─> ingest ─> split ─> train (GPU) ─> evaluate ─> export
"""

from kfp import dsl
from kfp.dsl import PipelineTask
from kfp.dsl.graph_component import GraphComponent

import components
from mf.ratings.config import IngestConfig, SplitConfig
from mf.solvers import AdamConfig
from mf.supabase.config import ExportConfig
from pipelines.describe import described
from pipelines.settings import Settings

NAME = "mf-training"

# What holds from small data to large. `python -m mf` keeps the original trainer's defaults instead.
ADAM = AdamConfig(
    batch_size=512, epochs=10, lr=7e-3, weight_decay=0, l2=0.06, bias_damping=3, schedule="one_cycle", patience=3
)
INGEST, SPLIT, EXPORT = IngestConfig(import_table="ratings"), SplitConfig(), ExportConfig()


def build(settings: Settings) -> GraphComponent:
    """The pipeline for the images and secrets of ``settings``; compiled for Vertex AI and run on a laptop alike."""

    @dsl.pipeline(name=NAME)  # type: ignore[untyped-decorator]
    @described
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
        max_reject_fraction: float = INGEST.max_reject_fraction,
        split: str = SPLIT.split,
        val_size: float = SPLIT.val_size,
        test_size: float = SPLIT.test_size,
        seed: int = SPLIT.seed,
        factors: int = ADAM.factors,
        batch_size: int = ADAM.batch_size,
        epochs: int = ADAM.epochs,
        lr: float = ADAM.lr,
        weight_decay: float = ADAM.weight_decay,
        l2: float = ADAM.l2,
        bias_damping: float = ADAM.bias_damping,
        dropout: float = ADAM.dropout,
        clip_grad: float = -1.0,
        schedule: str = ADAM.schedule,
        patience: int = ADAM.patience,
        init_std: float = ADAM.init_std,
        movie_export_table: str = EXPORT.movie_export_table,
        user_export_table: str = EXPORT.user_export_table,
        train_accelerator_type: str = "NVIDIA_L4",
        train_accelerator_count: int = 1,
        ingest_cpu: str = "4",
        ingest_memory: str = "16G",
        split_cpu: str = "4",
        split_memory: str = "16G",
        train_cpu: str = "8",
        train_memory: str = "32G",
        evaluate_cpu: str = "4",
        evaluate_memory: str = "16G",
        export_cpu: str = "2",
        export_memory: str = "8G",
    ) -> None:
        """Turns ratings into user and movie embeddings in Supabase."""
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
            max_reject_fraction=max_reject_fraction,
        )
        parts = components.split(
            ratings=ingested.outputs["ratings"], split=split, val_size=val_size, test_size=test_size, seed=seed
        )
        trained = components.train(
            train_ratings=parts.outputs["train_ratings"],
            validation_ratings=parts.outputs["validation_ratings"],
            factors=factors,
            batch_size=batch_size,
            epochs=epochs,
            lr=lr,
            weight_decay=weight_decay,
            l2=l2,
            bias_damping=bias_damping,
            dropout=dropout,
            clip_grad=clip_grad,
            schedule=schedule,
            patience=patience,
            init_std=init_std,
            seed=seed,
        )
        evaluated = components.evaluate(
            train_ratings=parts.outputs["train_ratings"],
            test_ratings=parts.outputs["test_ratings"],
            model=trained.outputs["model"],
        )
        exported = components.export(
            model=trained.outputs["model"],
            supabase_url=supabase_url,
            movie_export_table=movie_export_table,
            user_export_table=user_export_table,
        ).after(evaluated)

        run_on(ingested, settings.image("cpu"), ingest_cpu, ingest_memory)
        run_on(parts, settings.image("cpu"), split_cpu, split_memory)
        run_on(trained, settings.image("gpu"), train_cpu, train_memory)
        run_on(evaluated, settings.image("cpu"), evaluate_cpu, evaluate_memory)
        run_on(exported, settings.image("cpu"), export_cpu, export_memory)
        trained.set_accelerator_type(train_accelerator_type).set_accelerator_limit(train_accelerator_count)
        # A table's, a file's and the published run's content are not in the cache's key.
        for task in (ingested, evaluated, exported):
            task.set_caching_options(False)
        for task in (ingested, exported):
            if settings.supabase_key_secret:
                task.set_env_variable("SUPABASE_KEY_SECRET", settings.supabase_key_secret)

    return training


def run_on(task: PipelineTask, image: str, cpu: str, memory: str) -> None:
    """The image of a step and the least machine for it."""
    task.set_container_image(image).set_cpu_limit(cpu).set_memory_limit(memory)
