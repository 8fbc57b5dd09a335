"""Conditional Gaussians of all users given the movies, or all movies given the users: for ``vb`` and ``gibbs``.

``vb`` takes the mean and covariance of each, ``gibbs`` a sample.

A row (a user or a movie) is z = [factors, bias], D = rank + 1 numbers. With x_j = [factors_j, 1] and b_j of the j-th
rated row and y_j the rating less mu, it is Gaussian (Salakhutdinov & Mnih 2008, eq. 11 and 12):

    precision   alpha · Σ_j E[x_j x_jᵀ] + Λ
    linear term alpha · Σ_j (y_j E[x_j] - E[b_j x_j]) + Λ m

Each summand but y_j belongs to one rated row, so it is computed once and stored in a table (E[z zᵀ] as a packed
triangle, then E[z]: D(D+3)/2 columns). The sum over a row's ratings is then one ``embedding_bag`` over compressed rows.
A rating costs D(D+5)/2 additions and as many 4-byte reads, 187 at rank 16, mostly from the cache (45 ns on one core at
23.6 million ratings), and 8 bytes of memory: its column and value. Batches of rows padded to one length would multiply
D × D matrices per rating: twice the flops (no symmetry), padded vectors written and read again, and for ``vb`` another
pass for the covariances. A row costs 6 µs beside its ratings at rank 16, for the factorisation and the inverse.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from mf.ranks import Ranks
from mf.solvers.base import Share
from mf.solvers.rows import MovieRows, Rows
from mf.solvers.sorting import grouped
from mf.workers import Workers

# Ratings per float32 sum; these sums are then added up. The rounding error of a sum grows with its length, and a GPU
# adds up the ratings of one row one after another.
PIECE = 1024
# Bytes of a block's D × D matrices, of which each worker holds a few at a time. On a CPU, larger allocations are
# returned to the system and page-fault again at every call.
BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}
# Ratings per block: a few hundred milliseconds of one worker, and bounded temporaries.
BLOCK_RATINGS = {"cpu": 1 << 20, "cuda": 1 << 26}

# The mean (vb) or a sample (gibbs) of each row's Gaussian: see ``update``.
MeanOrSample = Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Prior:
    """Gaussian prior of all users, or of all movies: z ~ N(mean, precision⁻¹).

    Attributes:
        mean: float32[D], or float32[n, D] with a mean per row.
        precision: float32[D, D].
    """

    mean: Tensor
    precision: Tensor

    def linear(self, rows: slice) -> Tensor:
        """Λ m of ``rows``, float32[D] or float32[R, D]."""
        return (self.mean if self.mean.dim() == 1 else self.mean[rows]) @ self.precision


class PosteriorMoments:
    """E[z] and E[z zᵀ] of all users, or of all movies.

    Attributes:
        mean: float32[n, D], E[z].
        table: float32[n, D(D+3)/2], the lower triangle of E[z zᵀ] row by row, then E[z].
    """

    def __init__(self, mean: Tensor, covariance: Tensor | None = None) -> None:
        """Starts with the moments of N(mean, covariance).

        Args:
            mean: float32[n, D].
            covariance: float32[D, D]; default: 0.
        """
        n, d = mean.shape
        self.mean = torch.empty_like(mean)
        self.table = mean.new_empty(n, d * (d + 3) // 2)
        i, j = torch.tril_indices(d, d, device=mean.device)
        self.lower = i * d + j  # position of each triangle entry in the flattened matrix
        self.square = torch.empty(
            d, d, dtype=torch.int64, device=mean.device
        )  # and of each matrix entry in the triangle
        self.square[i, j] = self.square[j, i] = torch.arange(len(i), device=mean.device)
        self.square = self.square.flatten()
        for rows in _slices(n, d, mean.device):
            self.set_rows(rows, mean[rows], covariance)

    def set_rows(self, rows: slice, mean: Tensor, covariance: Tensor | None) -> Tensor:
        """Sets mean float32[R, D] and covariance float32[R, D, D] of ``rows``; returns E[z zᵀ] float32[R, D, D]."""
        second = mean.unsqueeze(2) * mean.unsqueeze(1)
        if covariance is not None:
            second += covariance
        self.mean[rows] = mean
        self.table[rows, : len(self.lower)] = second.flatten(1).index_select(1, self.lower)
        self.table[rows, len(self.lower) :] = mean
        return second

    def total(self) -> Tensor:
        """Σ E[z zᵀ] over all rows, float64[D, D]."""
        d = self.mean.shape[1]
        out = self.table.new_zeros(d * d, dtype=torch.float64)
        for rows in _slices(len(self.mean), d, self.mean.device):
            out[self.lower] += self.table[rows, : len(self.lower)].sum(0, dtype=torch.float64)
        lower = out.view(d, d)
        return lower + lower.tril(-1).T


@dataclass(frozen=True)
class Block:
    """Adjacent rows and their ratings, in compressed-row form.

    Attributes:
        rows: the rows.
        columns, values: int32[N], float32[N], the ratings, row after row.
        pieces: int32[P], the first rating of each piece (see ``PIECE``).
        firsts: int32[R], the first piece of each row; ``None`` when every row has one piece.
        counts, totals, squares: float32[R], number of ratings of each row, their sum and their sum of squares.
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
        """Per row, the sum of ``table[column]`` × weight over its ratings: float32[R, W]."""
        sums = embedding_bag(self.columns, table, self.pieces, mode="sum", per_sample_weights=weights)
        if self.firsts is None:
            return sums
        every = torch.arange(len(sums), dtype=torch.int32, device=sums.device)
        return embedding_bag(every, sums, self.firsts, mode="sum")


@dataclass(frozen=True)
class Equations:
    """Sums over the ratings of each row of a block, weighted as in ``update``.

    Attributes:
        gram: float32[R, D, D], Σ E[x xᵀ].
        linear: float32[R, D], Σ (y E[x] - E[b x]).
        offset: float32[R], Σ E[(y - b)²].
    """

    gram: Tensor
    linear: Tensor
    offset: Tensor


class RatingsByRow:
    """This rank's training ratings by user, or by movie, in blocks of bounded memory.

    Args:
        rows, columns: int32[N] or int64[N], the rated pairs: users and movies, or movies and users.
        values: float32[N], ratings less mu.
        n: number of rows here.
        rank: number of factors.
        side: how the rows lie on the ranks; default: all are here, with all their ratings.
        counts: int64[n], ratings of each row on all ranks; default: those here.
    """

    def __init__(
        self,
        rows: Tensor,
        columns: Tensor,
        values: Tensor,
        n: int,
        rank: int,
        side: Rows | None = None,
        counts: Tensor | None = None,
    ) -> None:
        kind = values.device.type
        columns, values = grouped(rows, columns.int(), values, n)
        here = torch.bincount(rows, minlength=n)
        self.side = side or MovieRows(n, Ranks.alone())
        self.counts = counts = here if counts is None else counts
        totals, squares = (torch.segment_reduce(x, "sum", lengths=here) for x in (values, values.square()))
        starts = here.cumsum(0) - here
        pieces, firsts = _pieces(here, starts)
        # A block is full when its share of the largest number of rows and its share of the ratings add up to 1. Blocks
        # of movies are the same on every rank.
        filled = counts.double() / BLOCK_RATINGS[kind] + 1 / _rows_per_block(rank + 1, kind)
        cuts = [0, *(filled.cumsum(0).long().diff().nonzero().squeeze(1) + 1).tolist(), n]
        of_values, of_pieces = _bounds(starts, cuts, len(values)), _bounds(firsts, cuts, len(pieces))
        self.blocks = [
            Block(
                rows=slice(r, r_end),
                columns=columns[v:v_end],
                values=values[v:v_end],
                pieces=(pieces[p:p_end] - v).int(),
                firsts=(firsts[r:r_end] - p).int() if p_end - p > r_end - r else None,
                counts=here[r:r_end].float(),
                totals=totals[r:r_end],
                squares=squares[r:r_end],
            )
            for (r, r_end), (v, v_end), (p, p_end) in zip(pairwise(cuts), of_values, of_pieces, strict=True)
        ]


def by_user_and_movie(train: Share, values: Tensor, rank: int, workers: Workers) -> tuple[RatingsByRow, RatingsByRow]:
    """``values`` float32[N] of this rank's training ratings, by user and by movie."""
    own = train.own
    sides = (
        (own.users, own.movies, own.n_users, train.users, train.user_counts),
        (own.movies, own.users, own.n_movies, train.movies, train.movie_counts),
    )

    def build(of: tuple[Tensor, Tensor, int, Rows, Tensor]) -> RatingsByRow:
        rows, columns, n, side, counts = of
        return RatingsByRow(rows, columns, values, n, rank, side, counts)

    by_user, by_movie = workers.map(build, sides)
    return by_user, by_movie


def update(
    ratings: RatingsByRow,
    own: PosteriorMoments,
    other: PosteriorMoments,
    prior: Prior,
    alpha: Tensor,
    mean_or_sample: MeanOrSample,
    workers: Workers,
    weights: Tensor | None = None,
) -> Tensor:
    """Updates this rank's users given the movies, or all movies given the users.

    Args:
        ratings: by the rows to update.
        own: moments of the rows to update, overwritten.
        other: moments of the rated rows.
        prior: of the rows to update.
        alpha: precision of the ratings' noise, float32[] or per row float32[n].
        mean_or_sample: takes the lower Cholesky factor float32[R, D, D] of the precision, the linear term float32[R, D]
            and the rows; returns E[z] float32[R, D] and the covariance float32[R, D, D], ``None`` for a sample.
        weights: float32[n_other], factor on alpha for ratings of each rated row; default: 1.

    Returns:
        Per row, Σ weight · E[(y - x·z)²] over its ratings, with the new rows, float32[n].

    Raises:
        torch.linalg.LinAlgError: a precision is not positive definite.
    """

    failures: list[Tensor] = []  # read once, after all blocks: a GPU is not waited for at each
    errors = own.mean.new_empty(len(own.mean))

    def work(block: Block, equations: Equations) -> None:
        gram, linear = equations.gram, equations.linear
        precision = alpha[block.rows] if alpha.dim() else alpha.expand(len(gram))
        factor, info = torch.linalg.cholesky_ex(torch.add(prior.precision, gram * precision.view(-1, 1, 1)))
        failures.append(info.any())
        z, covariance = mean_or_sample(factor, precision.unsqueeze(1) * linear + prior.linear(block.rows), block.rows)
        second = own.set_rows(block.rows, z, covariance)
        # Σ (y - b)² - 2 z·Σ (y - b) x + zᵀ (Σ x xᵀ) z
        errors[block.rows] = equations.offset - 2 * (z * linear).sum(1) + (second * gram).sum((1, 2))

    each_block(work, ratings, other, workers, weights, written=(own.table, errors))
    if ratings.side.scattered:
        own.mean.copy_(own.table[:, -own.mean.shape[1] :])
    if ratings.side.ranks.sum(torch.stack([alpha.new_zeros((), dtype=torch.bool), *failures]).sum()):
        raise torch.linalg.LinAlgError("a precision is not positive definite")  # type: ignore[attr-defined]
    return errors


def each_block(
    work: Callable[[Block, Equations], None],
    ratings: RatingsByRow,
    other: PosteriorMoments,
    workers: Workers,
    weights: Tensor | None = None,
    written: Sequence[Tensor] = (),
) -> None:
    """Calls work(block, its equations) for each block, the equations summed over the ratings of all ranks.

    Where the ratings of a row lie on several ranks each of them works on every so many blocks.

    Args:
        written: what ``work`` writes the rows of its block of; afterwards every rank has all of them.
    """
    side, blocks = ratings.side, ratings.blocks
    if not side.scattered:
        workers.map(lambda block: work(block, _equations(_sums(block, other, weights), other)), blocks)
        return
    ranks, d = side.ranks, other.mean.shape[1]
    packed = workers.map(lambda block: torch.cat(_sums(block, other, weights), 1), blocks)
    for i, sums in enumerate(packed):
        ranks.sum_on(sums, i % ranks.world)

    def on_sums(i: int) -> None:
        work(blocks[i], _equations(torch.split(packed[i], [d * (d + 1) // 2, d, 1], 1), other))

    workers.map(on_sums, range(ranks.rank, len(blocks), ranks.world))
    for i, block in enumerate(blocks):
        for table in written:
            ranks.take_from(table[block.rows], i % ranks.world)


def _sums(block: Block, other: PosteriorMoments, weights: Tensor | None) -> tuple[Tensor, ...]:
    """``Equations`` of a block with the lower triangle of the matrices alone: float32[R, D(D+1)/2], [R, D] and
    [R, 1]."""
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
    linear = torch.cat([weighted[:, :-1] - products[:, :-1], (totals - means[:, -1]).unsqueeze(1)], 1)
    offset = squares - 2 * weighted[:, -1] + products[:, -1]
    # x has 1 where z has b: the last row is Σ E[x] and the number of ratings.
    return torch.cat([triangle[:, :-d], means[:, :-1], counts.unsqueeze(1)], 1), linear, offset.unsqueeze(1)


def _equations(sums: Sequence[Tensor], other: PosteriorMoments) -> Equations:
    triangle, linear, offset = sums
    d = other.mean.shape[1]
    return Equations(triangle.index_select(1, other.square).view(-1, d, d), linear, offset.squeeze(1))


def _pieces(counts: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """The first rating of each piece, int64[P], and the first piece of each row, int64[n]; every row has a piece."""
    per_row = (counts + PIECE - 1).div(PIECE, rounding_mode="floor").clamp(min=1)
    firsts = per_row.cumsum(0) - per_row
    owners = torch.arange(len(counts), device=counts.device).repeat_interleave(per_row)
    within = torch.arange(len(owners), device=counts.device) - firsts[owners]
    return starts[owners] + PIECE * within, firsts


def _bounds(starts: Tensor, cuts: list[int], end: int) -> list[tuple[int, int]]:
    """First and end of each range of rows between ``cuts``, in units of ``starts``."""
    return list(pairwise(torch.cat([starts, starts.new_tensor([end])])[cuts].tolist()))


def _rows_per_block(d: int, kind: str) -> int:
    return max(1, BLOCK_BYTES[kind] // (4 * d * d))


def _slices(n: int, d: int, device: torch.device) -> Iterable[slice]:
    step = _rows_per_block(d, device.type)
    return (slice(start, min(n, start + step)) for start in range(0, n, step))
