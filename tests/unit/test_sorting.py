"""Sorting and segments against NumPy, and the sums of gradients made with them against autograd."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mf.model import MatrixFactorization
from mf.solvers.minibatch import Tables
from mf.solvers.sorting import Segments, grouped, stable_argsort

RUNS = torch.tensor([2, 2, 2, 5, 7, 7], dtype=torch.int32)
ROWS, COUNTS = [2, 5, 7], [3, 1, 2]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("bound", [1, 300, 1 << 16, (1 << 16) + 1, 200_000, 1 << 30])
def test_the_order_equals_numpys_stable_argsort(bound: int, dtype: torch.dtype) -> None:
    drawn = torch.randint(min(bound, 4000), (20_000,), generator=torch.Generator().manual_seed(0))
    keys = bound - 1 - drawn * (bound // min(bound, 4000))  # many equal ones, over the whole range
    keys[:2] = torch.tensor([0, bound - 1])
    order = stable_argsort(keys.to(dtype), bound)
    assert order.dtype == torch.int64
    np.testing.assert_array_equal(order.numpy(), np.argsort(keys.numpy(), kind="stable"))


@pytest.mark.parametrize("at_most", [3, 4, 6, 10])
def test_a_known_number_of_runs_has_the_same_runs_first_and_then_empty_ones(at_most: int) -> None:
    exact, padded = Segments.of(RUNS, at_most), Segments.of_known_size(RUNS, at_most)
    assert exact.full is None
    assert padded.full is not None
    assert torch.equal(padded.full, padded.counts > 0)
    assert len(padded.rows) == min(at_most, len(RUNS))
    assert exact.rows.tolist() == padded.rows[:3].tolist() == ROWS
    assert exact.counts.tolist() == padded.counts[:3].tolist() == COUNTS
    assert exact.offsets.tolist() == padded.offsets[:3].tolist() == [0, 3, 4]
    assert not padded.counts[3:].any()


@pytest.mark.parametrize("at_most", [3, 4, 6, 10])
def test_sums_are_those_of_each_run_and_zero_for_empty_ones(at_most: int) -> None:
    values = torch.tensor([1.0, 2.0, -4.0, 8.0, 16.0, 0.5])
    rows, vectors = torch.tensor([1, 0, 1, 0, 1, 1], dtype=torch.int32), torch.tensor([[1.0, 10.0], [2.0, 20.0]])
    for segments in (Segments.of(RUNS, at_most), Segments.of_known_size(RUNS, at_most)):
        sums, bags = segments.sums(values), segments.weighted_sums(rows, vectors, values)
        assert sums[:3].tolist() == [-1.0, 8.0, 16.5]
        assert bags[:3].tolist() == [[-4.0, -40.0], [8.0, 80.0], [33.0, 330.0]]
        assert not sums[3:].any()
        assert not bags[3:].any()


@pytest.mark.parametrize("shape", [(10,), (10, 2)])
@pytest.mark.parametrize("build", [Segments.of, Segments.of_known_size])
def test_scatter_writes_the_rows_of_the_runs_and_no_others(build: type, shape: tuple[int, ...]) -> None:
    """An empty run names a row as well, here one that a run has: what is given for it must not show."""
    segments: Segments = build(RUNS, 10)
    table = torch.arange(10.0).view(-1, *(1 for _ in shape[1:])).expand(shape).clone()
    expected = table.clone()
    values = torch.full((len(segments.rows), *shape[1:]), 999.0)
    for i, row in enumerate(ROWS):
        values[i] = expected[row] = -float(i + 1)
    segments.scatter(table, values)
    assert torch.equal(table, expected)


def test_one_row_alone_is_one_run() -> None:
    for segments in (Segments.of(RUNS[:1], 10), Segments.of_known_size(RUNS[:1], 10)):
        assert (segments.rows.tolist(), segments.offsets.tolist(), segments.counts.tolist()) == ([2], [0], [1])


def test_entries_are_grouped_by_row_in_the_order_they_came_in_and_pairs_that_occur_twice_stay_two() -> None:
    rows, columns = torch.tensor([2, 0, 2, 0, 2, 3]), torch.tensor([4, 1, 0, 1, 4, 2], dtype=torch.int32)
    ordered, values = grouped(rows, columns, torch.arange(6.0), 5)
    assert (ordered.tolist(), values.tolist()) == ([1, 1, 4, 0, 4, 2], [1, 3, 0, 2, 4, 5])
    assert (ordered.dtype, values.dtype) == (torch.int32, torch.float32)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("runs", ["of the batch", "of known size", "within spans"])
def test_a_batchs_gradients_are_those_of_autograd_in_float64(
    dropout: float, runs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runs == "of known size":
        monkeypatch.setattr(Segments, "of", Segments.of_known_size)
    g = torch.Generator().manual_seed(0)
    model = MatrixFactorization(12, 9, 4, rating_min=0, rating_max=5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, generator=g)
    users, movies = torch.randint(12, (50,), generator=g).sort().values, torch.randint(9, (50,), generator=g)
    ratings = torch.randn(50, generator=g)
    vectors = model.user_factors.weight.data, model.movie_factors.weight.data
    tables = Tables(*vectors, *(bias.weight.data.squeeze(1) for bias in (model.user_bias, model.movie_bias)))
    batch = users.int(), movies.int(), ratings
    if dropout:
        residuals, derivatives = tables.residuals_with_dropout(batch, dropout, torch.Generator().manual_seed(1))
    else:
        residuals, derivatives = tables.residuals(batch), None
    spans = (slice(0, 12), slice(0, 9)) if runs == "within spans" else None
    by_user, by_movie = tables.gradient_sums(batch, residuals, derivatives, spans)
    assert isinstance(by_user.segments.rows, slice) == (runs == "within spans")

    # What is dropped is drawn anew as the batch drew it: of the products of two entries.
    keep = (1 - dropout) ** 2
    kept = torch.empty(50, 4).bernoulli_(keep, generator=torch.Generator().manual_seed(1)) / keep
    model.double()
    p, q, b_u, b_m = model.embed(users, movies)
    error = ratings - (b_u + b_m + (kept * p * q).sum(1))
    torch.autograd.backward(error.square().sum() / 2)
    torch.testing.assert_close(residuals.double(), error, rtol=1e-5, atol=1e-5)
    for side, factors, bias in (
        (by_user, model.user_factors.weight.grad, model.user_bias.weight.grad),
        (by_movie, model.movie_factors.weight.grad, model.movie_bias.weight.grad),
    ):
        for found, expected in ((side.vectors, factors), (side.biases.unsqueeze(1), bias)):
            assert expected is not None
            placed: Tensor = torch.zeros_like(expected, dtype=torch.float32)
            side.segments.scatter(placed, found)
            torch.testing.assert_close(placed.double(), -expected, rtol=1e-4, atol=1e-5)
