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
    max_rmse: float,
    min_rows: int,
    min_users: int,
    min_movies: int,
    force_publish: bool,
) -> str:
    """Scores the model on the test part beside the baselines and the published run, writes the report, and decides
    whether the model is good enough: "publish" or "refuse"."""
    parameters = dict(locals())

    from pathlib import Path

    from mf.errors import reported
    from mf.evaluation.champion import compare
    from mf.evaluation.evaluate import evaluate
    from mf.evaluation.examples import examples
    from mf.evaluation.gate import decide
    from mf.evaluation.report import Report, verdict, write_report
    from mf.files import written_aside
    from mf.model import TrainedModel
    from mf.parameters import evaluate_config, gate_config
    from mf.ratings.schema import read_ratings
    from mf.ratings.titles import titles_beside
    from mf.supabase.destination import Destination
    from mf.train import pick_device

    report.path += ".html"
    evaluation.path += ".json"
    with reported():
        config, gate = evaluate_config(parameters), gate_config(parameters)
        # Before anything else: a missing key would be found out minutes later.
        destination = Destination.find(supabase_url)
        fitted = TrainedModel.load(Path(model.path))
        fitted.module.to(pick_device(use_cuda=True)[0])
        seen, provenance = read_ratings(Path(train_ratings.path))
        steered, _ = read_ratings(Path(validation_ratings.path))
        test, _ = read_ratings(Path(test_ratings.path))
        result = evaluate(seen, test, fitted, config, steered)
        comparison = compare(fitted, test, destination)
        decision = decide(result, comparison, gate, users=len(fitted.users), movies=len(fitted.movies))
        facts = {
            "ratings": provenance.summary(),
            "model": f"{fitted.run_id}, solver {fitted.solver}, {fitted.module.factors} factors",
            "trained on": f"{len(seen):,} ratings of {len(fitted.users):,} users and {len(fitted.movies):,} movies",
            "hash of these": provenance.content_hash,
            "code": fitted.git_sha,
        }
        users = examples(seen, steered, test, fitted, titles_beside(provenance.source))
        judged = Report(result, decision, comparison, users, fitted.metrics["epochs"], facts)
        write_report(judged, Path(report.path), Path(evaluation.path))
        # In the folder of the run, where the step that ends it looks.
        with written_aside(Path(report.path).parents[1] / "verdict.txt") as aside:
            aside.write_text(decision.summary())
    scores = {"": result.model, "global_mean_": result.global_mean, "user_movie_bias_": result.user_movie_bias}
    for name, score in scores.items():
        metrics.log_metric(f"{name}rmse", float(score.rmse))
        metrics.log_metric(f"{name}mae", float(score.mae))
    for name, lists in {"": result.ranking.model, "popularity_": result.ranking.popularity}.items():
        if lists:
            metrics.log_metric(f"{name}ndcg", lists.ndcg)
            metrics.log_metric(f"{name}hit_rate", lists.hit_rate)
    if comparison and comparison.figures:
        metrics.log_metric("champion_rmse", comparison.figures.champion_rmse)
        metrics.log_metric("rmse_above_champion", comparison.figures.difference)
    metrics.log_metric("test_rows", result.test_rows)
    metrics.log_metric("unseen_users", result.unseen_users.ids)
    metrics.log_metric("unseen_movies", result.unseen_movies.ids)
    metrics.log_metric("publish", int(decision.publish))
    evaluation.metadata.update(metrics.metadata, decision=decision.summary())
    report.metadata.update(rmse=float(result.model.rmse), run_id=fitted.run_id, decision=decision.summary())
    print(verdict(result))
    print(decision.summary())
    return decision.verdict
