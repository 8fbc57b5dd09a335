from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components.base import component


@component
def evaluate(
    train_ratings: Input[Dataset],
    test_ratings: Input[Dataset],
    model: Input[Model],
    metrics: Output[Metrics],
    evaluation: Output[Artifact],
    report: Output[HTML],
):
    """Scores the model on the test part beside the baselines, and writes the report."""
    from pathlib import Path

    from mf.errors import reported
    from mf.evaluation.evaluate import evaluate
    from mf.evaluation.report import verdict, write_report
    from mf.files import written_aside
    from mf.model import TrainedModel
    from mf.ratings.schema import read_ratings

    report.path += ".html"
    evaluation.path += ".json"
    with reported():
        fitted = TrainedModel.load(Path(model.path))
        seen, provenance = read_ratings(Path(train_ratings.path))
        test, _ = read_ratings(Path(test_ratings.path))
        result = evaluate(seen, test, fitted)
        facts = {
            "ratings": provenance.summary(),
            "model": f"{fitted.run_id}, solver {fitted.solver}, {fitted.module.factors} factors",
            "trained on": f"{len(seen):,} ratings of {len(fitted.users):,} users and {len(fitted.movies):,} movies",
            "code": fitted.git_sha,
        }
        write_report(result, fitted.metrics["epochs"], facts, Path(report.path))
        with written_aside(Path(evaluation.path)) as aside:
            aside.write_text(result.to_json())
    scores = {"": result.model, "global_mean_": result.global_mean, "user_movie_bias_": result.user_movie_bias}
    for name, score in scores.items():
        metrics.log_metric(f"{name}rmse", float(score.rmse))
        metrics.log_metric(f"{name}mae", float(score.mae))
    metrics.log_metric("test_rows", result.test_rows)
    metrics.log_metric("unseen_users", result.unseen_users.ids)
    metrics.log_metric("unseen_movies", result.unseen_movies.ids)
    evaluation.metadata.update(metrics.metadata)
    report.metadata.update(rmse=float(result.model.rmse), run_id=fitted.run_id)
    print(verdict(result))
