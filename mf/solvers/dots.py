"""Dot products of embedding rows, without gathering the rows first where PyTorch can."""

from functools import cache

import torch
from torch import Tensor


def row_dots(p: Tensor, q: Tensor, users: Tensor, movies: Tensor) -> Tensor:
    """p_u·q_m for pairs of rows, float32[B].

    They are the derivatives of an ``embedding_bag`` of q by its weights. PyTorch computes those straight from the two
    rows; gathered rows would be written and read once more. That operator is private, so the plain product takes its
    place where it is missing or does something else.

    Args:
        p, q: float32[n_users, K] and float32[n_movies, K].
        users, movies: int32[B] both, or int64[B] both; rows that exist.
    """
    if not has_fused_dots(p.device):
        return plain_dots(p, q, users, movies)
    return fused_dots(p, q, users, movies)


def plain_dots(p: Tensor, q: Tensor, users: Tensor, movies: Tensor) -> Tensor:
    """p_u·q_m of gathered rows, float32[B]."""
    dots: Tensor = torch.linalg.vecdot(p.index_select(0, users), q.index_select(0, movies))
    return dots


def fused_dots(p: Tensor, q: Tensor, users: Tensor, movies: Tensor) -> Tensor:
    """p_u·q_m by PyTorch's private operator, float32[B]."""
    by_weight = torch.ops.aten._embedding_bag_per_sample_weights_backward
    dots: Tensor = by_weight(p, q, movies, movies[:1], users, 0)  # 0: mode "sum"; the offsets are ignored
    return dots


@cache
def has_fused_dots(device: torch.device) -> bool:
    """Whether ``fused_dots`` gives p·q on ``device``, tried on a small case."""
    p, q = (torch.arange(6.0, device=device).view(3, 2) + start for start in (1, 7))
    users, movies = (torch.tensor(rows, dtype=torch.int32, device=device) for rows in ([2, 0, 2], [1, 1, 0]))
    try:
        return torch.equal(fused_dots(p, q, users, movies), plain_dots(p, q, users, movies))
    except (AttributeError, RuntimeError, TypeError):
        return False
