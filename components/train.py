from kfp.dsl import Dataset, Input, Model, Output

from components.base import component


@component
def train(
    train_ratings: Input[Dataset],
    validation_ratings: Input[Dataset],
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
):
    """Fits the matrix factorization, on the GPU when the machine has one; -1 and "" leave an option to the solver."""
    from pathlib import Path

    from mf.errors import reported
    from mf.ratings.schema import read_ratings
    from mf.solvers import configure
    from mf.train import options_given, pick_device
    from mf.train import train as fit

    with reported():
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
        config = configure(solver, {"factors": factors, "seed": seed, **given}, tuned=True)
        ratings, _ = read_ratings(Path(train_ratings.path))
        validation, _ = read_ratings(Path(validation_ratings.path))
        device, where = pick_device(use_cuda=True)
        print(where)
        fitted = fit(ratings, validation, config, device=device, callbacks=[lambda e: print(e.line(), flush=True)])
        fitted.save(Path(model.path))
    best = fitted.metrics["validation_rmse"]
    model.metadata.update(run_id=fitted.run_id, solver=fitted.solver, factors=factors, git_sha=fitted.git_sha)
    if best is not None:
        model.metadata["validation_rmse"] = best
    print(fitted.summary())
