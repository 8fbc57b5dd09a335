"""Implicit feedback: a low-rank basis of which user rated which movie, whatever the ratings were.

Users who rate the same movies have similar tastes. With R the binary matrix of the training pairs and D its row counts,
the expected vector of a user is X β, X = D^-½ R, as in SVD++ (Koren 2008, eq. 15); a movie's likewise with Rᵀ for R. β
has a row per movie, but only X β is needed: with X = V S Wᵀ it is V S G, where G = Wᵀ β is as Gaussian as β, and the
first columns of V hold nearly all of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mf.solvers.collapse import randomised_svd
from mf.solvers.gaussian import RatingsByRow
from mf.workers import Workers

SMALLEST = 1e-4  # share of the largest eigenvalue; smaller ones are rounding errors of float32


@dataclass(frozen=True)
class Basis:
    """The largest eigenvectors of X Xᵀ, for users or for movies.

    Attributes:
        values: float32[r], the eigenvalues in descending order, all above 0.
        vectors: float32[n, r], this rank's rows of orthonormal columns.
    """

    values: Tensor
    vectors: Tensor

    def means(self, g: Tensor) -> Tensor:
        """The expected vectors V S G, float32[n, D], from G float32[r, D]."""
        return self.vectors @ (self.values.sqrt().unsqueeze(1) * g)


def who_rated(
    ratings: RatingsByRow, transposed: RatingsByRow, rank: int, workers: Workers, generator: torch.Generator
) -> Basis:
    """The basis for the rows of ``ratings``.

    Args:
        ratings, transposed: the training ratings by user and by movie, for a basis of the users; the other way round
            for one of the movies. Validation and test pairs must not be among them: that a pair was rated is a hint at
            its rating.
        rank: largest number of eigenvectors.
        generator: for the randomised SVD, on the ratings' device.
    """
    root = ratings.counts.clamp(min=1).float().rsqrt().unsqueeze(1)
    u, s, _ = randomised_svd(
        lambda x: root * _product(ratings, x, workers),
        lambda y: _product(transposed, root * y, workers),
        (ratings.side, transposed.side),
        rank,
        generator,
        workers,
    )
    values = s.square()
    r = int((values > SMALLEST * values[0]).sum())
    return Basis(values[:r], u[:, :r].contiguous())


def _product(ratings: RatingsByRow, table: Tensor, workers: Workers) -> Tensor:
    """R x, float32[n, r], for x float32[n_other, r]."""
    table = table.contiguous()  # a QR's result is column by column, on which embedding_bag takes 40 times as long
    return ratings.side.sum_of_ratings(torch.cat(workers.map(lambda block: block.sums(table), ratings.blocks)))
