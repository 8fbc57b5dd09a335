"""How the users and the movies of a training lie on the ranks, and sums over them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from mf.ranks import Ranks, lanes_of
from mf.workers import ROWS, Workers, pieces

GPU_ROWS = 1 << 20  # rows per piece of dense work on a GPU


def summable(values: Tensor, largest: float, n: int) -> Tensor:
    """``values`` in float64, rounded so that the sum of ``n`` of them is exact: it has the same bits in any order.

    All become multiples of a power of two of which 2^52 are more than the largest sum: an absolute error of 4e-9 each
    for ten million values up to 5. Values in float64 are overwritten.

    Args:
        largest: bound of their magnitude.
    """
    values = values.double()
    if not 0 < largest * n < math.inf:
        return values
    unit = 2.0 ** (math.ceil(math.log2(largest * n)) - 52)
    return values.div_(unit).round_().mul_(unit)


class Rows(ABC):
    """The users or the movies of a training.

    Attributes:
        n: how many there are on all ranks together.
        ranks: the ranks that they lie on.
        lanes: the rows here, as ranges that do not depend on the number of ranks.
        scattered: whether the ratings of a row lie on several ranks.
    """

    scattered = False

    def __init__(self, n: int, ranks: Ranks, lanes: Sequence[slice]) -> None:
        self.n, self.ranks, self.lanes = n, ranks, lanes

    @abstractmethod
    def sum_of_rows(self, x: Tensor) -> Tensor:
        """The sum over all rows, from that over this rank's rows; may overwrite ``x``."""

    @abstractmethod
    def sum_of_ratings(self, x: Tensor) -> Tensor:
        """The sums over all ratings of each row, from those over this rank's ratings; may overwrite ``x``."""

    @abstractmethod
    def own(self, table: Tensor) -> Tensor:
        """This rank's rows of a table of all rows."""

    @abstractmethod
    def whole(self, table: Tensor) -> Tensor:
        """All rows on rank 0, from each rank's own."""

    def gram(self, columns: Sequence[Tensor], weights: Tensor, workers: Workers) -> Tensor:
        """Σ w x xᵀ over all rows x, float64[k, k]; the same bits with any number of ranks.

        Args:
            columns: float32[rows here, …], the columns of the table side by side, k in all.
            weights: w, float32[rows here].
        """

        def of_piece(rows: slice) -> Tensor:
            x = _side_by_side(columns, rows)
            return (x * weights[rows].unsqueeze(1)).mT @ x

        sums = [workers.sum(of_piece, _pieces(lane, weights) or [lane]) for lane in self.lanes]
        return self._sum_of_lanes(torch.stack(sums))

    def times(self, columns: Sequence[Tensor], matrix: Tensor, workers: Workers) -> Tensor:
        """The rows here times ``matrix`` float64[k, r]: float32[rows here, r], computed in float64."""
        parts = [part for lane in self.lanes for part in _pieces(lane, columns[0])]
        return torch.cat(workers.map(lambda rows: (_side_by_side(columns, rows) @ matrix).float(), parts))

    @abstractmethod
    def _sum_of_lanes(self, x: Tensor) -> Tensor:
        """The sum over the lanes of all ranks, in their order; ``x``: [lanes here, …]."""

    @abstractmethod
    def qr(self, table: Tensor, workers: Workers) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """The QR decomposition of a table of all rows, of which this rank has its own.

        Args:
            table: float32[rows here, k].

        Returns:
            X float32[k, r] to Q X float32[rows here, r], and R float32[k, k].
        """


class UserRows(Rows):
    """Users: each rank has some, with all their ratings.

    Attributes:
        first: number of the users before this rank's.
    """

    def __init__(self, n: int, ranks: Ranks, first: int, lanes: Sequence[slice]) -> None:
        super().__init__(n, ranks, lanes)
        self.first = first

    def sum_of_rows(self, x: Tensor) -> Tensor:
        return self.ranks.sum(x)

    def sum_of_ratings(self, x: Tensor) -> Tensor:
        return x

    def own(self, table: Tensor) -> Tensor:
        return table[self.first : self.first + self.lanes[-1].stop]

    def whole(self, table: Tensor) -> Tensor:
        return self.ranks.gather_rows(table)

    def _sum_of_lanes(self, x: Tensor) -> Tensor:
        return self.ranks.gather(x).sum(0)

    def qr(self, table: Tensor, workers: Workers) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """A QR per lane, and one of their factors R (TSQR: Demmel, Grigori, Hoemmen & Langou 2012)."""
        k = table.shape[1]
        parts = workers.map(lambda lane: torch.linalg.qr(table[lane]), self.lanes)
        factors = torch.stack([pad(r, (0, 0, 0, k - len(r))) for _, r in parts])
        joined, r = torch.linalg.qr(self.ranks.gather(factors).flatten(0, 1))
        first = lanes_of(self.ranks.rank, self.ranks.world, len(joined) // k)[0]

        def times(x: Tensor) -> Tensor:
            turns = (joined[k * (first + i) : k * (first + i + 1)] @ x for i in range(len(parts)))
            pairs = zip((q for q, _ in parts), turns, strict=True)
            return torch.cat(workers.map(lambda pair: pair[0] @ pair[1][: pair[0].shape[1]], pairs))

        return times, r


class MovieRows(Rows):
    """Movies: every rank has all of them, with the ratings by its users."""

    def __init__(self, n: int, ranks: Ranks) -> None:
        super().__init__(n, ranks, [slice(0, n)])
        self.scattered = ranks.world > 1

    def sum_of_rows(self, x: Tensor) -> Tensor:
        return x

    def sum_of_ratings(self, x: Tensor) -> Tensor:
        return self.ranks.sum(x)

    def own(self, table: Tensor) -> Tensor:
        return table

    def whole(self, table: Tensor) -> Tensor:
        return table

    def _sum_of_lanes(self, x: Tensor) -> Tensor:
        return x[0]

    def qr(self, table: Tensor, workers: Workers) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        q, r = torch.linalg.qr(table)
        return lambda x: q @ x[: q.shape[1]], pad(r, (0, 0, 0, table.shape[1] - len(r)))


def _pieces(lane: slice, like: Tensor) -> list[slice]:
    step = ROWS if like.device.type == "cpu" else GPU_ROWS
    return [slice(lane.start + x.start, lane.start + x.stop) for x in pieces(lane.stop - lane.start, step)]


def _side_by_side(columns: Sequence[Tensor], rows: slice) -> Tensor:
    """float64[rows, k]."""
    return torch.cat([part[rows] for part in columns], 1).double()
