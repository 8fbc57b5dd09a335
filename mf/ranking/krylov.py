"""Orthonormal basis of a block Krylov space (Musco and Musco 2015)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mf.ranks import Ranks
from mf.workers import Workers, pieces

NEGLIGIBLE = 1e-6  # of a direction's squared length: as little beyond the basis is rounding noise
WEAK = 1e-4  # a direction that lost all but this of its squared length is orthogonalised a second time


def krylov_basis(
    start: Tensor,
    expand: Callable[[Tensor, slice], Tensor | None],
    rank: int,
    workers: Workers,
    ranks: Ranks | None = None,
) -> Tensor:
    """float32[n, at most rank], orthonormal columns that span start, A start, A² start, …; of all, this process's rows.

    Args:
        start: float32[n, K]; overwritten.
        expand: given the newest orthonormal columns and their place in the basis, returns A times them, or ``None``
            after the last of ``rank`` columns.
        rank: columns of the basis, at most; fewer where the space has fewer.
        ranks: the processes that the rows lie on; default: this one.
    """
    sums = _Sums(workers, ranks or Ranks.alone(), pieces(len(start)))
    basis = torch.empty(len(start), rank, device=start.device)
    have, block = 0, start
    while True:
        block = _orthonormal(block, basis[:, :have], sums)[:, : rank - have]
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


@dataclass(frozen=True)
class _Sums:
    """Pieces of work over the rows, and sums over the rows of all processes."""

    workers: Workers
    ranks: Ranks
    chunks: list[slice]

    def map(self, work: Callable[[slice], object]) -> None:
        self.workers.map(work, self.chunks)

    def sum(self, work: Callable[[slice], Tensor]) -> Tensor:
        """float64."""
        return self.ranks.sum(self.workers.sum(work, self.chunks))


def _orthonormal(block: Tensor, basis: Tensor, rows: _Sums) -> Tensor:
    """Orthonormal columns that span ``block`` beyond ``basis``, the longest first; none where it lies within.

    ``block`` is overwritten.
    """
    lengths = rows.sum(lambda at: block[at].square().sum(0))
    for second in (False, True):
        if basis.shape[1]:
            known = rows.sum(lambda at: basis[at].T @ block[at]).float()  # noqa: B023
            rows.map(lambda at: block[at].addmm_(basis[at], known, alpha=-1))  # noqa: B023
        gram = rows.sum(lambda at: block[at].T @ block[at])  # noqa: B023
        inverse = lengths.clamp(min=1e-30).rsqrt()
        values, vectors = torch.linalg.eigh(gram * inverse[:, None] * inverse)
        values, vectors = rows.ranks.same(values.flip(0)), rows.ranks.same(vectors.flip(1))
        kept = values > NEGLIGIBLE
        turn = (inverse[:, None] * vectors[:, kept] / values[kept].sqrt()).float()
        rows.map(lambda at: block[at, : turn.shape[1]].copy_(block[at] @ turn))  # noqa: B023
        block = block[:, : turn.shape[1]]
        if second or values[-1] >= WEAK:
            break
        lengths = torch.ones(block.shape[1], dtype=torch.float64, device=block.device)
    return block
