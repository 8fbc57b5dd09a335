"""The sparse user x movie matrix: one set of indices for both channels and the targets, in two orders."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import embedding_bag

from mf.ranking.interactions import Floats, UserRows
from mf.ranking.workers import Workers, pieces

BLOCK_USERS = 8192  # users per block of the order by movie: their vectors of 64 floats (2 MB) stay in a core's cache
MOVIE_RANGES = 16  # of a block, with about as many ratings each: the pieces of work
RATED, LIKING, TARGET = "rated", "liking", "target"  # names of the values of an entry


def segment_sums(table: Tensor, rows: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
    """float32[S, K], over each segment the sum of ``weights`` x ``table[rows]``.

    A sum has no atomics and a fixed order. Panels of 64 columns take 5 to 7 ns per entry where the products of sparse
    matrices of torch and SciPy take 20 to 100.

    Args:
        table: float32[R, K].
        rows: int32[N].
        offsets: int32[S + 1], where each segment starts, and N.
        weights: float32[N]; ``None``: all 1.
    """
    return embedding_bag(rows, table, offsets, mode="sum", include_last_offset=True, per_sample_weights=weights)


@dataclass(frozen=True)
class Block:
    """The entries of consecutive users, sorted by movie.

    Attributes:
        users: which users.
        rows: int32[n], the user of each entry, from 0 within the block.
        offsets: int32[movies + 1], where the entries of each movie start.
        edges: ``offsets`` at the ends of the movie ranges.
        values: float32[n] per name; ``None``: all 1.
    """

    users: slice
    rows: Tensor
    offsets: Tensor
    edges: list[int]
    values: dict[str, Tensor | None]


class RatingMatrix:
    """X = [X_rated X_liking] and the targets Y, which share their indices; a row is a user.

    X_c holds ``values[c]``, Y holds ``values["target"]``; both are multiplied by ``scale`` of the user in ``gram`` only:
    in products the caller scales the dense side. Memory: 8 bytes per entry in the order by user and 12 by movie.

    Attributes:
        channels: names of the input channels, "rated" or "rated" and "liking".
        scale: float32[users].
        user_counts, movie_counts: int64[users] and int64[movies], entries of each.
        gram: float32[movies] per pair of names, sum over the movie's users of scale² x value x value.
    """

    def __init__(
        self,
        rows: UserRows,
        n_movies: int,
        values: Mapping[str, Floats | None],
        scale: Floats,
        device: torch.device,
        workers: Workers,
    ) -> None:
        self.users, self.movies, self.device, self.workers = len(scale), n_movies, device, workers
        self.channels = [name for name in values if name != TARGET]
        self.scale = torch.from_numpy(scale).to(device)
        self._edges = rows.offsets.tolist()
        self.offsets = torch.from_numpy(rows.offsets).to(device)
        self.index = torch.from_numpy(rows.movies).to(device)
        self.values = {name: _tensor(values[name], device) for name in self.channels}
        self.user_counts = torch.from_numpy(rows.counts).to(device)
        counts = np.zeros(n_movies, np.int64)
        for part in workers.map(
            lambda at: np.bincount(rows.movies[at], minlength=n_movies), pieces(len(rows.movies), 1 << 21)
        ):
            counts += part
        self.movie_counts = torch.from_numpy(counts).to(device)
        self._ranges = _even_ranges(counts, MOVIE_RANGES if device.type == "cpu" else 1)
        self.blocks = workers.map(lambda at: self._block(at, rows, values), pieces(self.users, BLOCK_USERS))
        self.gram = self._gram()

    def _block(self, users: slice, rows: UserRows, values: Mapping[str, Floats | None]) -> Block:
        at = slice(self._edges[users.start], self._edges[users.stop])
        places = np.arange(at.stop - at.start, dtype=np.int32)
        offsets = (rows.offsets[users.start : users.stop + 1] - at.start).astype(np.int32)
        by_movie = csr_array((places, rows.movies[at], offsets), shape=(users.stop - users.start, self.movies)).tocsc()
        own = {name: _tensor(v if v is None else v[at][by_movie.data], self.device) for name, v in values.items()}
        edges = by_movie.indptr[[0, *(r.stop for r in self._ranges)]].tolist()
        return Block(
            users,
            torch.from_numpy(by_movie.indices).to(self.device),
            torch.from_numpy(by_movie.indptr).to(self.device),
            edges,
            own,
        )

    def _gram(self) -> dict[tuple[str, str], Tensor]:
        pairs = [(a, b) for i, a in enumerate(self.channels) for b in [*self.channels[i:], TARGET]]
        squares = (self.scale * self.scale)[:, None]

        def of_block(block: Block) -> Tensor:
            found = []
            for a, b in pairs:
                left, right = block.values[a], block.values[b]
                both = right if left is None else left if right is None else left * right
                found.append(segment_sums(squares[block.users], block.rows, block.offsets, both)[:, 0])
            return torch.stack(found)

        sums = self.workers.sum(of_block, self.blocks).float()
        gram = {pair: sums[i] for i, pair in enumerate(pairs)}
        return gram | {(b, a): values for (a, b), values in gram.items()}

    def times(self, tables: Mapping[str, Tensor], scale: Tensor) -> Tensor:
        """float32[users, K], scale_u x the sum over channels c of X_c tables[c]; tables float32[movies, K]."""
        out = torch.empty(self.users, next(iter(tables.values())).shape[1], device=self.device)

        def fill(users: slice) -> None:
            at = slice(self._edges[users.start], self._edges[users.stop])
            offsets = (self.offsets[users.start : users.stop + 1] - at.start).int()
            index, first = self.index[at], True
            for name, table in tables.items():
                weights = self.values[name]
                part = segment_sums(table, index, offsets, weights if weights is None else weights[at])
                if first:
                    out[users], first = part, False
                else:
                    out[users] += part
            out[users] *= scale[users, None]

        self.workers.map(fill, pieces(self.users))
        return out

    def transposed(self, y: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """float32[movies, K] per name, X_name' y; y float32[users, K]."""
        out = {name: torch.zeros(self.movies, y.shape[1], device=self.device) for name in names}
        for block in self.blocks:  # one after another, so that y[block.users] stays in the cache for all pieces
            own = y[block.users]

            def add(task: tuple[int, str], block: Block = block, own: Tensor = own) -> None:
                i, name = task
                movies, start, end = self._ranges[i], block.edges[i], block.edges[i + 1]
                offsets = block.offsets[movies.start : movies.stop + 1] - start
                weights = block.values[name]
                weights = weights if weights is None else weights[start:end]
                out[name][movies] += segment_sums(own, block.rows[start:end], offsets, weights)

            self.workers.map(add, [(i, name) for i in range(len(self._ranges)) for name in out])
        return out

    def drop_targets(self) -> None:
        """Frees the memory of the targets."""
        for block in self.blocks:
            del block.values[TARGET]

    def drop_blocks(self) -> None:
        """Frees the memory of the order by movie; ``transposed`` can no longer be used."""
        self.blocks = []


def _tensor(values: Floats | None, device: torch.device) -> Tensor | None:
    return None if values is None else torch.from_numpy(values).to(device)


def _even_ranges(counts: "np.ndarray[tuple[int], np.dtype[np.int64]]", n: int) -> list[slice]:
    """At most ``n`` ranges of movies with about as many entries each."""
    wanted = np.arange(1, n) * counts.sum() // n
    cuts = np.unique([0, *np.searchsorted(counts.cumsum(), wanted), len(counts)]).tolist()
    return [slice(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
