"""RowAdam against torch's own Adam where both mean the same, and by hand where they differ."""

import torch
from torch import nn

from mf.solvers.row_adam import RowAdam

ROWS, WIDTH = 5, 3


def sparse(rows: list[int], values: torch.Tensor) -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, (ROWS, WIDTH), check_invariants=True)


def table(seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed)))


def step(parameter: nn.Parameter, optimiser: torch.optim.Optimizer, gradient: torch.Tensor) -> None:
    parameter.grad = gradient
    optimiser.step()


def test_it_is_torchs_adam_when_every_batch_touches_every_row() -> None:
    ours, theirs = table(), table()
    row_adam = RowAdam([ours], lr=0.02, betas=(0.8, 0.99), eps=1e-6)
    adam = torch.optim.Adam([theirs], lr=0.02, betas=(0.8, 0.99), eps=1e-6)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        gradient = torch.randn(ROWS, WIDTH, generator=generator)
        step(ours, row_adam, sparse(list(range(ROWS)), gradient))
        step(theirs, adam, gradient)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours, table(), atol=0.1)


def test_rows_that_no_rating_touches_keep_weights_and_moments_bit_for_bit() -> None:
    parameter = table()
    optimiser = RowAdam([parameter], lr=0.1)
    step(parameter, optimiser, sparse([0, 1, 2, 3, 4], torch.randn(ROWS, WIDTH)))
    state = optimiser.state[parameter]
    before = {"weights": parameter.detach().clone()} | {name: value.clone() for name, value in state.items()}
    step(parameter, optimiser, sparse([1, 3], torch.randn(2, WIDTH)))
    after = {"weights": parameter.detach()} | state
    for name, value in before.items():
        assert torch.equal(after[name][[0, 2, 4]], value[[0, 2, 4]]), name
        assert (after[name][[1, 3]] != value[[1, 3]]).all(), name


def test_a_row_that_stands_twice_in_a_batch_gets_the_sum_of_its_gradients_once() -> None:
    first, second = torch.randn(1, WIDTH), torch.randn(1, WIDTH)
    twice, summed = table(), table()
    optimisers = RowAdam([twice], lr=0.1), RowAdam([summed], lr=0.1)
    for _ in range(3):
        step(twice, optimisers[0], sparse([2, 4, 2], torch.cat([first, first, second])))
        step(summed, optimisers[1], sparse([2, 4], torch.cat([first + second, first])))
    assert torch.equal(twice, summed)
    assert optimisers[0].state[twice]["step"].tolist() == [0, 0, 3, 0, 3]


def test_the_first_step_of_a_row_that_comes_late_is_lr_in_the_gradients_direction() -> None:
    parameter = table()
    optimiser = RowAdam([parameter], lr=0.25)
    for _ in range(100):
        step(parameter, optimiser, sparse([0], torch.ones(1, WIDTH)))
    before = parameter.detach()[3].clone()
    step(parameter, optimiser, sparse([0, 3], torch.tensor([[1.0, 1.0, 1.0], [7.0, -1e-3, 300.0]])))
    moved = parameter.detach()[3] - before
    torch.testing.assert_close(moved, torch.tensor([-0.25, 0.25, -0.25]), rtol=2e-5, atol=0)


def test_a_table_without_a_gradient_stays_as_it_is() -> None:
    touched, untouched = table(), table()
    optimiser = RowAdam([touched, untouched], lr=0.1)
    step(touched, optimiser, sparse([0], torch.ones(1, WIDTH)))
    assert torch.equal(untouched, table())
    assert not torch.equal(touched, table())
