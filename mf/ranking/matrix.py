"""The sparse user x movie matrix: one set of indices for both channels and the targets, in two orders."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import embedding_bag

from mf.ranking.interactions import Floats, Int64s, UserRows
from mf.ranks import Ranks
from mf.workers import Workers, pieces

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
        rows: int16[n], the user of each entry, from 0 within the block.
        offsets: int32[movies + 1], where the entries of each movie start.
        edges: ``offsets`` at the ends of the movie ranges.
        values: float32[n] per channel; bool[n] for the targets; ``None``: all 1.
    """

    users: slice
    rows: Tensor
    offsets: Tensor
    edges: list[int]
    values: dict[str, Tensor | None]


class RatingMatrix:
    """X = [X_rated X_liking] and the targets Y, which share their indices; a row is a user of this process.

    An entry of X_c is ``values[c]`` of the rating times ``scale`` of the user; an entry of Y is 1 where the rating is
    liked and ``unliked`` elsewhere, times ``target_scale`` of the user. Memory: 8 bytes per rating in the order by user
    and 7 in the order by movie.

    Attributes:
        channels: names of the input channels, "rated" or "rated" and "liking".
        scale: float32[users].
        user_counts, movie_counts: int64[users] and int64[movies], ratings of each, by the users of all processes.
        first_user, all_users: number of the users before this process's, and of all.
        own_movies: this process's share of the movies, for work that is done once per movie.
        gram: float32[movies] per pair of names, X_a' X_b and X_a' Y of each movie's own columns, over all users.

    Args:
        values: float32[N] per channel, in the order of ``rows``; ``None``: all 1.
        liked: bool[N]; ``None``: all are.
        ranks: the processes that share the users; default: this one has all.
    """

    def __init__(
        self,
        rows: UserRows,
        n_movies: int,
        values: Mapping[str, Floats | None],
        liked: npt.NDArray[np.bool_] | None,
        unliked: float,
        scale: Floats,
        target_scale: Floats,
        device: torch.device,
        workers: Workers,
        ranks: Ranks | None = None,
    ) -> None:
        self.users, self.movies, self.device, self.workers = len(scale), n_movies, device, workers
        self.ranks = ranks = ranks or Ranks.alone()
        shares = ranks.gather_objects(self.users)
        self.first_user, self.all_users = sum(shares[: ranks.rank]), sum(shares)
        ends = [n_movies * r // ranks.world for r in range(ranks.world + 1)]
        self.own_movies = slice(*ends[ranks.rank : ranks.rank + 2])
        self._movie_shares = [b - a for a, b in pairwise(ends)]
        self.channels, self.unliked = list(values), unliked
        self.scale = torch.from_numpy(scale).to(device)
        self.target_scale = torch.from_numpy(target_scale).to(device)
        self._edges = rows.offsets.tolist()
        self.offsets = torch.from_numpy(rows.offsets).to(device)
        self.index = torch.from_numpy(rows.movies).to(device)
        self.values = {name: None if v is None else torch.from_numpy(v).to(device) for name, v in values.items()}
        self.user_counts = torch.from_numpy(rows.counts).to(device)
        counts = np.zeros(n_movies, np.int64)
        for part in workers.map(
            lambda at: np.bincount(rows.movies[at], minlength=n_movies), pieces(len(rows.movies), 1 << 21)
        ):
            counts += part
        self.movie_counts = ranks.sum(torch.from_numpy(counts.copy()).to(device))
        self._ranges = _even_ranges(counts, MOVIE_RANGES if device.type == "cpu" else 1)
        # Filled by the blocks: small arrays of their own between the threads' temporary ones would fragment the memory.
        entries: dict[str, npt.NDArray[Any] | None] = {**values, TARGET: liked}
        by_movie = {name: None if v is None else np.empty_like(v) for name, v in entries.items()}
        users = np.empty(len(rows.movies), np.int16)

        def fill(at: slice) -> Block:
            here = slice(self._edges[at.start], self._edges[at.stop])
            places = np.arange(here.stop - here.start, dtype=np.int32)
            offsets = (rows.offsets[at.start : at.stop + 1] - here.start).astype(np.int32)
            block = csr_array((places, rows.movies[here], offsets), shape=(at.stop - at.start, n_movies)).tocsc()
            users[here] = block.indices
            for name, target in by_movie.items():
                source = entries[name]
                if source is not None and target is not None:
                    np.take(source[here], block.data, out=target[here])
            return Block(
                at,
                torch.from_numpy(users[here]).to(device),
                torch.from_numpy(block.indptr).to(device),
                block.indptr[[0, *(r.stop for r in self._ranges)]].tolist(),
                {name: None if v is None else torch.from_numpy(v[here]).to(device) for name, v in by_movie.items()},
            )

        self.blocks = workers.map(fill, pieces(self.users, BLOCK_USERS))
        self.gram = self._gram()

    def _gram(self) -> dict[tuple[str, str], Tensor]:
        pairs = [(a, b) for i, a in enumerate(self.channels) for b in [*self.channels[i:], TARGET]]
        squares, mixed = self.scale.square()[:, None], (self.scale * self.target_scale)[:, None]

        def of_block(block: Block) -> Tensor:
            found, index = [], block.rows.int()
            for a, b in pairs:
                left, right = (self._weights(block, name) for name in (a, b))
                both = right if left is None else left if right is None else left * right
                table = (mixed if b == TARGET else squares)[block.users]
                found.append(segment_sums(table, index, block.offsets, both)[:, 0])
            return torch.stack(found)

        sums = self.sum_over_users(of_block, self.blocks).float()
        gram = {pair: sums[i] for i, pair in enumerate(pairs)}
        return gram | {(b, a): values for (a, b), values in gram.items()}

    def _weights(self, block: Block, name: str, at: slice = slice(None)) -> Tensor | None:
        values = block.values[name]
        if values is None or name != TARGET:
            return values if values is None else values[at]
        return values[at].float().mul_(1 - self.unliked).add_(self.unliked)

    def times(self, tables: Mapping[str, Tensor], scale: Tensor) -> Tensor:
        """float32[users, K], scale_u x the sum over channels c and the user's ratings of value_c x tables[c].

        With ``self.scale`` that is the sum of X_c tables[c]. ``tables``: float32[movies, K] per channel.
        """
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

    def transposed(self, y: Tensor, names: Iterable[str], whole: Collection[str] = ()) -> dict[str, Tensor]:
        """X_c' y for a channel c and Y' y for the targets, over all users: float32[own movies, K] per name.

        Args:
            y: float32[users, K].
            names: channels, or the targets.
            whole: the names of which all movies' rows are wanted: float32[movies, K], at twice the bytes.
        """
        out = {name: y.new_zeros(self.movies, y.shape[1]) for name in names}
        for block in self.blocks:  # one after another, so that y[block.users] stays in the cache for all pieces
            at = block.users
            scaled = {name: y[at] * (self.target_scale if name == TARGET else self.scale)[at, None] for name in out}

            def add(movies_at: int, block: Block = block, scaled: dict[str, Tensor] = scaled) -> None:
                movies, start, end = self._ranges[movies_at], *block.edges[movies_at : movies_at + 2]
                offsets = block.offsets[movies.start : movies.stop + 1] - start
                index = block.rows[start:end].int()
                for name, target in out.items():
                    weights = self._weights(block, name, slice(start, end))
                    target[movies] += segment_sums(scaled[name], index, offsets, weights)

            self.workers.map(add, range(len(self._ranges)))
        ranks, shares = self.ranks, self._movie_shares
        return {name: ranks.sum(x) if name in whole else ranks.sum_rows(x, shares) for name, x in out.items()}

    def sum_over_users(self, work: Callable[[Any], Tensor], items: Iterable[Any]) -> Tensor:
        """float64, the sum of ``work`` of each of ``items`` over the users of all processes."""
        return self.ranks.sum(self.workers.sum(work, items))

    def movie_pieces(self, step: int | None = None) -> list[slice]:
        """Pieces of this process's movies, counted from its first; at least one, which may be empty."""
        return pieces(max(1, self.own_movies.stop - self.own_movies.start), step)

    def sum_over_movies(self, work: Callable[[slice], Tensor]) -> Tensor:
        """float64, the sum of ``work`` of each piece of movies, over those of all processes."""
        return self.ranks.sum(self.workers.sum(work, self.movie_pieces()))

    def all_movies(self, own: Tensor) -> Tensor:
        """The rows of all movies, from each process's own."""
        return self.ranks.gather(own)

    def drop_targets(self) -> None:
        """Frees the memory of the targets."""
        for block in self.blocks:
            del block.values[TARGET]

    def drop_blocks(self) -> None:
        """Frees the memory of the order by movie; ``transposed`` can no longer be used."""
        self.blocks = []


def _even_ranges(counts: Int64s, n: int) -> list[slice]:
    """At most ``n`` ranges of movies with about as many entries each."""
    wanted = np.arange(1, n) * counts.sum() // n
    cuts = np.unique([0, *np.searchsorted(counts.cumsum(), wanted), len(counts)]).tolist()
    return [slice(a, b) for a, b in pairwise(cuts)]
