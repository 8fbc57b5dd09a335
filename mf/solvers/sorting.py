"""Sort by row number; gather, sum and scatter per row."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from torch import Tensor
from torch.nn.functional import embedding_bag, pad


def on_gpu(x: Tensor) -> bool:
    """Whether ``x`` is on a GPU, where no size may depend on the data: the host would wait for it."""
    return x.is_cuda


def stable_argsort(keys: Tensor, bound: int) -> Tensor:
    """Stable argsort of integer keys, int64[N].

    On a CPU NumPy's radix sort of 16-bit keys is ten times faster than torch's comparison sort; larger keys take two
    passes.

    Args:
        keys: int32[N] or int64[N], from 0 to bound - 1.
    """
    if on_gpu(keys):
        return keys.argsort(stable=True)
    numbers = keys.numpy()
    order = np.argsort(numbers.astype(np.uint16), kind="stable")
    if bound > 1 << 16:
        order = order[np.argsort((numbers >> 16).astype(np.uint16)[order], kind="stable")]
    return torch.from_numpy(order)


def grouped(rows: Tensor, columns: Tensor, values: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """Stable sort of sparse matrix entries by row: ``columns`` int32[N] and ``values`` float32[N].

    On a CPU it is SciPy's conversion from coordinates to compressed rows: one pass, five times as fast as an argsort
    and two gathers.
    """
    if on_gpu(rows):
        order = stable_argsort(rows, n_rows)
        return columns.index_select(0, order), values.index_select(0, order)
    entries = coo_array(
        (values.numpy(), (rows.int().numpy(), columns.int().numpy())), shape=(n_rows, int(columns.max()) + 1)
    )
    entries.has_canonical_format = True  # else SciPy adds up entries of the same row and column
    by_row = entries.tocsr()
    return torch.from_numpy(by_row.indices), torch.from_numpy(by_row.data)


@dataclass(frozen=True)
class Segments:
    """Runs of equal row numbers in a sorted batch: the rows of a table that the batch touches.

    Attributes:
        rows: int64[S], the row of each run; or a slice of S rows with one run each, possibly empty.
        offsets: int32[S], the start of each run.
        counts: float32[S], the length of each run. On CUDA, where no size may depend on the data, the last runs are
            padding: empty, the i-th run with row i, so that no row is written by many at a time.
        full: bool[S], false for padding; ``None``: there is none.
    """

    rows: Tensor | slice
    offsets: Tensor
    counts: Tensor
    full: Tensor | None = None

    @classmethod
    def of(cls, ordered: Tensor, at_most: int) -> "Segments":
        """The runs of ``ordered`` int32[N], N > 0, whose entries are below ``at_most``."""
        if on_gpu(ordered):
            return cls.of_known_size(ordered, at_most)
        rows, counts = torch.unique_consecutive(ordered, return_counts=True)
        return cls(rows.long(), (counts.cumsum(0) - counts).int(), counts.float())

    @classmethod
    def of_span(cls, ordered: Tensor, span: slice) -> "Segments":
        """One run for every row of ``span``, from ``ordered`` int32[N]. Adjacent rows need no gather and scatter, which
        is faster when few of them have no entry."""
        counts = torch.bincount(ordered - span.start, minlength=span.stop - span.start)
        return cls(span, (counts.cumsum(0) - counts).int(), counts.float())

    @classmethod
    def of_known_size(cls, ordered: Tensor, at_most: int) -> "Segments":
        """As ``of``, padded to min(N, at_most) runs, so that nothing waits for the device."""
        return cls.of_each(ordered[None], at_most)[0]

    @classmethod
    def of_each(cls, ordered: Tensor, at_most: int) -> "list[Segments]":
        """``of_known_size`` of each row of ``ordered`` int32[batches, N], in as many operations as for one."""
        batches, n = ordered.shape
        run = torch.zeros_like(ordered)
        run[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1, dtype=torch.int32)
        numbers = torch.arange(min(n, at_most) + 1, dtype=torch.int32, device=ordered.device).repeat(batches, 1)
        edges = torch.searchsorted(run, numbers, out_int32=True)
        starts, counts = edges[:, :-1].contiguous(), edges.diff()
        full = counts > 0
        rows = ordered.gather(1, starts.clamp(max=n - 1).long()).where(full, numbers[:, :-1]).long()
        return list(map(cls, rows, starts, counts.float(), full))

    def weighted_sums(self, rows: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Sum of ``weights`` × ``vectors[rows]`` per run, float32[S, K]; weights float32[N], rows int32[N]."""
        return embedding_bag(rows, vectors, self.offsets, mode="sum", per_sample_weights=weights)

    def sums(self, values: Tensor) -> Tensor:
        """Sum of ``values`` float32[N] per run, float32[S]."""
        if self.full is not None:  # on a GPU a cumulative sum in floating point does not have the same bits twice
            ends = pad(self.offsets, (0, 1), value=len(values)).long()
            return torch.segment_reduce(values, "sum", offsets=ends, unsafe=True, initial=0)
        ends = pad(values.double().cumsum(0), (1, 0))
        start, end = self.offsets, self.offsets + self.counts.int()
        return (ends.index_select(0, end) - ends.index_select(0, start)).float()

    def gather(self, table: Tensor) -> Tensor:
        """The touched rows of ``table``, [S, …]: a view when ``rows`` is a slice, else a copy."""
        return table[self.rows] if isinstance(self.rows, slice) else table.index_select(0, self.rows)

    @contextmanager
    def updating(self, table: Tensor) -> Iterator[Tensor]:
        """Gathers the touched rows [S, …], to be changed in place by the block, then scatters them back. The block must
        not change rows of empty runs."""
        rows = self.gather(table)
        yield rows
        if not isinstance(self.rows, slice):
            self.scatter(table, rows)

    def scatter(self, table: Tensor, values: Tensor) -> None:
        """Writes ``values`` [S, …] to the touched rows of ``table``; padding is left out."""
        if isinstance(self.rows, slice):
            table[self.rows] = values
        elif self.full is None:
            table.index_copy_(0, self.rows, values)
        else:
            # Padding may name the row of a real run: add zeros there.
            full = self.full.view((-1,) + (1,) * (values.dim() - 1))
            table.index_add_(0, self.rows, (values - table.index_select(0, self.rows)) * full)
