from kfp.dsl import Dataset, Input, Model, Output

from components.base import component


@component
def train(
    train_ratings: Input[Dataset],
    validation_ratings: Input[Dataset],
    initial_model: Input[Model],
    model: Output[Model],
    solver: str,
    solver_options: dict,
    ranking: str,
    ranking_options: dict,
    factors: int,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    relevance_threshold: str,
    train_accelerator_count: int,
    init_from: str = "",
    trials: int = 0,
    trial_minutes: float = 0.0,
    trial_objective: str = "rmse",
):
    """Trains the matrix factorization and the ranking model, on a GPU if there is one. A step that was stopped and is
    retried resumes from its checkpoint."""
    parameters = dict(locals())

    import os
    from pathlib import Path

    from mf.checkpoint import CheckpointFile, reporter
    from mf.errors import reported
    from mf.nodes import Nodes
    from mf.parameters import chosen_solver, ranking_config, solver_config, sweep_choices, sweep_config
    from mf.ratings.schema import read_ratings
    from mf.solvers import processes_line
    from mf.sweep.journal import remove_journal
    from mf.sweep.search import check_optuna, search
    from mf.train import assist, pick_device
    from mf.train import train as train_model
    from mf.warm_start import EarlierModel

    with reported():
        # First, because a training that was meant for a GPU would take hours on a CPU.
        device, where = pick_device(use_cuda=True, gpus=train_accelerator_count)
        nodes, processes = Nodes.of(os.environ), max(1, train_accelerator_count)
        where += f", machine {nodes.rank + 1} of {nodes.count}" if nodes.count > 1 else ""
        config, lists, sweep = solver_config(parameters), ranking_config(parameters), sweep_config(parameters)
        if sweep.wanted:
            check_optuna()
        ratings, provenance = read_ratings(Path(train_ratings.path), encoded=True)
        validation, _ = read_ratings(Path(validation_ratings.path), encoded=True)
        sweep.check(val_size=len(validation), processes={"train_nodes": nodes.count})
        chosen, why = chosen_solver(parameters)
        what = f"solver {chosen}, {factors} factors" if provenance.has_ratings else "lists alone, there are no ratings"
        print(f"{where}: {what}, {len(ratings):,} training and {len(validation):,} validation rows", flush=True)
        if why and provenance.has_ratings:
            print(why, flush=True)
        if provenance.has_ratings and (change := processes_line(config, processes * nodes.count)):
            print(change, flush=True)
        # In the run's folder, which is the same for every attempt.
        checkpoint = CheckpointFile(Path(model.path).parents[1] / "train.checkpoint", share=0.01)
        earlier = EarlierModel.read(Path(initial_model.path)) if Path(initial_model.path).exists() else None
        found, journal = None, Path(model.path).parents[1] / "train.trials.json"
        if sweep.wanted:
            found = search(
                ratings,
                validation,
                sweep,
                sweep_choices(parameters),
                device=device,
                seed=seed,
                relevance_threshold=float(relevance_threshold) if relevance_threshold else None,
                journal=journal,
                say=lambda line: print(line, flush=True),
            )
            config, lists = found.config, found.ranking
            print(found.line(), flush=True)
        if nodes.rank:  # only the first machine writes outputs
            assist(
                ratings,
                validation,
                config,
                nodes=nodes,
                device=device,
                checkpoint=checkpoint,
                earlier=earlier,
                ranking=lists,
                processes=processes,
            )
            return
        trained = train_model(
            ratings,
            validation,
            config,
            device=device,
            callbacks=[reporter(checkpoint)],
            checkpoint=checkpoint,
            earlier=earlier,
            provenance=provenance,
            ranking=lists,
            progress=lambda report: print(report.line(), flush=True),
            processes=processes,
            nodes=nodes,
        )
        if found:
            trained.metrics["sweep"] = found.record()
        trained.save(Path(model.path))
        checkpoint.remove()
        remove_journal(journal)
    best = trained.metrics.get("validation_rmse")
    model.framework = "PyTorch"
    model.metadata.update(
        run_id=trained.run_id,
        solver=trained.solver or "none",
        ranking=ranking,
        factors=trained.factors,
        rows=len(ratings),
        content_hash=provenance.content_hash,
        git_sha=trained.git_sha,
        device=device.type,
    )
    if found:
        model.metadata.update(trials=len(found.trials), best_trial=found.best.number, chosen=found.best.shown())
    if best is not None:
        model.metadata["validation_rmse"] = best
    if trained.ranking:
        print(f"lists     {trained.ranking.summary()}")
    print(trained.summary())
