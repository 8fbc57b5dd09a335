"""Orthonormal basis of a block Krylov space (Musco and Musco 2015)."""

from collections.abc import Callable

import torch
from torch import Tensor

from mf.workers import Workers, pieces

NEGLIGIBLE = 1e-6  # of a direction's squared length: as little beyond the basis is rounding noise
WEAK = 1e-4  # a direction that lost all but this of its squared length is orthogonalised a second time


def krylov_basis(
    start: Tensor, expand: Callable[[Tensor, slice], Tensor | None], rank: int, workers: Workers
) -> Tensor:
    """float32[n, at most rank], orthonormal columns that span start, A start, A² start, …

    Args:
        start: float32[n, K]; overwritten.
        expand: given the newest orthonormal columns and their place in the basis, returns A times them, or ``None``
            after the last of ``rank`` columns.
        rank: columns of the basis, at most; fewer where the space has fewer.
    """
    chunks = pieces(len(start))
    basis = torch.empty(len(start), rank, device=start.device)
    have, block = 0, start
    while True:
        block = _orthonormal(block, basis[:, :have], workers, chunks)[:, : rank - have]
        if not block.shape[1]:
            return basis[:, :have]
        at = slice(have, have + block.shape[1])
        basis[:, at] = block
        del block  # as large as the next one
        have = at.stop
        following = expand(basis[:, at], at)
        if following is None:
            return basis
        block = following


def _orthonormal(block: Tensor, basis: Tensor, workers: Workers, chunks: list[slice]) -> Tensor:
    """Orthonormal columns that span ``block`` beyond ``basis``, the longest first; none where it lies within.

    ``block`` is overwritten.
    """
    lengths = workers.sum(lambda at: block[at].square().sum(0), chunks)
    for second in (False, True):
        if basis.shape[1]:
            known = workers.sum(lambda at: basis[at].T @ block[at], chunks).float()  # noqa: B023
            workers.map(lambda at: block[at].addmm_(basis[at], known, alpha=-1), chunks)  # noqa: B023
        gram = workers.sum(lambda at: block[at].T @ block[at], chunks)  # noqa: B023
        inverse = lengths.clamp(min=1e-30).rsqrt()
        values, vectors = torch.linalg.eigh(gram * inverse[:, None] * inverse)
        values, vectors = values.flip(0), vectors.flip(1)
        kept = values > NEGLIGIBLE
        turn = (inverse[:, None] * vectors[:, kept] / values[kept].sqrt()).float()
        workers.map(lambda at: block[at, : turn.shape[1]].copy_(block[at] @ turn), chunks)  # noqa: B023
        block = block[:, : turn.shape[1]]
        if second or values[-1] >= WEAK:
            break
        lengths = torch.ones(block.shape[1], dtype=torch.float64, device=block.device)
    return block
