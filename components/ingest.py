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
    key_columns: str,
    rated_since: str,
    rated_before: str,
    max_reject_fraction: float,
    init_from: str,
):
    """Reads ratings from a CSV or a Supabase table, checks every row, and writes the good ones as Parquet; and with
    them the earlier model to start from, when one is asked for: the step that trains has no key to Supabase."""
    from dataclasses import asdict
    from pathlib import Path

    from mf.errors import reported
    from mf.ingest import ingest
    from mf.ratings.config import IngestConfig
    from mf.supabase.find import find_target
    from mf.warm_start import EarlierModel

    ratings.path += ".parquet"
    rejects.path += ".csv"
    with reported():
        config = IngestConfig.of(
            ratings_csv=ratings_csv,
            import_table="" if ratings_csv else import_table,
            columns=columns,
            user_column=user_column,
            movie_column=movie_column,
            rating_column=rating_column,
            timestamp_column=timestamp_column,
            key_columns=key_columns,
            rated_since=rated_since,
            rated_before=rated_before,
            max_reject_fraction=max_reject_fraction,
        )
        earlier = EarlierModel.find(init_from, lambda: find_target(supabase_url))
        if earlier:
            earlier.save(Path(initial_model.path))
            initial_model.metadata["run_id"] = earlier.header.run_id
        provenance = ingest(config, Path(ratings.path), Path(rejects.path), url=supabase_url)
    print(provenance.summary())
    ratings.metadata.update(asdict(provenance))
    rejects.metadata["rows"] = provenance.rows_rejected
