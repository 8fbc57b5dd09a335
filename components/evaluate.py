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
    relevance_threshold: float,
    max_regression: float,
    max_rmse: float,
    min_rows: int,
    min_users: int,
    min_movies: int,
    force_publish: bool,
) -> str:
    """Evaluates the model beside baselines and the published run, writes the report and returns the gate's verdict:
    "publish" or "refuse"."""
    from pathlib import Path

    from mf.errors import reported
    from mf.evaluation.config import EvaluateConfig, GateConfig
    from mf.evaluation.judge import judge
    from mf.files import written_aside
    from mf.model_directory import TrainedModel
    from mf.ratings.schema import read_ratings
    from mf.ratings.titles import titles_beside
    from mf.supabase.find import find_target
    from mf.train import options_given, pick_device

    report.path += ".html"
    evaluation.path += ".json"
    with reported():
        config = EvaluateConfig.of(**options_given(relevance_threshold=relevance_threshold))
        gate = GateConfig.of(
            max_regression=max_regression,
            max_rmse=max_rmse,
            min_rows=min_rows,
            min_users=min_users,
            min_movies=min_movies,
            force_publish=force_publish,
        )
        # First, so that a missing key fails within seconds and not after the evaluation.
        target = find_target(supabase_url)
        trained = TrainedModel.load(Path(model.path))
        trained.module.to(pick_device(use_cuda=True)[0])
        train, provenance = read_ratings(Path(train_ratings.path))
        validation, _ = read_ratings(Path(validation_ratings.path))
        test, _ = read_ratings(Path(test_ratings.path))
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
            titles=titles_beside(provenance.source),
            provenance=provenance,
        )
        decision = judgement.decision
        # In the folder of the run, where the notify step reads it.
        with written_aside(Path(report.path).parents[1] / "verdict.txt") as temporary:
            temporary.write_text(decision.summary())
    for name, value in judgement.metrics().items():
        metrics.log_metric(name, value)
    evaluation.metadata.update(metrics.metadata, decision=decision.summary())
    report.metadata.update(rmse=judgement.evaluation.model["rmse"], run_id=trained.run_id, decision=decision.summary())
    for line in judgement.log_lines():
        print(line)
    return decision.verdict
