"""The Gaussian engine: all rows of one side given the other, for ``vb`` (the expectation) and ``gibbs`` (a sample).

A row is z = [factors, bias], D = rank + 1 numbers. Given the other side, with x_j = [factors_j, 1] and b_j the bias of
the j-th row that it has rated and y_j the rating less mu, it is Gaussian (Salakhutdinov & Mnih 2008, eq. 11 and 12):

    precision   alpha · Σ_j E[x_j x_jᵀ] + Λ
    linear term alpha · Σ_j (y_j E[x_j] - E[b_j x_j]) + Λ m

Everything summed is a property of the other side's row alone, so it is put in a table once (E[z zᵀ] as a packed
triangle, then E[z]: D(D+3)/2 columns), and the sum over a row's ratings is one ``embedding_bag`` over the ratings in
compressed-row form. A rating costs D(D+5)/2 additions and as many 4-byte reads, 187 at rank 16, from a table that the
cache holds in good part (45 ns on one core at 23.6 million ratings), and nothing is ever stored a rating but its column
and value, 8 bytes a side. Batches of rows padded to one length multiply D × D matrices a rating instead: twice the
flops (they cannot use the symmetry), the gathered and padded vectors written and read again, and, for ``vb``, a pass
more for the covariances. What a row costs beside its ratings, factor and inverse of D × D, is 6 µs at rank 16.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import embedding_bag

from mf.config import Config
from mf.solvers.base import Interactions
from mf.solvers.sorting import grouped
from mf.solvers.workers import Workers

# float32 sums over at most so many ratings, then over those sums: the rounding error of a sum grows with its length,
# and a GPU adds up the ratings of one bag one after another.
PIECE = 1024
# Bytes of a block's D × D matrices: a few of them live at a time, for each worker. On a CPU larger ones are handed back
# to the system and faulted in anew at every call.
BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}
# Ratings a block: a few hundred milliseconds of one worker, and bounded temporaries.
BLOCK_RATINGS = {"cpu": 1 << 20, "cuda": 1 << 26}

# What makes a row's new moments of its Gaussian: see ``update``.
Rule = Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor | None]]


class GaussianConfig(Config):
    """Options of both solvers."""

    factors: int = Field(64, ge=1, le=2000, description="length of the user and movie vectors")
    rank: int | None = Field(
        None,
        ge=1,
        le=256,
        description="factors that are fitted; none: a sixth of the mean number of ratings a user or movie has, within "
        "16 to 32 and at most factors",
    )

    @model_validator(mode="after")
    def _rank_fits(self) -> Self:
        if self.rank is not None and self.rank > self.factors:
            raise ValueError(f"rank: found {self.rank}, expected at most factors, which is {self.factors}")
        return self


def inner_rank(train: Interactions, factors: int) -> int:
    """How many factors are fitted where none are asked for: a sixth of the mean number of ratings a row, to a multiple
    of 4 between 16 and 32, and never more than ``factors``."""
    a_row = len(train) / (train.n_users + train.n_movies)
    return min(factors, max(16, min(32, round(a_row / 24) * 4)))


@dataclass(frozen=True)
class Prior:
    """z ~ N(mean, precision⁻¹), for all rows of a side.

    Attributes:
        mean: float32[D], or float32[n, D] when every row has its own.
        precision: float32[D, D].
    """

    mean: Tensor
    precision: Tensor

    def linear(self, rows: slice) -> Tensor:
        """Λ m, float32[D] or float32[R, D]."""
        return (self.mean if self.mean.dim() == 1 else self.mean[rows]) @ self.precision


class Moments:
    """E[z] and E[z zᵀ] of all rows of a side.

    Attributes:
        mean: float32[n, D], E[z].
        table: float32[n, D(D+3)/2], the lower triangle of E[z zᵀ] row by row, then E[z].
    """

    def __init__(self, mean: Tensor, covariance: Tensor | None = None) -> None:
        """The moments of N(mean, covariance), mean float32[n, D] and covariance float32[D, D]; none: of points."""
        n, d = mean.shape
        self.mean = torch.empty_like(mean)
        self.table = mean.new_empty(n, d * (d + 3) // 2)
        i, j = torch.tril_indices(d, d, device=mean.device)
        self.lower = i * d + j  # where in a matrix the triangle's entries are
        self.square = torch.empty(d, d, dtype=torch.int64, device=mean.device)  # where in the triangle a matrix's are
        self.square[i, j] = self.square[j, i] = torch.arange(len(i), device=mean.device)
        self.square = self.square.flatten()
        for rows in _slices(n, d, mean.device):
            self.put(rows, mean[rows], covariance)

    def put(self, rows: slice, mean: Tensor, covariance: Tensor | None) -> Tensor:
        """Sets the rows to mean float32[R, D] and covariance float32[R, D, D]; returns E[z zᵀ] float32[R, D, D]."""
        second = mean.unsqueeze(2) * mean.unsqueeze(1)
        if covariance is not None:
            second += covariance
        self.mean[rows] = mean
        self.table[rows, : len(self.lower)] = second.flatten(1).index_select(1, self.lower)
        self.table[rows, len(self.lower) :] = mean
        return second

    def total(self) -> Tensor:
        """Σ E[z zᵀ] over the rows, float64[D, D]."""
        d = self.mean.shape[1]
        out = self.table.new_zeros(d * d, dtype=torch.float64)
        for rows in _slices(len(self.mean), d, self.mean.device):
            out[self.lower] += self.table[rows, : len(self.lower)].sum(0, dtype=torch.float64)
        lower = out.view(d, d)
        return lower + lower.tril(-1).T


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a side and their ratings.

    Attributes:
        rows: which they are.
        columns, values: int32[N], float32[N], their ratings, row after row.
        pieces: int32[P], where among those each piece starts.
        firsts: int32[R], which piece is a row's first; ``None`` when every row has just one.
        counts, totals, squares: float32[R], how many ratings a row has, their sum and the sum of their squares.
    """

    rows: slice
    columns: Tensor
    values: Tensor
    pieces: Tensor
    firsts: Tensor | None
    counts: Tensor
    totals: Tensor
    squares: Tensor

    def sums(self, table: Tensor, weights: Tensor | None = None) -> Tensor:
        """Σ over each row's ratings of the table's row of the column, times the weight: float32[R, W]."""
        sums = embedding_bag(self.columns, table, self.pieces, mode="sum", per_sample_weights=weights)
        if self.firsts is None:
            return sums
        every = torch.arange(len(sums), dtype=torch.int32, device=sums.device)
        return embedding_bag(every, sums, self.firsts, mode="sum")


class Side:
    """All ratings, row by row, cut into blocks of bounded memory.

    Args:
        rows, columns: int32[N] or int64[N], the rated pairs.
        values: float32[N], ratings less mu.
        n: rows.
        rank: factors.
    """

    def __init__(self, rows: Tensor, columns: Tensor, values: Tensor, n: int, rank: int) -> None:
        kind = values.device.type
        columns, values = grouped(rows, columns.int(), values, n)
        counts = torch.bincount(rows, minlength=n)
        totals, squares = (torch.segment_reduce(x, "sum", lengths=counts) for x in (values, values.square()))
        starts = counts.cumsum(0) - counts
        pieces, firsts = _pieces(counts, starts)
        # A block is full when its rows or its ratings are too many, or half of each.
        filled = counts.double() / BLOCK_RATINGS[kind] + 1 / _rows_a_block(rank + 1, kind)
        cuts = [0, *(filled.cumsum(0).long().diff().nonzero().squeeze(1) + 1).tolist(), n]
        of_values, of_pieces = _bounds(starts, cuts, len(values)), _bounds(firsts, cuts, len(pieces))
        self.ratings = len(values)
        self.blocks = [
            Block(
                rows=slice(r, r_end),
                columns=columns[v:v_end],
                values=values[v:v_end],
                pieces=(pieces[p:p_end] - v).int(),
                firsts=(firsts[r:r_end] - p).int() if p_end - p > r_end - r else None,
                counts=counts[r:r_end].float(),
                totals=totals[r:r_end],
                squares=squares[r:r_end],
            )
            for (r, r_end), (v, v_end), (p, p_end) in zip(pairwise(cuts), of_values, of_pieces, strict=True)
        ]


def both_sides(train: Interactions, rank: int, workers: Workers) -> tuple[Side, Side]:
    """The ratings less their mean, by user and by movie."""
    values = train.ratings - train.ratings.double().mean().float()
    users, movies = (train.users, train.movies, train.n_users), (train.movies, train.users, train.n_movies)
    by_user, by_movie = workers.map(lambda x: Side(x[0], x[1], values, x[2], rank), [users, movies])
    return by_user, by_movie


def update(
    side: Side,
    own: Moments,
    other: Moments,
    prior: Prior,
    alpha: Tensor,
    rule: Rule,
    workers: Workers,
    weights: Tensor | None = None,
) -> Tensor:
    """Gives all rows of a side their conditional given the other side, by ``rule``.

    Args:
        side: the ratings, by row of the side.
        own, other: the moments of the side, which are overwritten, and of the other.
        prior: of the side's rows.
        alpha: float32[] or, for each row of the side its own, float32[n], the precision of the ratings' noise.
        rule: from the Cholesky factor float32[R, D, D] of the precision (lower), the linear term float32[R, D] and
            which rows these are to E[z] float32[R, D] and the covariance float32[R, D, D]; the covariance is ``None``
            where z is a sample.
        weights: float32[n_other], what a rating counts by its row of the other side: alpha is multiplied by it. Without
            them each counts 1.

    Returns:
        Of each row Σ weight · E[(y - x·z)²] over its ratings with the new rows, float32[n].

    Raises:
        torch.linalg.LinAlgError: a precision is not positive definite.
    """

    def work(block: Block) -> Tensor:
        gram, linear, offset = normal_equations(block, other, weights)
        precision = alpha[block.rows] if alpha.dim() else alpha.expand(len(gram))
        factor = torch.linalg.cholesky(torch.add(prior.precision, gram * precision.view(-1, 1, 1)))
        z, covariance = rule(factor, precision.unsqueeze(1) * linear + prior.linear(block.rows), block.rows)
        second = own.put(block.rows, z, covariance)
        # Σ (y - b)² - 2 z·Σ (y - b) x + zᵀ (Σ x xᵀ) z
        return offset - 2 * (z * linear).sum(1) + (second * gram).sum((1, 2))

    return torch.cat(workers.map(work, side.blocks))


def normal_equations(block: Block, other: Moments, weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row of a block, each rating times its weight (see ``update``): Σ E[x xᵀ] float32[R, D, D],
    Σ (y E[x] - E[b x]) float32[R, D] and Σ E[(y - b)²] float32[R]."""
    d = other.mean.shape[1]
    values, counts, totals, squares = block.values, block.counts, block.totals, block.squares
    each = None
    if weights is not None:
        each, column = weights[block.columns], weights.unsqueeze(1)
        counts, totals, squares = (block.sums(column, power).squeeze(1) for power in (None, values, values.square()))
        values = values * each
    sums, weighted = block.sums(other.table, each), block.sums(other.mean, values)
    triangle, means = torch.split(sums, [d * (d + 1) // 2, d], 1)
    products = triangle[:, -d:]  # Σ E[b z], the triangle's last row
    # x has 1 where z has b: the last row is Σ E[x], and how many there are.
    square = torch.cat([triangle[:, :-d], means[:, :-1], counts.unsqueeze(1)], 1).index_select(1, other.square)
    linear = torch.cat([weighted[:, :-1] - products[:, :-1], (totals - means[:, -1]).unsqueeze(1)], 1)
    return square.view(-1, d, d), linear, squares - 2 * weighted[:, -1] + products[:, -1]


def _pieces(counts: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """The first rating of each piece, int64[P], and the first piece of each row, int64[n]; a row has one at least."""
    a_row = (counts + PIECE - 1).div(PIECE, rounding_mode="floor").clamp(min=1)
    firsts = a_row.cumsum(0) - a_row
    owners = torch.arange(len(counts), device=counts.device).repeat_interleave(a_row)
    within = torch.arange(len(owners), device=counts.device) - firsts[owners]
    return starts[owners] + PIECE * within, firsts


def _bounds(starts: Tensor, cuts: list[int], end: int) -> list[tuple[int, int]]:
    """Of each range of rows the first of what ``starts`` counts, and the one after its last."""
    return list(pairwise(torch.cat([starts, starts.new_tensor([end])])[cuts].tolist()))


def _rows_a_block(d: int, kind: str) -> int:
    return max(1, BLOCK_BYTES[kind] // (4 * d * d))


def _slices(n: int, d: int, device: torch.device) -> Iterable[slice]:
    step = _rows_a_block(d, device.type)
    return (slice(start, min(n, start + step)) for start in range(0, n, step))
