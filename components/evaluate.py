from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components.base import component


@component
def evaluate(
    train_ratings: Input[Dataset],
    validation_ratings: Input[Dataset],
    test_ratings: Input[Dataset],
    model: Input[Model],
    metrics: Output[Metrics],
    evaluation: Output[Artifact],
    report: Output[HTML],
    supabase_url: str,
    relevance_threshold: str,
    max_regression: float,
    max_ndcg_regression: float,
    max_rmse: float,
    min_rows: int,
    min_users: int,
    min_movies: int,
    force_publish: bool,
) -> str:
    """Evaluates the model beside baselines and the published run, writes the report and returns the gate's verdict:
    "publish" or "refuse"."""
    parameters = dict(locals())

    from pathlib import Path

    from mf.errors import reported
    from mf.evaluation.judge import judge
    from mf.files import written_aside
    from mf.model_directory import TrainedModel
    from mf.parameters import evaluate_config, gate_config, run_of
    from mf.ratings.batches import Batches
    from mf.ratings.schema import read_provenance
    from mf.ratings.titles import titles_beside
    from mf.supabase.find import find_target
    from mf.train import pick_device

    report.path += ".html"
    evaluation.path += ".json"
    with reported():
        config, gate = evaluate_config(parameters), gate_config(parameters)
        # First, so that a missing key fails within seconds and not after the evaluation.
        target = find_target(supabase_url)
        trained = TrainedModel.load(Path(model.path))
        trained.to(pick_device(use_cuda=True)[0])
        provenance = read_provenance(Path(train_ratings.path))
        train, validation, test = (
            Batches(Path(part.path)) for part in (train_ratings, validation_ratings, test_ratings)
        )
        print(
            f"evaluating model {trained.run_id} on {len(test):,} test rows, beside baselines and the published run",
            flush=True,
        )
        judgement = judge(
            trained,
            train,
            test,
            validation,
            html=Path(report.path),
            document=Path(evaluation.path),
            target=target,
            config=config,
            gate=gate,
            titles=titles_beside(provenance.source, provenance.columns.get("movie_id", ""), print),
            provenance=provenance,
            **run_of(train_ratings.metadata),
        )
        decision = judgement.decision
        # In the folder of the run, where the notify step reads it.
        with written_aside(Path(report.path).parents[1] / "verdict.txt") as temporary:
            temporary.write_text(decision.summary())
    for name, value in judgement.metrics().items():
        metrics.log_metric(name, value)
    evaluation.metadata.update(metrics.metadata, decision=decision.summary())
    report.metadata.update(run_id=trained.run_id, decision=decision.summary())
    if (rmse := judgement.evaluation.model.get("rmse")) is not None:
        report.metadata["rmse"] = rmse
    for line in judgement.log_lines():
        print(line)
    return decision.verdict
