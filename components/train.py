from kfp.dsl import Dataset, Input, Model, Output

from components.base import component


@component
def train(
    train_ratings: Input[Dataset],
    validation_ratings: Input[Dataset],
    initial_model: Input[Model],
    model: Output[Model],
    solver: str,
    factors: int,
    seed: int,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    l2: float,
    bias_damping: float,
    dropout: float,
    clip_grad: float,
    schedule: str,
    patience: int,
    init_std: float,
    block_users: int,
    row_damping: float,
    rank: int,
    fits: int,
    burn_in: int,
    gpus: int,
):
    """Fits the matrix factorization, on a GPU when there is one; -1 and "" leave an option to the solver. A step that
    was stopped and is run again goes on from where it was."""
    from pathlib import Path

    from mf.checkpoint import CheckpointFile, reporter
    from mf.errors import reported
    from mf.ratings.schema import read_ratings
    from mf.solvers import configure
    from mf.train import options_given, pick_device
    from mf.train import train as fit
    from mf.warm_start import EarlierModel

    with reported():
        # Before anything else: a training that was meant for a GPU would take hours on a CPU.
        device, where = pick_device(use_cuda=True, gpus=gpus)
        print(where, flush=True)
        given = options_given(
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            l2=l2,
            bias_damping=bias_damping,
            dropout=dropout,
            clip_grad=clip_grad,
            schedule=schedule,
            patience=patience,
            init_std=init_std,
            block_users=block_users,
            row_damping=row_damping,
            rank=rank,
            fits=fits,
            burn_in=burn_in,
        )
        config = configure(solver, {"factors": factors, "seed": seed, **given})
        ratings, provenance = read_ratings(Path(train_ratings.path))
        validation, _ = read_ratings(Path(validation_ratings.path))
        # The folder of the run, whatever the next attempt's own is called.
        checkpoint = CheckpointFile(Path(model.path).parents[1] / "train.checkpoint", share=0.1)
        callbacks = [reporter(checkpoint)]
        earlier = EarlierModel.read(Path(initial_model.path)) if Path(initial_model.path).exists() else None
        fitted = fit(
            ratings,
            validation,
            config,
            device=device,
            callbacks=callbacks,
            checkpoint=checkpoint,
            earlier=earlier,
            provenance=provenance,
        )
        fitted.save(Path(model.path))
        checkpoint.remove()
    best = fitted.metrics["validation_rmse"]
    model.framework = "PyTorch"
    model.metadata.update(
        run_id=fitted.run_id,
        solver=fitted.solver,
        factors=factors,
        rows=len(ratings),
        content_hash=provenance.content_hash,
        git_sha=fitted.git_sha,
        device=device.type,
    )
    if best is not None:
        model.metadata["validation_rmse"] = best
    print(fitted.summary())
