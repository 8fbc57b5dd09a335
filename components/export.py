from kfp.dsl import Artifact, Input, Model

from components.base import component


@component
def export(
    model: Input[Model],
    judged_model: Input[Model],
    evaluation: Input[Artifact],
    supabase_url: str,
    movie_export_table: str,
    user_export_table: str,
    hnsw_index: bool,
) -> str:
    """Publishes the model to Supabase atomically, with how it was judged; returns the published run's id."""
    parameters = dict(locals())

    import json
    from pathlib import Path

    from mf.errors import reported
    from mf.model_directory import read_run_id
    from mf.parameters import export_config
    from mf.supabase.find import find_target
    from mf.supabase.target import Judged

    with reported():
        decision = json.loads(Path(evaluation.path).read_text())["decision"]
        twin = read_run_id(Path(judged_model.path))
        refitted = read_run_id(Path(model.path)) != twin
        judged = Judged(
            decision["forced"],
            tuple(decision["reasons"]),
            run_id=twin if refitted else None,
            model=judged_model.uri if refitted else None,
        )
        megabytes = sum(file.stat().st_size for file in Path(model.path).glob("*.parquet")) / 1e6
        print(f"publishing the model of {model.path}, {megabytes:,.1f} MB of vectors", flush=True)
        published = find_target(supabase_url).export(Path(model.path), export_config(parameters), judged)
    print(published.summary())
    return published.run_id
