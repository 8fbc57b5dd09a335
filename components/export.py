from kfp.dsl import Input, Model

from components.base import component


@component
def export(model: Input[Model], supabase_url: str, movie_export_table: str, user_export_table: str) -> str:
    """Publishes the embeddings to Supabase in one step; gives the published run's id."""
    from pathlib import Path

    from mf.errors import reported
    from mf.supabase.client import connect
    from mf.supabase.config import ExportConfig
    from mf.supabase.credentials import Credentials
    from mf.supabase.export import export

    with reported():
        config = ExportConfig.of(movie_export_table=movie_export_table, user_export_table=user_export_table)
        with connect(Credentials.find(supabase_url)) as client:
            published = export(client, Path(model.path), config)
    print(published.summary())
    return published.run_id
