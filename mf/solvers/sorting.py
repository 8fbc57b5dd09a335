"""Sorting of row numbers, and where each row's entries lie in what is sorted."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from torch import Tensor
from torch.nn.functional import embedding_bag, pad


def stable_argsort(keys: Tensor, bound: int) -> Tensor:
    """int64[N], the stable order of integer ``keys`` in 0 … bound - 1.

    On a CPU NumPy sorts 16 bits by radix, ten times faster than torch compares; two passes do for larger bounds.
    """
    if keys.is_cuda:
        return keys.argsort(stable=True)
    numbers = keys.numpy()
    order = np.argsort(numbers.astype(np.uint16), kind="stable")
    if bound > 1 << 16:
        order = order[np.argsort((numbers >> 16).astype(np.uint16)[order], kind="stable")]
    return torch.from_numpy(order)


def grouped(rows: Tensor, columns: Tensor, values: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """int32[N] and float32[N], ``columns`` and ``values`` in the stable order of ``rows``.

    On a CPU that is how SciPy makes rows of a sparse matrix out of its entries: each goes to its place in one pass,
    five times as fast as sorting and then looking up.
    """
    if rows.is_cuda:
        order = stable_argsort(rows, n_rows)
        return columns.index_select(0, order), values.index_select(0, order)
    entries = coo_array(
        (values.numpy(), (rows.int().numpy(), columns.int().numpy())), shape=(n_rows, int(columns.max()) + 1)
    )
    entries.has_canonical_format = True  # else entries of the same row and column were summed up
    by_row = entries.tocsr()
    return torch.from_numpy(by_row.indices), torch.from_numpy(by_row.data)


@dataclass(frozen=True)
class Segments:
    """The runs of equal rows in sorted row numbers.

    Attributes:
        rows: int64[S], the row of each run; or a slice of S rows that have a run each, which may be empty.
        offsets: int32[S], where each run starts.
        counts: float32[S], its length. On CUDA, where no size may depend on the data, the last runs are empty, and
            their rows are any.
        padded: whether there may be empty runs of any row.
    """

    rows: Tensor | slice
    offsets: Tensor
    counts: Tensor
    padded: bool = False

    @classmethod
    def of(cls, ordered: Tensor, at_most: int) -> "Segments":
        """The runs of ``ordered``, int32[N], N > 0, of which there cannot be more than ``at_most``."""
        if ordered.is_cuda:
            return cls.of_known_size(ordered, at_most)
        rows, counts = torch.unique_consecutive(ordered, return_counts=True)
        return cls(rows.long(), (counts.cumsum(0) - counts).int(), counts.float())

    @classmethod
    def within(cls, ordered: Tensor, span: slice) -> "Segments":
        """The runs of ``ordered``, int32[N], for every row of ``span``: rows that lie together need not be gathered and
        put back, which is faster where few of them have no entry."""
        counts = torch.bincount(ordered - span.start, minlength=span.stop - span.start)
        return cls(span, (counts.cumsum(0) - counts).int(), counts.float())

    @classmethod
    def of_known_size(cls, ordered: Tensor, at_most: int) -> "Segments":
        """``of`` with a number of runs that is known beforehand: nothing waits for the device."""
        n = len(ordered)
        run = torch.zeros_like(ordered)
        torch.cumsum(ordered[1:] != ordered[:-1], 0, dtype=torch.int32, out=run[1:])
        numbers = torch.arange(min(n, at_most) + 1, dtype=torch.int32, device=ordered.device)
        edges = torch.searchsorted(run, numbers, out_int32=True)
        return cls(ordered[edges[:-1].clamp(max=n - 1)].long(), edges[:-1], edges.diff().float(), padded=True)

    def bags(self, rows: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """float32[S, K], over each run the sum of ``weights``, float32[N], × ``vectors[rows]``, rows int32[N]."""
        return embedding_bag(rows, vectors, self.offsets, mode="sum", per_sample_weights=weights)

    def sums(self, values: Tensor) -> Tensor:
        """float32[S], the sum of ``values``, float32[N], over each run."""
        ends = pad(values.double().cumsum(0), (1, 0))
        start, end = self.offsets, self.offsets + self.counts.int()
        return (ends.index_select(0, end) - ends.index_select(0, start)).float()

    def take(self, table: Tensor) -> Tensor:
        """[S, …], the rows of ``table``: its own memory when ``rows`` is a slice, else a copy."""
        return table[self.rows] if isinstance(self.rows, slice) else table.index_select(0, self.rows)

    @contextmanager
    def changed(self, table: Tensor) -> Iterator[Tensor]:
        """[S, …], the rows of ``table``, to be changed in place and then put back where they are copies. Those of empty
        runs must be left as they are."""
        rows = self.take(table)
        yield rows
        if not isinstance(self.rows, slice):
            self.put(table, rows)

    def put(self, table: Tensor, values: Tensor) -> None:
        """Puts ``values``, [S, …], in the rows of ``table``; those of empty runs are left out."""
        if isinstance(self.rows, slice):
            table[self.rows] = values
        elif not self.padded:
            table.index_copy_(0, self.rows, values)
        else:
            # The row that an empty run names may be another run's, so nothing but zeros may be added to it.
            full = (self.counts > 0).view((-1,) + (1,) * (values.dim() - 1))
            table.index_add_(0, self.rows, (values - table.index_select(0, self.rows)) * full)
