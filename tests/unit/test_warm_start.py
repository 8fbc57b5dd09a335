"""Warm start of training from an earlier model."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mf.checkpoint import CheckpointFile
from mf.errors import ConfigError, DataError
from mf.model_directory import TrainedModel
from mf.ratings.schema import MOVIE, RATING, USER
from mf.solvers import configure
from mf.solvers.base import InitialRows
from mf.train import train
from mf.warm_start import EarlierModel

CPU = torch.device("cpu")
USERS, MOVIES, RATINGS = 300, 200, 15_000
QUICK: dict[str, dict[str, Any]] = {
    "adam": {"factors": 34},
    "sgd": {"factors": 34, "batch_size": 256, "epochs": 20, "patience": 0},
}
warm_solvers = pytest.mark.parametrize("solver", QUICK)


@cache
def planted() -> pa.Table:
    """15,000 ratings: biases, rank 2 and N(0, 0.5²)."""
    rng = np.random.default_rng(0)
    users, movies = np.divmod(rng.permutation(USERS * MOVIES)[:RATINGS], MOVIES)
    p, q = rng.normal(0, 0.8, (USERS, 2)), rng.normal(0, 0.8, (MOVIES, 2))
    b_u, b_m = rng.normal(0, 0.4, USERS), rng.normal(0, 0.4, MOVIES)
    ratings = 3.5 + b_u[users] + b_m[movies] + (p[users] * q[movies]).sum(1) + rng.normal(0, 0.5, RATINGS)
    return pa.table({USER: users, MOVIE: movies, RATING: ratings.astype(np.float32)})


def parts() -> tuple[pa.Table, pa.Table]:
    """13,500 ratings to train on and 1,500 to validate."""
    return planted().slice(0, 13_500), planted().slice(13_500)


def fitted(solver: str, ratings: pa.Table, earlier: EarlierModel | None = None, **options: Any) -> TrainedModel:
    config = configure(solver, {**QUICK[solver], **options})
    return train(ratings, parts()[1], config, device=CPU, earlier=earlier)


def saved(model: TrainedModel, directory: Path) -> EarlierModel:
    model.save(directory)
    earlier = EarlierModel.find(str(directory), pytest.fail)
    assert earlier is not None
    return earlier


@cache
def yesterdays(solver: str) -> TrainedModel:
    """Of most of the ratings, without those of 6 users and 4 movies."""
    ratings = parts()[0].slice(0, 13_000)
    seen = (ratings[USER].to_numpy() < USERS - 6) & (ratings[MOVIE].to_numpy() < MOVIES - 4)
    return fitted(solver, ratings.filter(pa.array(seen)))


def curve(model: TrainedModel) -> list[float]:
    return [epoch["validation_rmse"] for epoch in model.metrics["epochs"]]


@warm_solvers
def test_three_epochs_reach_the_rmse_of_ten_without_it_and_beat_six(solver: str, tmp_path: Path) -> None:
    """Measured, with 3, without it with 6 and with 10 epochs: adam 0.574, 0.671, 0.578; sgd 0.552, 0.683, 0.549."""
    warm = fitted(solver, parts()[0], saved(yesterdays(solver), tmp_path), epochs=3)
    cold = {epochs: min(curve(fitted(solver, parts()[0], epochs=epochs))) for epochs in (6, 10)}
    assert min(curve(warm)) < cold[6] - 0.08
    assert min(curve(warm)) < 1.01 * cold[10]
    assert warm.metrics["init_from"] == yesterdays(solver).run_id
    assert f"started from {yesterdays(solver).run_id}" in warm.summary()


@warm_solvers
def test_before_the_first_step_it_predicts_what_the_earlier_model_does(solver: str, tmp_path: Path) -> None:
    earlier = saved(yesterdays(solver), tmp_path)
    known = parts()[0].slice(0, 3000)
    known = known.filter(pa.array((known[USER].to_numpy() < USERS - 6) & (known[MOVIE].to_numpy() < MOVIES - 4)))
    # A step size of nothing at all leaves the model where it started.
    still = fitted(solver, parts()[0], earlier, lr=1e-30, epochs=1)
    theirs, ours = (model.predict(known[USER], known[MOVIE]) for model in (yesterdays(solver), still))
    np.testing.assert_allclose(ours, theirs, atol=0.02)
    assert curve(still)[0] < min(curve(yesterdays(solver))) + 0.02


def test_zero_factors_start_as_without_it_and_surplus_factors_are_cut() -> None:
    side = InitialRows(torch.tensor([2, 0]), torch.tensor([[1.0, 2, 0], [3, 0, 0]]), torch.tensor([0.5, 0.25]))
    vectors, biases = torch.full((3, 4), 9.0), torch.zeros(3)
    side.scatter_into(vectors, biases)
    assert vectors.tolist() == [[3, 0, 9, 9], [9, 9, 9, 9], [1, 2, 9, 9]]
    assert biases.tolist() == [0.25, 0, 0.5]
    narrow = torch.full((3, 1), 9.0)
    side.scatter_into(narrow, biases, row_of=torch.tensor([1, 0, 2]))
    assert narrow.tolist() == [[9], [3], [1]]


def test_text_ids_of_a_database_match_integer_ids(tmp_path: Path) -> None:
    model = yesterdays("sgd")
    earlier = saved(model, tmp_path)
    text = EarlierModel(
        earlier.header,
        *(type(side)(side.ids.cast(pa.string()), side.bias, side.vectors) for side in (earlier.users, earlier.movies)),
    )
    ours, theirs = (one.initial(model.users, model.movies) for one in (earlier, text))
    for a, b in ((ours.users, theirs.users), (ours.movies, theirs.movies)):
        assert len(a.rows) > 100
        assert torch.equal(a.rows, b.rows)
        assert torch.equal(a.vectors, b.vectors)


def test_ids_of_another_type_are_refused(tmp_path: Path) -> None:
    earlier = saved(yesterdays("sgd"), tmp_path)
    other = parts()[0].set_column(0, USER, pa.array([f"u{user}" for user in parts()[0][USER].to_pylist()]))
    config = configure("sgd", QUICK["sgd"])
    with pytest.raises(DataError, match="ids of type string cannot be looked up among ids of type int64"):
        train(other, other.slice(0, 0), config, device=CPU, earlier=earlier)


def test_a_missing_directory_and_a_solver_without_warm_start_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.json: cannot be read"):
        EarlierModel.find(str(tmp_path), pytest.fail)
    earlier = saved(yesterdays("sgd"), tmp_path)
    for solver in ("vb", "gibbs"):
        with pytest.raises(
            ConfigError, match=f"init_from: solver {solver} cannot start from an earlier model.*adam and sgd can"
        ):
            train(*parts(), configure(solver, {}), device=CPU, earlier=earlier)


def test_a_checkpoint_of_a_training_that_started_elsewhere_is_refused(tmp_path: Path) -> None:
    checkpoint = CheckpointFile(tmp_path / "checkpoint")
    config = configure("sgd", {**QUICK["sgd"], "epochs": 1})
    train(*parts(), config, device=CPU, checkpoint=checkpoint)
    earlier = saved(yesterdays("sgd"), tmp_path / "model")
    with pytest.raises(ConfigError, match=f"init_from None, this training has init_from {earlier.header.run_id}"):
        train(*parts(), config, device=CPU, checkpoint=checkpoint, earlier=earlier)
