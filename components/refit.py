from kfp.dsl import Dataset, Input, Model, Output

from components.base import component


@component
def refit(
    ratings: Input[Dataset],
    train_ratings: Input[Dataset],
    judged_model: Input[Model],
    initial_model: Input[Model],
    model: Output[Model],
    refit: bool,
    train_accelerator_count: int,
):
    """Fits the accepted model once more on all ratings, also those that were held out, and checks the result. With
    refit=false, or where that fails, the model is the judged one."""
    import os
    import shutil
    from contextlib import suppress
    from pathlib import Path

    from mf.checkpoint import CheckpointFile, reporter
    from mf.errors import TrainingError, reported
    from mf.model_directory import TrainedModel
    from mf.nodes import Nodes
    from mf.ratings.batches import Batches
    from mf.ratings.schema import read_provenance
    from mf.refit import nothing_of, options_of
    from mf.refit import refit as fit_again
    from mf.train import assist, pick_device
    from mf.warm_start import EarlierModel

    with reported():
        judged = TrainedModel.load(Path(judged_model.path))
        chosen, nodes = judged, Nodes.of(os.environ)
        if nodes.rank and not refit:  # only the first machine writes outputs
            return
        if refit:
            device, where = pick_device(use_cuda=True, gpus=train_accelerator_count)
            everything, train_part = Path(ratings.path), Path(train_ratings.path)
            provenance, rows = read_provenance(everything), len(Batches(everything))
            print(f"{where}: fitting model {judged.run_id} to all {rows:,} ratings", flush=True)
            # In the run's folder, which is the same for every attempt.
            checkpoint = CheckpointFile(Path(model.path).parents[1] / "refit.checkpoint", share=0.01)
            earlier = EarlierModel.read(Path(initial_model.path)) if Path(initial_model.path).exists() else None
            processes = max(1, train_accelerator_count)
            if nodes.rank:
                config, lists = options_of(judged)
                with suppress(TrainingError):  # of which the first machine tells
                    assist(
                        everything,
                        nothing_of(everything),
                        config,
                        nodes=nodes,
                        device=device,
                        checkpoint=checkpoint,
                        earlier=earlier,
                        ranking=lists,
                        processes=processes,
                    )
                return
            judged.to(device)
            fitted = fit_again(
                judged,
                everything,
                train_part,
                device=device,
                callbacks=[reporter(checkpoint)],
                checkpoint=checkpoint,
                earlier=earlier,
                provenance=provenance,
                progress=lambda report: print(report.line(), flush=True),
                processes=processes,
                nodes=nodes,
            )
            chosen = fitted.model
            print(fitted.line)
        if chosen is judged:
            shutil.copytree(judged_model.path, model.path, dirs_exist_ok=True)
        else:
            chosen.save(Path(model.path))
        if refit:
            checkpoint.remove()
    model.framework = "PyTorch"
    model.metadata.update(run_id=chosen.run_id, judged=judged.run_id, solver=chosen.solver or "none")
