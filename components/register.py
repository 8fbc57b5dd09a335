from kfp.dsl import Artifact, Dataset, Input, Model

from components.base import component


@component
def register(
    ratings: Input[Dataset],
    model: Input[Model],
    evaluation: Input[Artifact],
    name: str,
    run_id: str,
    job: str,
    image: str,
) -> str:
    """Uploads the published model to the Model Registry as the default version of the model ``name``; returns the
    version's resource name."""
    import json
    from pathlib import Path

    from mf.errors import reported
    from mf.ratings.schema import read_provenance
    from mf.registry import Registry, Version, session
    from mf.version import git_sha

    with reported():
        provenance = read_provenance(Path(ratings.path))
        scores = json.loads(Path(evaluation.path).read_text())
        labels = {
            "run_id": run_id,
            **({"rmse": float(scores["model"]["rmse"])} if scores["model"] else {}),
            **({"ndcg": float(scores["ranking"]["model"]["ndcg"])} if scores["ranking"]["model"] else {}),
            "rows": provenance.rows_kept,
            "data_hash": provenance.content_hash,
            "git_sha": git_sha(),
        }
        version = Version(run_id, artifact_uri=model.uri, image=image, job=job, labels=labels)
        registered = Registry(session(), job).upload(name, version)
    print(f"registered {registered}")
    return registered
