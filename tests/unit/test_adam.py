"""The adam solver: each option by what it must do to the parameters, and the whole by a known noise floor."""

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mf.biases import BiasModel
from mf.errors import TrainingError
from mf.model import MatrixFactorization
from mf.solvers import EpochReport, RatingTensors, fit
from mf.solvers.adam import AdamState, clip_norm, one_cycle
from mf.solvers.config import ORIGINAL, AdamConfig
from mf.solvers.minibatch import Penalty, Tables
from mf.solvers.sorting import Segments

CPU = torch.device("cpu")
NOISE = 0.5
USERS, MOVIES, RATINGS = 800, 500, 40_000


def interactions(users: list[int], movies: list[int], ratings: list[float]) -> RatingTensors:
    u, m = torch.tensor(users, dtype=torch.int64), torch.tensor(movies, dtype=torch.int64)
    n_users, n_movies = (int(rows.max()) + 1 if len(rows) else 0 for rows in (u, m))
    return RatingTensors(u, m, torch.tensor(ratings, dtype=torch.float32), n_users, n_movies)


def small(seed: int = 0) -> tuple[RatingTensors, RatingTensors]:
    """300 and 60 ratings of 20 users and 15 movies, pure noise around 3.5."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(300, generator=generator)
    ratings = 3.5 + torch.randn(300, generator=generator)
    train = RatingTensors(pairs // 15, pairs % 15, ratings, 20, 15)
    held = pairs[:60]
    return train, RatingTensors(held // 15, held % 15, ratings[:60] + torch.randn(60, generator=generator), 20, 15)


NONE = interactions([], [], [])


def original(**options: Any) -> AdamConfig:
    """The original trainer's options: one epoch, constant learning rate, no early stopping."""
    return AdamConfig(**{**ORIGINAL, **options})


@cache
def planted() -> tuple[RatingTensors, RatingTensors, RatingTensors]:
    """Training, validation and test part (80, 10, 10%) of ratings mu + b_u + b_m + p·q + N(0, 0.5²), of rank 2, neither
    rounded nor clipped; users and movies unevenly busy. No predictor can have an RMSE below 0.5 but by chance."""
    rng = np.random.default_rng(0)
    activity, popularity = rng.lognormal(0, 0.5, USERS), rng.lognormal(0, 0.7, MOVIES)
    chance = np.outer(activity, popularity).ravel()
    pairs = rng.choice(USERS * MOVIES, RATINGS, replace=False, p=chance / chance.sum())
    users, movies = pairs // MOVIES, pairs % MOVIES
    p, q = rng.normal(0, 0.7, (USERS, 2)), rng.normal(0, 0.7, (MOVIES, 2))
    b_u, b_m = rng.normal(0, 0.4, USERS), rng.normal(0, 0.4, MOVIES)
    ratings = 3.5 + b_u[users] + b_m[movies] + (p[users] * q[movies]).sum(1) + rng.normal(0, NOISE, RATINGS)
    whole = RatingTensors(
        *(torch.tensor(x) for x in (users, movies, ratings.astype(np.float32))), n_users=USERS, n_movies=MOVIES
    )
    ends = (0, RATINGS * 8 // 10, RATINGS * 9 // 10, RATINGS)
    train, validation, test = (
        replace(whole, users=whole.users[a:b], movies=whole.movies[a:b], ratings=whole.ratings[a:b])
        for a, b in pairwise(ends)
    )
    return train, validation, test


@cache
def planted_model() -> tuple[MatrixFactorization, tuple[EpochReport, ...]]:
    train, validation, _ = planted()
    epochs: list[EpochReport] = []
    return fit(train, validation, AdamConfig(), CPU, [epochs.append]), tuple(epochs)


def bias_model() -> BiasModel:
    train = planted()[0]
    return BiasModel.fit(train.users.numpy(), train.movies.numpy(), train.ratings.numpy(), USERS, MOVIES)


def rmse(predicted: Tensor | np.ndarray, actual: Tensor) -> float:
    return float(np.sqrt(np.mean((np.asarray(predicted, np.float64) - actual.double().numpy()) ** 2)))


def test_the_defaults_come_near_the_noise_floor_of_planted_ratings() -> None:
    """Measured: 0.578 over a floor of 0.5 (40 ratings a user for 65 parameters each), biases alone 0.870."""
    test = planted()[2]
    model = rmse(planted_model()[0].predict(test.users, test.movies), test.ratings)
    biases = rmse(bias_model().predict(test.users.numpy(), test.movies.numpy()), test.ratings)
    assert NOISE - 0.02 < model < NOISE + 0.1
    assert model < biases - 0.25


def random_model(train: RatingTensors, factors: int = 3) -> MatrixFactorization:
    model = MatrixFactorization(train.n_users, train.n_movies, factors, rating_min=0, rating_max=5)
    for i, parameter in enumerate(model.parameters()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
    return model


def tables_of(model: MatrixFactorization) -> Tables:
    factors = model.user_factors.weight.data, model.movie_factors.weight.data
    return Tables(*factors, *(bias.weight.data.squeeze(-1) for bias in (model.user_bias, model.movie_bias)))


def test_weight_decay_adds_up_over_an_epoch_to_what_torch_adds_to_dense_gradients() -> None:
    train, _ = small()
    penalty = Penalty.of(train.counts(), l2=0, bias_damping=0, weight_decay=0.01)
    tables = tables_of(random_model(train))
    for table, rows, weights in (
        (tables.p, train.users, penalty.user_factors),
        (tables.q, train.movies, penalty.movie_factors),
        (tables.b_u, train.users, penalty.user_bias),
        (tables.b_m, train.movies, penalty.movie_bias),
    ):
        summed, moments = torch.zeros_like(table), AdamState(table, weights)
        for batch in torch.randperm(300).split(50):
            segments = Segments.of(rows[batch].sort().values.int(), len(table))
            no_error = torch.zeros(len(segments.rows), *table.shape[1:])
            summed.index_add_(0, segments.rows, moments.gradient(segments, no_error, 50))
        torch.testing.assert_close(summed, 6 * 0.01 * table, rtol=1e-4, atol=1e-7)


def test_the_gradient_is_that_of_autograd_penalty_included() -> None:
    train, _ = small()
    drawn = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:70]
    drawn = drawn[train.users[drawn].argsort()]
    users, movies, ratings = train.users[drawn], train.movies[drawn], train.ratings[drawn]
    model = random_model(train)
    tables, penalty = tables_of(model), Penalty.of(train.counts(), l2=0.07, bias_damping=3, weight_decay=0.02)
    batch = users.int(), movies.int(), ratings
    by_user, by_movie = tables.gradient_sums(batch, tables.residuals(batch))

    p, q, b_u, b_m = model.embed(users, movies)
    error = model(users, movies) - ratings
    loss = (
        error.square().mean()
        + (
            penalty.user_factors[users] * p.square().sum(-1)
            + penalty.movie_factors[movies] * q.square().sum(-1)
            + penalty.user_bias[users] * b_u.square()
            + penalty.movie_bias[movies] * b_m.square()
        ).mean()
    )
    loss.backward()
    for sums, error_sums, table, weights, expected in (
        (by_user, by_user.vectors, tables.p, penalty.user_factors, model.user_factors),
        (by_user, by_user.biases, tables.b_u, penalty.user_bias, model.user_bias),
        (by_movie, by_movie.vectors, tables.q, penalty.movie_factors, model.movie_factors),
        (by_movie, by_movie.biases, tables.b_m, penalty.movie_bias, model.movie_bias),
    ):
        gradient = AdamState(table, weights).gradient(sums.segments, error_sums, 70)
        found = torch.zeros_like(table).index_copy_(0, sums.segments.rows, gradient)
        assert expected.weight.grad is not None
        torch.testing.assert_close(found.view_as(expected.weight.grad), expected.weight.grad, rtol=1e-4, atol=1e-6)


def all_rows(n: int) -> Segments:
    return Segments.of(torch.arange(n, dtype=torch.int32), n)


def test_it_equals_torchs_adam_when_every_batch_touches_every_row() -> None:
    ours, theirs = (torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    moments, adam = AdamState(ours, torch.zeros(5)), torch.optim.Adam([theirs], lr=0.02)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        theirs.grad = torch.randn(5, 3, generator=generator)
        moments.step(all_rows(5), theirs.grad, 0.02)
        adam.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_rows_that_no_rating_touches_keep_weights_and_moments_bit_for_bit() -> None:
    moments = AdamState(torch.randn(5, 3), torch.zeros(5))
    moments.step(all_rows(5), torch.randn(5, 3), 0.1)
    before = [x.clone() for x in (moments.table, *moments.tensors())]
    moments.step(Segments.of(torch.tensor([1, 1, 3], dtype=torch.int32), 5), torch.randn(2, 3), 0.1)
    for old, new in zip(before, (moments.table, *moments.tensors()), strict=True):
        assert torch.equal(new[[0, 2, 4]], old[[0, 2, 4]])
        assert (new[[1, 3]] != old[[1, 3]]).all()


def test_the_first_step_of_a_row_that_comes_late_is_lr_in_the_gradients_direction() -> None:
    moments = AdamState(torch.zeros(5, 3), torch.zeros(5))
    for _ in range(20):
        moments.step(Segments.of(torch.tensor([0], dtype=torch.int32), 5), torch.ones(1, 3), 0.1)
    moments.step(Segments.of(torch.tensor([4], dtype=torch.int32), 5), torch.tensor([[3.0, -0.2, 1e-3]]), 0.1)
    torch.testing.assert_close(moments.table[4], torch.tensor([-0.1, 0.1, -0.1]), rtol=1e-4, atol=0)


def test_bias_damping_leaves_n_by_n_plus_damping_of_a_rows_mean_error() -> None:
    """Users come in pairs that rate 2.5 and 4.5, so that the movie's bias stays 0; l2 keeps the vectors at 0."""
    users, ratings = [], []
    for user, n in enumerate([1, 1, 4, 4, 20, 20]):
        users += [user] * n
        ratings += [4.5 if user % 2 else 2.5] * n
    train = interactions(users, [0] * len(users), ratings)
    config = original(factors=1, epochs=400, lr=0.05, schedule="one_cycle", weight_decay=0, l2=10, bias_damping=4)
    model = fit(train, NONE, config, CPU)
    bias = (model(torch.arange(6), torch.zeros(6, dtype=torch.int64)) - train.ratings.mean()).tolist()
    assert bias == pytest.approx([-1 / 5, 1 / 5, -1 / 2, 1 / 2, -5 / 6, 5 / 6], abs=0.005)


def test_clipping_bounds_the_norm_of_the_whole_gradient_and_keeps_its_direction() -> None:
    def clipped(largest: float) -> Tensor:
        gradients = [torch.tensor([[3.0, -4.0]]), torch.tensor([12.0])]
        clip_norm(gradients, largest)
        return torch.cat([g.flatten() for g in gradients])

    free = torch.tensor([3.0, -4.0, 12.0])
    torch.testing.assert_close(clipped(0.5), free / 26, rtol=1e-5, atol=1e-7)
    assert torch.equal(clipped(13.1), free)


def test_a_step_with_a_clipped_gradient_is_a_clipped_step() -> None:
    """A gradient far below Adam's eps of 1e-8 moves a parameter by a tenth of lr at most, another one by lr."""
    train, _ = small()
    mean = train.ratings.mean()
    moved = {
        clip: (fit(train, NONE, original(lr=0.5, clip_grad=clip), CPU)(train.users, train.movies) - mean).abs().max()
        for clip in (None, 1e-9)
    }
    assert moved[1e-9] < 0.1 < 0.4 < moved[None]


def test_dropout_changes_the_training_and_is_off_in_the_fitted_model() -> None:
    train, validation = small()
    config = original(epochs=3, lr=0.05, factors=8, init_std=0.5)
    plain, dropped = (fit(train, validation, config.model_copy(update={"dropout": p}), CPU) for p in (0.0, 0.5))
    assert not torch.equal(plain.user_factors.weight, dropped.user_factors.weight)
    assert not dropped.training
    assert torch.equal(dropped(train.users, train.movies), dropped(train.users, train.movies))


def test_dropout_keeps_a_pair_of_entries_where_both_are_kept_and_the_mean_of_the_prediction() -> None:
    n, factors = 2000, 16
    tables = Tables(torch.full((n, factors), 2.0), torch.full((n, factors), 3.0), torch.zeros(n), torch.zeros(n))
    rows = torch.arange(n, dtype=torch.int32)
    error, (by_movie, by_user) = tables.residuals_with_dropout(
        (rows, rows, torch.zeros(n)), 0.5, torch.Generator().manual_seed(0)
    )
    # Each entry is kept in half of the cases and then doubled, so their product in a quarter and times four.
    assert by_movie.unique().tolist() == [0, 8]
    assert torch.equal(by_user / 3, by_movie / 2)
    assert (by_user > 0).float().mean() == pytest.approx(0.25, abs=0.01)
    assert torch.allclose(-error, (by_movie * 3).sum(1))
    assert tables.p.unique().tolist() == [2]
    assert tables.q.unique().tolist() == [3]


OVERFITTING = original(epochs=60, lr=0.1, factors=16, batch_size=32, patience=3)


def test_it_stops_early_and_keeps_the_best_epoch() -> None:
    train, validation = small()
    epochs: list[EpochReport] = []
    model = fit(train, validation, OVERFITTING, CPU, [epochs.append])
    errors = [epoch.validation_rmse for epoch in epochs]
    best = errors.index(min(errors))
    assert len(epochs) == best + 1 + 3 < 60
    assert [epoch.epoch for epoch in epochs] == list(range(1, len(epochs) + 1))
    assert rmse(model.predict(validation.users, validation.movies), validation.ratings) == pytest.approx(errors[best])
    assert errors[best] < errors[-1] - 0.01


def test_without_patience_every_epoch_is_run_and_the_best_one_kept() -> None:
    train, validation = small()
    epochs: list[EpochReport] = []
    config = OVERFITTING.model_copy(update={"epochs": 15, "patience": 0})
    model = fit(train, validation, config, CPU, [epochs.append])
    assert len(epochs) == 15
    found = rmse(model.predict(validation.users, validation.movies), validation.ratings)
    assert found == pytest.approx(min(epoch.validation_rmse for epoch in epochs))


def test_without_validation_ratings_every_epoch_is_run_and_the_last_one_kept() -> None:
    train, _ = small()
    epochs: list[EpochReport] = []
    model = fit(train, NONE, OVERFITTING.model_copy(update={"epochs": 12}), CPU, [epochs.append])
    assert [epoch.validation_rmse for epoch in epochs] == [None] * 12
    assert rmse(model.predict(train.users, train.movies), train.ratings) < epochs[-2].train_rmse < epochs[0].train_rmse


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    train, validation = small()
    config = original(epochs=3, factors=4, lr=0.05, dropout=0.2, batch_size=64, schedule="one_cycle")
    states = [fit(train, validation, config.model_copy(update={"seed": seed}), CPU).state_dict() for seed in (5, 5, 6)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert not torch.equal(states[0]["user_factors.weight"], states[2]["user_factors.weight"])


def test_validation_ratings_are_not_trained_on() -> None:
    train, validation = small()
    config = original(epochs=1, factors=4, lr=0.05)
    with_it, without = fit(train, validation, config, CPU).state_dict(), fit(train, NONE, config, CPU).state_dict()
    assert with_it["rating_min"] <= without["rating_min"]  # the range is that of all that is known
    learned = with_it.keys() - {"rating_min", "rating_max"}
    assert all(torch.equal(with_it[name], without[name]) for name in learned)


def test_validation_ratings_of_unseen_users_and_movies_are_scored() -> None:
    train, _ = small()
    validation = RatingTensors(torch.tensor([-1, 3, -1]), torch.tensor([2, -1, -1]), torch.ones(3), 20, 15)
    epochs: list[EpochReport] = []
    model = fit(train, validation, original(lr=0.05), CPU, [epochs.append])
    mu, b_u, b_m = (x.detach() for x in (model.mu, model.user_bias.weight[3, 0], model.movie_bias.weight[2, 0]))
    expected = torch.stack([mu + b_m, mu + b_u, mu]) - 1
    assert epochs[0].validation_rmse == pytest.approx(expected.square().mean().sqrt().item(), rel=1e-5)


def test_one_cycle_equals_torchs() -> None:
    adam = torch.optim.Adam([torch.zeros(1)])
    theirs = torch.optim.lr_scheduler.OneCycleLR(adam, 1.0, total_steps=1001, pct_start=0.1)
    for step in range(1000):
        assert one_cycle(step / 1000) == pytest.approx(theirs.get_last_lr()[0], abs=0.01)
        adam.step()
        theirs.step()


def test_one_cycle_rises_to_lr_in_a_tenth_of_the_steps_and_falls_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[float] = []
    step = AdamState.step

    def noted(self: AdamState, segments: Segments, g: Tensor, size: float) -> None:
        sizes.append(size)
        step(self, segments, g, size)

    monkeypatch.setattr(AdamState, "step", noted)
    fit(small()[0], NONE, original(epochs=20, batch_size=60, lr=0.02, schedule="one_cycle"), CPU)
    assert len(sizes) == 4 * 100  # four tables
    assert max(sizes) == pytest.approx(0.02, rel=0.01)
    assert 7 <= int(np.argmax(sizes[::4])) <= 12
    assert sizes[0] == pytest.approx(0.02 / 25)
    assert sizes[-1] < 0.02 / 500
    sizes.clear()
    fit(small()[0], NONE, original(epochs=2, batch_size=60, lr=0.02), CPU)
    assert sizes == [0.02] * 40


@pytest.mark.parametrize("steps", [1, 2, 8, 9, 10, 19])
def test_one_cycle_takes_any_number_of_steps(steps: int) -> None:
    epochs: list[EpochReport] = []
    fit(small()[0], NONE, original(epochs=steps, schedule="one_cycle"), CPU, [epochs.append])
    assert len(epochs) == steps


@pytest.mark.parametrize(
    ("options", "validated", "said"),
    [
        ({"lr": 1e30, "batch_size": 30, "epochs": 3}, True, "epoch 1: the train RMSE is (nan|inf): "),
        ({"lr": 1e30, "epochs": 3}, True, "epoch 1: the validation RMSE is nan: "),
        ({"lr": 1e30, "epochs": 2}, False, "epoch 2: the train RMSE is (nan|inf): "),
        ({"lr": 1e30}, False, "epoch 1: (parameters|predictions) are not finite: "),
    ],
)
def test_a_value_that_is_not_finite_ends_the_training_with_the_epoch_and_what_to_lower(
    options: dict[str, float], validated: bool, said: str
) -> None:
    train, validation = small()
    with pytest.raises(TrainingError, match=rf"^{said}lower --lr \(now 1e\+30\), or set --clip_grad 1$"):
        fit(train, validation if validated else NONE, original(**options), CPU)


def test_the_callers_number_of_threads_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        fit(small()[0], NONE, original(), CPU)
        with pytest.raises(TrainingError):
            fit(small()[0], NONE, original(lr=1e30), CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_range_is_that_of_all_ratings_and_the_mean_that_of_the_training_ratings() -> None:
    train, validation = small()
    validation = replace(validation, ratings=validation.ratings.clone())
    validation.ratings[0] = 99
    model = fit(train, validation, original(lr=1e-9), CPU)
    lowest = min(train.ratings.min().item(), validation.ratings.min().item())
    assert (model.rating_min.item(), model.rating_max.item()) == (pytest.approx(lowest), 99)
    assert model.mu.item() == pytest.approx(train.ratings.double().mean().item(), abs=1e-3)


def test_an_epochs_line_shows_rmse_speed_and_remaining_time() -> None:
    report = EpochReport(3, 5, 0.8, 0.87314, 1.5, 12345.6, kept=True)
    assert report.line() == ("epoch 3/5  validation RMSE 0.8731  train RMSE 0.8000  1.5 s  12,346 ratings/s  3 s left")
    assert replace(report, validation_rmse=None).line().startswith("epoch 3/5  train RMSE 0.8000")
