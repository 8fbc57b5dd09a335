from kfp.dsl import Artifact, Dataset, Model, Output

from components.base import component


@component
def ingest(
    ratings: Output[Dataset],
    rejects: Output[Artifact],
    initial_model: Output[Model],
    ratings_csv: str,
    import_table: str,
    supabase_url: str,
    columns: str,
    user_column: str,
    movie_column: str,
    rating_column: str,
    timestamp_column: str,
    ignore_ratings: str,
    key_columns: str,
    rated_since: str,
    rated_before: str,
    max_reject_fraction: float,
    split: str,
    val_size: float,
    test_size: float,
    seed: int,
    solver: str,
    solver_options: dict,
    ranking: str,
    ranking_options: dict,
    factors: int,
    epochs: int,
    batch_size: int,
    lr: float,
    init_from: str,
    trials: int,
    trial_minutes: float,
    trial_objective: str,
    refit: bool,
    relevance_threshold: str,
    max_regression: float,
    max_ndcg_regression: float,
    max_rmse: float,
    min_rows: int,
    min_users: int,
    min_movies: int,
    force_publish: bool,
    movie_export_table: str,
    user_export_table: str,
    hnsw_index: bool,
    train_accelerator_type: str,
    train_accelerator_count: int,
    gpus: dict,
    train_nodes: int = 1,
):
    """Validates the parameters of all steps, then reads ratings from a CSV or a Supabase table, checks every row and
    writes the good ones as Parquet. Also fetches the model to start from, since the train step has no key to
    Supabase."""
    parameters = dict(locals())
    del parameters["train_nodes"]  # a setting

    from dataclasses import asdict
    from datetime import UTC, datetime
    from pathlib import Path

    from mf.errors import reported
    from mf.parameters import (
        UNUSED_WITHOUT_RATINGS,
        check,
        check_gpus,
        check_lists,
        check_nodes,
        ingest_config,
        record_run,
    )
    from mf.reuse import ingest_once

    started = datetime.now(UTC)
    ratings.path += ".parquet"
    rejects.path += ".csv"
    with reported():
        check(parameters, lambda given: check_gpus(given, gpus), lambda given: check_nodes(given, train_nodes))
        config = ingest_config(parameters)
        if init_from and config.may_have_ratings:
            # Imported here, since most runs need neither PyTorch nor Supabase for this step.
            from mf.supabase.find import find_target
            from mf.warm_start import EarlierModel

            if earlier := EarlierModel.find(init_from, lambda: find_target(supabase_url)):
                earlier.save(Path(initial_model.path))
                initial_model.metadata["run_id"] = earlier.header.run_id
        file = Path(config.ratings_csv)
        size = f", {file.stat().st_size / 1e6:,.1f} MB" if config.ratings_csv and file.is_file() else ""
        print(f"reading {config.ratings_csv or f'table {config.import_table}'}{size}", flush=True)
        provenance, reused = ingest_once(config, Path(ratings.path), Path(rejects.path), url=supabase_url)
        if reused:
            print(f"{config.ratings_csv} is unchanged and not read again (FRESH=1 reads it)")
        if not provenance.has_ratings:
            check_lists(parameters)
    print(provenance.summary())
    if not provenance.has_ratings:
        print(UNUSED_WITHOUT_RATINGS)
    ratings.metadata.update(asdict(provenance), **record_run(parameters, started))
    rejects.metadata["rows"] = provenance.rows_rejected
