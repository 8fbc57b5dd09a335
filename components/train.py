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

    from mf.checkpoint import CheckpointFile, say_at_once
    from mf.errors import reported
    from mf.nodes import Nodes
    from mf.parameters import chosen_solver, ranking_config, solver_config, sweep_choices, sweep_config
    from mf.plan import Plan
    from mf.ratings.batches import Batches
    from mf.ratings.schema import read_provenance
    from mf.solvers import processes_line
    from mf.sweep.search import check_optuna
    from mf.train import assist, pick_device
    from mf.warm_start import EarlierModel

    with reported():
        # First, because a training that was meant for a GPU would take hours on a CPU.
        device, where = pick_device(use_cuda=True, gpus=train_accelerator_count)
        nodes, processes = Nodes.of(os.environ), max(1, train_accelerator_count)
        where += f", machine {nodes.rank + 1} of {nodes.count}" if nodes.count > 1 else ""
        config, lists, sweep = solver_config(parameters), ranking_config(parameters), sweep_config(parameters)
        if sweep.wanted:
            check_optuna()
        ratings, validation = Path(train_ratings.path), Path(validation_ratings.path)
        provenance, rows, held_out = read_provenance(ratings), len(Batches(ratings)), len(Batches(validation))
        sweep.check(val_size=held_out, processes={"train_nodes": nodes.count})
        chosen, why = chosen_solver(parameters)
        what = f"solver {chosen}, {factors} factors" if provenance.has_ratings else "lists alone, there are no ratings"
        print(f"{where}: {what}, {rows:,} training and {held_out:,} validation rows", flush=True)
        if why and provenance.has_ratings:
            print(why, flush=True)
        if provenance.has_ratings and (change := processes_line(config, processes * nodes.count)):
            print(change, flush=True)
        # In the run's folder, which is the same for every attempt.
        checkpoint = CheckpointFile(Path(model.path).parents[1] / "train.checkpoint", share=0.01)
        earlier = EarlierModel.read(Path(initial_model.path)) if Path(initial_model.path).exists() else None
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
        journal = Path(model.path).parents[1] / "train.trials.json"
        plan = Plan(config, lists, sweep, sweep_choices(parameters), checkpoint, journal)
        trained, found = plan.train(
            ratings,
            validation,
            device=device,
            say=say_at_once,
            relevance_threshold=float(relevance_threshold) if relevance_threshold else None,
            earlier=earlier,
            provenance=provenance,
            processes=processes,
            nodes=nodes,
        )
        trained.save(Path(model.path))
        plan.clean_up()
    best = trained.metrics.get("validation_rmse")
    model.framework = "PyTorch"
    model.metadata.update(
        run_id=trained.run_id,
        solver=trained.solver or "none",
        ranking=ranking,
        factors=trained.factors,
        rows=rows,
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
