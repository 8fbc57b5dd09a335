from kfp.dsl import Input, Model

from components.base import component


@component
def export(
    model: Input[Model], supabase_url: str, movie_export_table: str, user_export_table: str, hnsw_index: bool
) -> str:
    """Publishes the embeddings to Supabase atomically; returns the published run's id."""
    parameters = dict(locals())

    from pathlib import Path

    from mf.errors import reported
    from mf.parameters import export_config
    from mf.supabase.find import find_target

    with reported():
        published = find_target(supabase_url).export(Path(model.path), export_config(parameters))
    print(published.summary())
    return published.run_id
