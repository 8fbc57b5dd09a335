from kfp.dsl import Input, Model

from components.base import component


@component
def export(
    model: Input[Model], supabase_url: str, movie_export_table: str, user_export_table: str, hnsw_index: bool
) -> str:
    """Publishes the embeddings to Supabase in one step; gives the published run's id."""
    from pathlib import Path

    from mf.errors import reported
    from mf.supabase.config import ExportConfig
    from mf.supabase.find import find_target

    with reported():
        config = ExportConfig.of(
            movie_export_table=movie_export_table, user_export_table=user_export_table, hnsw_index=hnsw_index
        )
        published = find_target(supabase_url).export(Path(model.path), config)
    print(published.summary())
    return published.run_id
