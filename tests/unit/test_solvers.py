"""What every solver must do, whichever it is: one contract, on planted ratings whose noise is known."""

import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mf.biases import BiasModel
from mf.checkpoint import CheckpointFile
from mf.errors import ConfigError, DataError, TrainingError
from mf.model import MatrixFactorization
from mf.solvers import SOLVERS, EpochReport, RatingTensors, configure, fit, solver_of
from mf.solvers.adam import ORIGINAL

CPU = torch.device("cpu")
USERS, MOVIES, RATINGS, NOISE = 300, 200, 12_000, 0.5

# What makes a solver quick on 12,000 ratings.
QUICK: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd": {"factors": 34, "batch_size": 256},
    "vb": {"factors": 16, "rank": 4},
    "gibbs": {"factors": 16, "rank": 4, "epochs": 30, "burn_in": 8},
}
# Five epochs, of which gibbs averages the last three.
SHORT = {solver: {**options, "epochs": 5} for solver, options in QUICK.items()}
SHORT["gibbs"]["burn_in"] = 2

every_solver = pytest.mark.parametrize("solver", SOLVERS)


@cache
def planted() -> tuple[RatingTensors, RatingTensors, RatingTensors]:
    """12,000 ratings to train on, 1,500 to validate and 1,500 to test: biases, rank 2 and N(0, 0.5²), neither rounded
    nor clipped. No prediction has an RMSE below 0.5 but by chance."""
    g = torch.Generator().manual_seed(0)
    pairs = torch.randperm(USERS * MOVIES, generator=g)[: RATINGS + 3000]
    users, movies = pairs // MOVIES, pairs % MOVIES
    p, q = (0.8 * torch.randn(n, 2, generator=g) for n in (USERS, MOVIES))
    b_u, b_m = (0.4 * torch.randn(n, generator=g) for n in (USERS, MOVIES))
    noise = NOISE * torch.randn(len(pairs), generator=g)
    ratings = 3.5 + b_u[users] + b_m[movies] + (p[users] * q[movies]).sum(1) + noise
    whole = RatingTensors(users, movies, ratings, USERS, MOVIES)
    ends = (0, RATINGS, RATINGS + 1500, RATINGS + 3000)
    train, validation, test = (cut(whole, slice(a, b)) for a, b in pairwise(ends))
    return train, validation, test


def cut(data: RatingTensors, rows: slice) -> RatingTensors:
    return replace(data, users=data.users[rows], movies=data.movies[rows], ratings=data.ratings[rows])


def none(like: RatingTensors) -> RatingTensors:
    return cut(like, slice(0, 0))


def fitted(
    solver: str, train: RatingTensors, validation: RatingTensors, **options: Any
) -> tuple[MatrixFactorization, list[EpochReport]]:
    reports: list[EpochReport] = []
    model = fit(train, validation, configure(solver, options), CPU, [reports.append])
    return model, reports


@cache
def planted_fit(solver: str) -> tuple[MatrixFactorization, list[EpochReport]]:
    train, validation, _ = planted()
    return fitted(solver, train, validation, **QUICK[solver])


@cache
def bias_model() -> BiasModel:
    train = planted()[0]
    return BiasModel.fit(train.users.numpy(), train.movies.numpy(), train.ratings.numpy(), USERS, MOVIES)


def biases(users: Tensor, movies: Tensor) -> Tensor:
    """The bias model's predictions float64[N]."""
    return torch.from_numpy(bias_model().predict(users.numpy(), movies.numpy()))


def rmse(predicted: Tensor, actual: Tensor) -> float:
    return float((predicted.double() - actual).square().mean().sqrt())


def learned(model: MatrixFactorization) -> dict[str, Tensor]:
    """All but the range of the ratings, which is that of the validation ratings as well."""
    return {name: table for name, table in model.state_dict().items() if not name.startswith("rating_")}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(table, other[name]) for name, table in one.items())


# The list


def test_the_list_names_each_solver_and_says_in_a_clause_when_to_choose_it() -> None:
    assert list(SOLVERS) == ["adam", "sgd", "vb", "gibbs"]
    for name, solver in SOLVERS.items():
        assert solver.name == name
        assert solver_of(solver.config()) is solver
        assert 2 < len(solver.help.split()) < 20
    assert [name for name, solver in SOLVERS.items() if solver.warm] == ["adam", "sgd"]


def test_the_original_trainers_values_are_a_preset_of_adam() -> None:
    config = configure("adam", ORIGINAL).model_dump()
    assert (config["batch_size"], config["epochs"], config["lr"], config["weight_decay"]) == (2048, 1, 1e-3, 1e-6)
    assert (config["l2"], config["schedule"], config["patience"], config["bias_damping"]) == (0, "constant", 0, 3)
    assert configure("adam", {}).model_dump()["batch_size"] is None


# How well


@pytest.mark.parametrize(("solver", "at_most"), [("adam", 1.15), ("sgd", 1.10), ("vb", 1.08), ("gibbs", 1.08)])
def test_its_error_is_near_the_noise_floor_and_far_below_that_of_biases(solver: str, at_most: float) -> None:
    """Measured over the floor of 0.5: adam 1.11, sgd, vb and gibbs 1.05 to 1.06; biases alone 2.01."""
    test = planted()[2]
    found = rmse(planted_fit(solver)[0].predict(test.users, test.movies), test.ratings)
    assert 0.97 * NOISE < found < at_most * NOISE
    assert found < rmse(biases(test.users, test.movies), test.ratings) - 0.3


@every_solver
@pytest.mark.parametrize("unseen", ["user", "movie"])
def test_predictions_for_unseen_rows_are_those_of_the_damped_bias_model(solver: str, unseen: str) -> None:
    test = planted()[2]
    nobody = torch.full_like(test.users, -1)
    pairs = (nobody, test.movies) if unseen == "user" else (test.users, nobody)
    theirs = biases(*pairs)
    assert theirs.std() > 0.35
    torch.testing.assert_close(planted_fit(solver)[0].predict(*pairs).double(), theirs, rtol=0, atol=1e-5)


@every_solver
def test_an_unseen_user_and_an_unseen_movie_together_get_the_mean(solver: str) -> None:
    nothing = torch.tensor([-1])
    answer = planted_fit(solver)[0].predict(nothing, nothing).item()
    assert answer == pytest.approx(planted()[0].ratings.mean().item())


@every_solver
def test_the_vectors_have_as_many_entries_as_asked_for_and_all_is_finite(solver: str) -> None:
    model, _ = planted_fit(solver)
    factors = QUICK[solver].get("factors", 64)
    assert model.factors == factors
    assert model.user_factors.weight.shape == (USERS, factors)
    assert model.movie_factors.weight.shape == (MOVIES, factors)
    for name, table in model.state_dict().items():
        assert table.isfinite().all(), name


@pytest.mark.parametrize("solver", ["vb", "gibbs"])
@pytest.mark.parametrize("scale", [100, 0.01])
def test_ratings_on_another_scale_give_predictions_on_that_scale(solver: str, scale: float) -> None:
    train, validation, test = planted()
    other = [replace(part, ratings=scale * part.ratings) for part in (train, validation)]
    found = fitted(solver, *other, **QUICK[solver])[0].predict(test.users, test.movies) / scale
    usual = planted_fit(solver)[0].predict(test.users, test.movies)
    assert rmse(found, usual) < 1e-3 * NOISE


# What it learns from


@every_solver
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(solver: str) -> None:
    train, validation, _ = planted()
    one, again, other = (fitted(solver, train, validation, **SHORT[solver], seed=s)[0].state_dict() for s in (5, 5, 6))
    assert same_bits(one, again)
    for name in ("user_factors.weight", "movie_factors.weight"):
        assert not torch.equal(one[name], other[name]), name


@every_solver
def test_validation_ratings_are_never_trained_on(solver: str) -> None:
    """Which epoch of adam and of sgd is the best one they may say, so there is only one."""
    train, validation, test = planted()
    options = {**SHORT[solver], **({"epochs": 1} if solver in ("adam", "sgd") else {})}
    other = cut(replace(test, ratings=7 - test.ratings), slice(1000))
    one, another = (learned(fitted(solver, train, v, **options)[0]) for v in (validation, other))
    assert same_bits(one, another)


@every_solver
def test_the_validation_rmse_of_unseen_rows_is_that_of_the_model(solver: str) -> None:
    train, _, test = planted()
    known = torch.arange(len(test))
    validation = replace(test, users=test.users.where(known % 3 > 0, -1), movies=test.movies.where(known % 4 > 0, -1))
    model, reports = fitted(solver, train, validation, **SHORT[solver])
    expected = rmse(model.predict(validation.users, validation.movies), test.ratings)
    assert next(r.validation_rmse for r in reversed(reports) if r.kept) == pytest.approx(expected, rel=1e-5)


# What it says


@every_solver
def test_every_epoch_reports_rmse_time_and_speed_and_the_kept_one_is_the_models(solver: str) -> None:
    model, reports = planted_fit(solver)
    validation = planted()[1]
    assert [r.epoch for r in reports] == list(range(1, len(reports) + 1))
    assert len(reports) <= reports[-1].epochs
    for report in reports:
        assert report.seconds > 0
        assert report.ratings_per_second == pytest.approx(RATINGS / report.seconds)
        assert 0 < report.train_rmse < 2
        assert re.match(
            rf"epoch {report.epoch}/{report.epochs}  validation RMSE {report.validation_rmse:.4f}  "
            r"train RMSE \d\.\d{4}  \d+\.\d s  [\d,]+ ratings/s  \d+ s left",
            report.line(),
        )
    kept = next(r for r in reversed(reports) if r.kept)
    assert kept.validation_rmse == pytest.approx(
        rmse(model.predict(validation.users, validation.movies), validation.ratings)
    )


@every_solver
def test_without_validation_ratings_every_epoch_is_run_and_reports_none(solver: str) -> None:
    train, validation, _ = planted()
    _, reports = fitted(solver, train, none(validation), **SHORT[solver])
    assert [r.epoch for r in reports] == [1, 2, 3, 4, 5]
    assert all(r.validation_rmse is None for r in reports)
    assert "validation" not in reports[0].line().split("\n")[0]


# Going on


class StopError(Exception):
    """Someone pulls the plug."""


def stop_after(epoch: int) -> Callable[[EpochReport], None]:
    def stop(report: EpochReport) -> None:
        if report.epoch == epoch:
            raise StopError

    return stop


def timeless(reports: list[EpochReport]) -> list[dict[str, Any]]:
    return [{**asdict(r), "seconds": 0, "ratings_per_second": 0} for r in reports]


@every_solver
@pytest.mark.parametrize("stopped_after", [1, 4])
def test_an_interrupted_and_resumed_training_gives_the_same_bits(
    solver: str, stopped_after: int, tmp_path: Path
) -> None:
    train, validation, _ = planted()
    config, file = configure(solver, SHORT[solver]), CheckpointFile(tmp_path / "state")
    whole, reports = fitted(solver, train, validation, **SHORT[solver])
    with pytest.raises(StopError):
        fit(train, validation, config, CPU, [stop_after(stopped_after)], file)
    resumed: list[EpochReport] = []
    model = fit(train, validation, config, CPU, [resumed.append], file)
    assert same_bits(whole.state_dict(), model.state_dict())
    assert timeless(resumed) == timeless(reports)
    assert len(reports) == 5


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_best_epoch_before_the_interruption_is_kept(solver: str, tmp_path: Path) -> None:
    """The validation ratings are turned upside down, so that all that is learned is for the worse."""
    train, validation, _ = planted()
    against = replace(validation, ratings=7 - validation.ratings)
    config, file = configure(solver, {**SHORT[solver], "patience": 3}), CheckpointFile(tmp_path / "state")
    with pytest.raises(StopError):
        fit(train, against, config, CPU, [stop_after(2)], file)
    resumed: list[EpochReport] = []
    model = fit(train, against, config, CPU, [resumed.append], file)
    assert [r.kept for r in resumed] == [True, False, False, False]
    found = rmse(model.predict(against.users, against.movies), against.ratings)
    assert found == pytest.approx(resumed[0].validation_rmse)


@every_solver
def test_a_checkpoint_of_other_options_or_ratings_is_refused_by_name(solver: str, tmp_path: Path) -> None:
    train, validation, test = planted()
    file = CheckpointFile(tmp_path / "state")
    config = configure(solver, SHORT[solver])
    with pytest.raises(StopError):
        fit(train, validation, config, CPU, [stop_after(1)], file)
    with pytest.raises(ConfigError, match=r"a training with seed 0, this training has seed 7: "):
        fit(train, validation, configure(solver, {**SHORT[solver], "seed": 7}), CPU, checkpoint=file)
    for parts in ((train, test), (replace(train, ratings=train.ratings + 0.5), validation)):
        with pytest.raises(ConfigError, match=r"a training with ratings \w+, this training has ratings \w+: "):
            fit(*parts, config, CPU, checkpoint=file)


def test_the_checkpoint_of_another_solver_is_refused(tmp_path: Path) -> None:
    train, validation, _ = planted()
    file = CheckpointFile(tmp_path / "state")
    with pytest.raises(StopError):
        fit(train, validation, configure("vb", SHORT["vb"]), CPU, [stop_after(1)], file)
    with pytest.raises(ConfigError, match="with solver vb, burn_in none, this training has solver gibbs, burn_in 2: "):
        fit(train, validation, configure("gibbs", SHORT["gibbs"]), CPU, checkpoint=file)


@every_solver
def test_a_file_that_is_no_checkpoint_is_refused_and_left_alone(solver: str, tmp_path: Path) -> None:
    train, validation, _ = planted()
    path = tmp_path / "state"
    path.write_text("userId,movieId,rating\n")
    with pytest.raises(DataError, match="is not a checkpoint"):
        fit(train, validation, configure(solver, SHORT[solver]), CPU, checkpoint=CheckpointFile(path))
    assert path.read_text() == "userId,movieId,rating\n"


# What cannot be


@pytest.mark.parametrize(("solver", "lr"), [("adam", 1e20), ("sgd", 1e6)])
def test_a_learning_rate_that_diverges_is_an_error_that_names_the_epoch_and_the_option(solver: str, lr: float) -> None:
    """Adam moves a parameter by lr, whatever is asked of it: at 1e20 the products are beyond float32."""
    train, validation, _ = planted()
    for part in (validation, none(validation)):
        with pytest.raises(TrainingError, match=rf"^epoch \d: .* lower --lr \(now {re.escape(f'{lr:g}')}\)"):
            fitted(solver, train, part, **{**SHORT[solver], "lr": lr})


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_rating_that_is_not_finite_is_an_error_that_names_the_epoch_and_what_to_lower(
    solver: str, value: float
) -> None:
    train, validation, _ = planted()
    ratings = train.ratings.clone()
    ratings[7] = value
    for part in (validation, none(validation)):
        with pytest.raises(TrainingError, match=r"^epoch 1: .*: lower --(lr|rank) \(now "):
            fitted(solver, replace(train, ratings=ratings), part, **SHORT[solver])


@every_solver
@pytest.mark.parametrize(("users", "movies"), [(1, 1), (1, 5), (5, 1)])
def test_one_user_one_movie_or_one_rating_is_enough(solver: str, users: int, movies: int) -> None:
    pairs = torch.arange(users * movies)
    train = RatingTensors(pairs // movies, pairs % movies, 4.0 - pairs % 4, users, movies)
    for validation in (train, none(train)):
        model, _ = fitted(solver, train, validation, **SHORT[solver])
        answers = model.predict(train.users, train.movies)
        assert rmse(answers, train.ratings) <= train.ratings.std(correction=0) + 0.01
        assert all(table.isfinite().all() for table in model.state_dict().values())


@pytest.mark.parametrize(
    ("solver", "option"), [("adam", "rank"), ("sgd", "dropout"), ("vb", "lr"), ("gibbs", "batch_size")]
)
def test_an_option_of_another_solver_is_refused_with_the_solvers_own(solver: str, option: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^--{option}: not an option of solver {solver}; its options are --factors, "
    ):
        configure(solver, {option: 1}, prefix="--")


def test_an_unknown_solver_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^solver: found 'als', expected one of adam, sgd, vb, gibbs$"):
        configure("als", {})
