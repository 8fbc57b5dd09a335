"""What who has rated what says of a user or a movie, whatever the ratings were: a low-rank basis of the rated pairs.

Who rates the same movies has like tastes. With R the binary matrix of the training pairs and D its row counts, the
vector of a user is expected at X β, X = D^-½ R, as in SVD++ (Koren 2008, eq. 15), and likewise that of a movie with Rᵀ
for R. β has a row for every movie, but only X β is needed: with X = V S Wᵀ it is V S G, where G = Wᵀ β is as Gaussian
as β is, and the first columns of V hold nearly all of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mf.solvers.collapse import randomised_svd
from mf.solvers.gaussian import Side
from mf.solvers.workers import Workers

SMALLEST = 1e-4  # of the largest eigenvalue: below, float32 knows no direction


@dataclass(frozen=True)
class Basis:
    """The first eigenvectors of X Xᵀ of one side.

    Attributes:
        values: float32[r], the eigenvalues, the largest first, all above 0.
        vectors: float32[n, r], orthonormal columns.
    """

    values: Tensor
    vectors: Tensor

    def means(self, g: Tensor) -> Tensor:
        """V S G float32[n, D], what is expected of every row, from G float32[r, D]."""
        return self.vectors @ (self.values.sqrt().unsqueeze(1) * g)


def who_rated(side: Side, other: Side, rank: int, workers: Workers, generator: torch.Generator) -> Basis:
    """The basis of a side.

    Args:
        side, other: the training ratings, by row of the side and by row of the other side. Pairs that are to be
            predicted must not be among them: that they were rated at all tells of their rating.
        rank: eigenvectors, at most.
        generator: of the randomised SVD's start, on the ratings' device.
    """
    root = torch.cat([block.counts for block in side.blocks]).clamp(min=1).rsqrt().unsqueeze(1)
    n, n_other = len(root), other.blocks[-1].rows.stop
    u, s, _ = randomised_svd(
        lambda x: root * _product(side, x, workers),
        lambda y: _product(other, root * y, workers),
        (n, n_other),
        rank,
        generator,
    )
    values = s.square()
    r = int((values > SMALLEST * values[0]).sum())
    return Basis(values[:r], u[:, :r].contiguous())


def _product(side: Side, table: Tensor, workers: Workers) -> Tensor:
    """R x, float32[n, r], for x float32[n_other, r]."""
    table = table.contiguous()  # a QR's columns are: embedding_bag takes 40 times as long on them
    return torch.cat(workers.map(lambda block: block.sums(table), side.blocks))
