"""The operations that adam and sgd use on a GPU, run on the CPU and on tensors without values."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from mf.solvers import SOLVERS, RatingTensors, configure, minibatch, sorting
from mf.solvers.base import Share
from mf.solvers.minibatch import Layout, MiniBatchTraining, layouts

USERS, MOVIES, RATINGS = 90, 70, 3001
CASES: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {}),
    ("adam", {}),
    ("adam", {"dropout": 0.1, "clip_grad": 0.5, "weight_decay": 1e-4}),
]
every_case = pytest.mark.parametrize(("solver", "options"), CASES)


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sorting, minibatch):
        monkeypatch.setattr(module, "on_gpu", lambda _: True)


def started(solver: str, options: dict[str, Any]) -> MiniBatchTraining:
    g = torch.Generator().manual_seed(0)
    users, movies = (
        torch.cat([torch.arange(n), (n * torch.rand(RATINGS - n, generator=g) ** 2).long()]) for n in (USERS, MOVIES)
    )
    data = RatingTensors(users, movies, 3 + torch.randn(RATINGS, generator=g), USERS, MOVIES)
    config = configure(solver, {"factors": 8, "batch_size": 32, **options})
    training = SOLVERS[solver].start(Share.of(data), data, config)
    assert isinstance(training, MiniBatchTraining)
    return training


def trained(solver: str, options: dict[str, Any]) -> tuple[Tensor, ...]:
    training = started(solver, options)
    with torch.no_grad():
        errors = [training.epoch(number) for number in (1, 2)]
    return *training.tables.all(), torch.tensor(errors)


@every_case
def test_an_epoch_is_the_cpus_and_the_same_bits_however_many_batches_are_sorted_at_a_time(
    solver: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained(solver, options)
    sorts: list[int] = []
    for module in (sorting, minibatch):
        monkeypatch.setattr(module, "on_gpu", lambda _: True)

    def counted(keys: Tensor, bound: int) -> Tensor:
        sorts.append(len(keys))
        return sorting.stable_argsort(keys, bound)

    monkeypatch.setattr(minibatch, "stable_argsort", counted)
    found, numbers = [], []
    for at_a_time in (1, 100, 1 << 22):
        monkeypatch.setattr(minibatch, "LAID_OUT", at_a_time)
        sorts.clear()
        found.append(trained(solver, options))
        numbers.append(len(sorts))
    assert numbers[0] > numbers[1] > numbers[2]
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)
    for table, on_cpu in zip(found[0], expected, strict=True):
        torch.testing.assert_close(table, on_cpu, rtol=1e-3, atol=1e-4)


def test_layouts_made_together_are_those_of_each_batch(as_on_gpu: None) -> None:
    training = started("adam", {})
    batches = training.ratings.batches(training.ratings.lanes[0], 0, 0, seed=1)
    assert len(batches) > 20
    assert len(batches[-1][0]) < len(batches[0][0])
    for batch, layout in zip(batches, layouts(batches, USERS, MOVIES), strict=True):
        alone = Layout.of(batch, USERS, MOVIES)
        assert torch.equal(layout.order, batch[1].argsort(stable=True))
        assert torch.equal(layout.users, alone.users)
        for one, other in ((layout.by_user, alone.by_user), (layout.by_movie, alone.by_movie)):
            for name in ("rows", "offsets", "counts", "full"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name


def without_values(x: Any) -> Any:
    """``x`` with its tensors on PyTorch's device "meta", which knows shapes and types and holds no values."""
    if isinstance(x, Tensor):
        return x.to("meta")
    if isinstance(x, list | tuple):
        return type(x)(map(without_values, x))
    return type(x)(**{field.name: without_values(getattr(x, field.name)) for field in fields(x)})


@every_case
def test_a_step_depends_on_no_value_so_that_a_cuda_graph_can_hold_it(
    solver: str, options: dict[str, Any], as_on_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes that depend on data, and numbers read back, are errors there; the learning rate is a scalar on the
    device."""
    monkeypatch.setattr("mf.solvers.dots.has_fused_dots", lambda _: False)  # it would try them, on values
    training = started(solver, options)
    batches = without_values(training.ratings.batches(training.ratings.lanes[0], 0, 0, seed=1))
    training.tables = without_values(training.tables)
    if solver == "sgd":
        training.penalty = without_values(training.penalty)  # type: ignore[attr-defined]
    else:
        for state in (*training.users, *training.movies):  # type: ignore[attr-defined]
            for name in ("table", "l2", "m", "v", "steps"):
                setattr(state, name, without_values(getattr(state, name)))
    lr = torch.empty((), dtype=torch.float64, device="meta")
    spans = slice(0, USERS), slice(0, MOVIES)
    with torch.no_grad():
        for batch, layout in zip(batches, layouts(batches, USERS, MOVIES), strict=True):
            error = training.step(batch, lr, torch.Generator(), spans, layout)
            assert (error.device.type, error.shape, error.dtype) == ("meta", (), torch.float64)
    with pytest.raises(NotImplementedError):
        torch.unique_consecutive(batches[0][0])  # its size depends on the values
