"""Dot products of rows by PyTorch's private operator and, where it is missing or wrong, by the plain product."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mf.solvers import dots

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def untried() -> Iterator[None]:
    """Forgets which devices have been tried."""
    dots.has_fused_dots.cache_clear()
    yield
    dots.has_fused_dots.cache_clear()


def case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    p, q = torch.randn(20, 64, generator=rng), torch.randn(30, 64, generator=rng)
    users, movies = (torch.randint(n, (500,), generator=rng, dtype=dtype) for n in (20, 30))
    return p, q, users, movies


def missing(*_: Any) -> Tensor:
    raise AttributeError("'_OpNamespace' 'aten' object has no attribute '_embedding_bag_per_sample_weights_backward'")


def refused(*_: Any) -> Tensor:
    raise RuntimeError("expected 7 arguments")


def changed(p: Tensor, q: Tensor, users: Tensor, movies: Tensor) -> Tensor:
    return torch.zeros(len(users))


def test_this_pytorch_has_the_fused_operator() -> None:
    assert dots.has_fused_dots(CPU)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("operator", [None, missing, refused, changed])
def test_the_dots_are_those_of_the_gathered_rows(
    operator: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if operator:
        monkeypatch.setattr(dots, "fused_dots", operator)
    p, q, users, movies = case(dtype)
    assert dots.has_fused_dots(CPU) == (operator is None)
    expected = (p.double()[users.long()] * q.double()[movies.long()]).sum(1)
    found = dots.row_dots(p, q, users, movies)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
