"""The mini-batch engine: which ratings make a batch, the sums of their gradients row by row, epochs over them.

A rule (``adam``, ``sgd``) then says how far a row goes. Two things make it fast. A batch's gradient needs no gradient a
rating: the sum over a row's ratings of error × the other side's vector is one ``embedding_bag``, which writes only the
sum. And ratings can be drawn block by block (``Strata``), so that the rows in use stay in the processor's cache and
workers own disjoint rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from mf.model import MatrixFactorization, products
from mf.solvers.base import Initial, Interactions, generator, rmse
from mf.solvers.sorting import Segments, grouped, stable_argsort
from mf.solvers.unseen import BiasFallback
from mf.solvers.workers import Workers

L2 = "L2 on the two vectors of every rating; none: 0.05 at 2 million ratings, less with more of them"

Columns = tuple[Tensor, Tensor, Tensor]  # users int32[B], sorted; movies int32[B]; ratings less mu float32[B]
Counts = tuple[Tensor, Tensor]  # ratings of each row, int64[n_users] and int64[n_movies]


class Strata:
    """Training ratings by user block and movie part (stratified SGD; Gemulla et al. 2011).

    An epoch takes the blocks in random order, ``parts`` of them a time. Of those, each is first worked on with a movie
    part of its own, then with the next, until every block has met every part: what is done at the same time shares no
    row, so the outcome does not depend on how many workers there are. One block and one part are plain mini-batches.

    The movies are numbered anew, so that the rows of a part lie together: movie i has the row ``movie_rows[i]``.

    Args:
        train: the ratings.
        batch_size: ratings a batch, on average.
        blocks: user blocks, of about as many ratings each.
        parts: movie parts, of about as many ratings each.

    Attributes:
        counts: of the users' and of the movies' rows.
        user_spans, movie_spans: the rows of each block and of each part.
    """

    def __init__(self, train: Interactions, batch_size: int, blocks: int = 1, parts: int = 1) -> None:
        self.batch_size, self.blocks, self.parts = batch_size, blocks, parts
        self.device = train.ratings.device
        user_counts, movie_counts = train.counts()
        # Dealt out by popularity, there and back, so that the parts are of a size.
        seat = torch.arange(train.n_movies, device=self.device) % (2 * parts)
        part = torch.empty_like(seat, dtype=torch.int32)
        part[movie_counts.argsort(descending=True, stable=True)] = seat.minimum(2 * parts - 1 - seat).int()
        by_part = stable_argsort(part, parts)
        self.part, self.movie_rows = part[by_part], by_part.argsort()
        self.counts = user_counts, movie_counts[by_part]

        rows = torch.arange(train.n_users, dtype=torch.int32, device=self.device)
        self.users = rows.repeat_interleave(user_counts, output_size=len(train))
        movies = self.movie_rows.int().index_select(0, train.movies)
        self.movies, self.ratings = grouped(train.users, movies, train.ratings, train.n_users)
        self.ratings -= train.ratings.double().mean()

        ends = pad(user_counts.cumsum(0), (1, 0))
        wanted = torch.arange(1, blocks, device=self.device) * len(train) // blocks
        first = torch.searchsorted(ends, wanted)
        self.starts = [0, *ends[first].tolist(), len(train)]
        self.user_spans = spans([0, *first.tolist(), train.n_users])
        self.movie_spans = spans([0, *torch.bincount(part, minlength=parts).cumsum(0).tolist()])

    @classmethod
    def blocked(cls, train: Interactions, batch_size: int, block_users: int, parts: int) -> "Strata":
        """Blocks of about ``block_users`` users on a CPU; 0 for plain mini-batches, which a GPU always gets: its memory
        is fast enough without blocks, and its sizes must not depend on the data."""
        if block_users == 0 or train.ratings.is_cuda:
            return cls(train, batch_size)
        return cls(train, batch_size, parts * math.ceil(train.n_users / (block_users * parts)), parts)

    def batches(self, block: int, seed: int) -> list[list[Columns]]:
        """The batches of a block in random order, a list for each movie part."""
        start, end = self.starts[block], self.starts[block + 1]
        columns = [x[start:end] for x in (self.users, self.movies, self.ratings)]
        n = max(1, math.ceil((end - start) / (self.batch_size * self.parts)))
        rng = torch.Generator(self.device).manual_seed(seed)
        if self.parts > 1:
            key = torch.randint(n, (end - start,), generator=rng, device=self.device, dtype=torch.int32)
            key += self.part.index_select(0, columns[1]) * n
            sizes = torch.bincount(key, minlength=n * self.parts).tolist()
        else:
            size = max(1, math.ceil((end - start) / n))
            key = torch.randperm(end - start, generator=rng, device=self.device, dtype=torch.int32)
            key = key.div_(size, rounding_mode="floor")
            sizes = [min(size, end - start - i * size) for i in range(n)]
        # Stable, so that a batch's ratings stay sorted by user.
        order = stable_argsort(key, n * self.parts)
        cut = list(zip(*(torch.split(column.index_select(0, order), sizes) for column in columns), strict=True))
        return [cut[i : i + n] for i in range(0, n * self.parts, n)]


def spans(edges: list[int]) -> list[slice]:
    """The rows between one edge and the next."""
    return [slice(*pair) for pair in pairwise(edges)]


def derived_l2(ratings: int) -> float:
    """0.05·(N / 2 million)^-0.2, between 0.03 and 0.06: a power of N through what did best for 90 thousand ratings
    (0.06 to 0.07), 2 million (0.05) and 21 million (0.03)."""
    return float(min(max(0.05 * (ratings / 2e6) ** -0.2, 0.03), 0.06))


@dataclass(frozen=True)
class Penalty:
    """The L2 weights of each row, per rating, float32[n_users] and float32[n_movies].

    ``weight_decay`` is what torch's Adam makes of it on dense gradients: wd·θ is added to every parameter's gradient at
    each of the N/B steps of an epoch. Rows that are touched now and then get the same in sum: a row with n ratings is
    touched n times an epoch, and the gradient of w·θ² on one rating of a batch's mean is 2wθ/B, so w = N·wd / (2n).
    A damping λ of a bias is λ·b² over the row's n ratings: λ/n on each.
    """

    user_factors: Tensor
    movie_factors: Tensor
    user_bias: Tensor
    movie_bias: Tensor

    @classmethod
    def of(cls, counts: Counts, l2: float | None, bias_damping: float, weight_decay: float = 0.0) -> "Penalty":
        ratings = int(counts[0].sum())
        l2 = derived_l2(ratings) if l2 is None else l2
        per_rating = [1.0 / n.clamp(min=1) for n in counts]
        decay = ratings * weight_decay / 2
        return cls(*(l2 + decay * x for x in per_rating), *((bias_damping + decay) * x for x in per_rating))


@dataclass(frozen=True)
class Side:
    """What a batch asks of the rows of one side.

    Attributes:
        segments: the rows, and how many of the batch's ratings are theirs.
        vectors: float32[S, factors], the sum over a row's ratings of (r - r̂) × the other side's vector.
        biases: float32[S], the sum over a row's ratings of r - r̂.
    """

    segments: Segments
    vectors: Tensor
    biases: Tensor


class Rule(Protocol):
    """How far a row goes on what its ratings ask."""

    moves_only_rated: bool  # whether a row that is asked by no rating stays as it is

    def step(self, users: Side, movies: Side, ratings: int, progress: float) -> None:
        """Moves the rows of a batch of ``ratings`` ratings, with ``progress`` (0 to 1) of the training behind."""

    def state(self) -> dict[str, Any]:
        """What the steps to come depend on beside the tables."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes back to where ``state`` was taken."""


@dataclass(frozen=True)
class Tables:
    """The parameters: vectors float32[n, factors] and biases float32[n] of both sides."""

    p: Tensor
    q: Tensor
    b_u: Tensor
    b_m: Tensor

    @classmethod
    def start(cls, train: Interactions, factors: int, std: float, rng: torch.Generator) -> "Tables":
        """Vectors of N(0, std²), biases of 0."""
        sides = (train.n_users, train.n_movies)
        p, q = (torch.empty(n, factors, device=rng.device).normal_(0, std, generator=rng) for n in sides)
        return cls(p, q, *(torch.zeros(n, device=rng.device) for n in sides))

    def take_up(self, initial: Initial, mean: float, movie_rows: Tensor) -> None:
        """Puts the rows of an earlier model in place, and the difference between its mean and ``mean`` into the users'
        biases."""
        initial.users.put(self.p, self.b_u)
        initial.movies.put(self.q, self.b_m, movie_rows)
        self.b_u.add_(initial.mu - mean)

    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.p, self.q, self.b_u, self.b_m

    def gradients(
        self,
        batch: Columns,
        dropout: float = 0.0,
        rng: torch.Generator | None = None,
        within: tuple[slice, slice] | None = None,
    ) -> tuple[Side, Side, Tensor]:
        """What a batch asks of its users and of its movies, and its squared errors' sum (on the device).

        Args:
            within: rows, among which the batch's are, that may all be asked, most of them for nothing. A span of them
                is taken where the batch has more ratings than it has rows.
        """
        users, movies, _ = batch
        order = stable_argsort(movies, len(self.q))
        spans = within or (None, None)
        by_user = _runs(users, len(self.p), spans[0])
        by_movie = _runs(movies.index_select(0, order), len(self.q), spans[1])
        if dropout:
            error, p, q = self._dropped(batch, dropout, rng)
            on_users = by_user.bags(torch.arange(len(error), dtype=torch.int32, device=error.device), q, error)
            on_movies = by_movie.bags(order.int(), p, error.index_select(0, order))
        else:
            error = self._errors(batch)
            on_users = by_user.bags(movies, self.q, error)
            on_movies = by_movie.bags(users.index_select(0, order), self.p, error.index_select(0, order))
        return (
            Side(by_user, on_users, by_user.sums(error)),
            Side(by_movie, on_movies, by_movie.sums(error.index_select(0, order))),
            error.dot(error).double(),
        )

    def _errors(self, batch: Columns) -> Tensor:
        """r - r̂ float32[B]."""
        users, movies, ratings = batch
        error = ratings - self.b_u.index_select(0, users)
        error -= self.b_m.index_select(0, movies)
        error -= products(self.p, self.q, users, movies)
        return error

    def _dropped(self, batch: Columns, dropout: float, rng: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """r - r̂ with entries of both vectors dropped (each kept one is divided by 1 - dropout), and for each rating
        the derivatives of r̂ by the movie's and by the user's vector, float32[B, factors]."""
        users, movies, ratings = batch
        p, q = self.p.index_select(0, users), self.q.index_select(0, movies)
        keep = 1 - dropout
        mask = [torch.empty_like(x).bernoulli_(keep, generator=rng).div_(keep) for x in (p, q)]
        scale = mask[0] * mask[1]
        p, q = p * scale, q * scale
        dot = torch.linalg.vecdot(p, self.q.index_select(0, movies))
        return ratings - self.b_u.index_select(0, users) - self.b_m.index_select(0, movies) - dot, p, q


def _runs(ordered: Tensor, rows: int, span: slice | None) -> Segments:
    if span is None or ordered.is_cuda or span.stop - span.start > len(ordered):
        return Segments.of(ordered, rows)
    return Segments.within(ordered, span)


class MiniBatches:
    """Epochs of mini-batches: a ``Fitting`` by any rule.

    Args:
        train, validation: the ratings.
        strata: makes what draws the training ratings.
        config: the solver's; epochs, patience, factors, init_std, seed, lr and, when it has one, dropout are taken.
        rule: from the tables and the ratings of each of their rows, the rule that moves them.
        workers: threads; the outcome does not depend on them.
        initial: what to start from; rows that are not in it start as all would without.
    """

    keeps_best = True
    note = ""

    def __init__(
        self,
        train: Interactions,
        validation: Interactions,
        strata: Callable[[], Strata],
        config: Any,
        rule: Callable[[Tables, Counts], Rule],
        workers: int | None = None,
        initial: Initial | None = None,
    ) -> None:
        self.validation, self.config = validation, config
        self.epochs, self.patience, self.advice = config.epochs, config.patience, f"lower --lr (it is {config.lr:g})"
        self.rows = len(train)
        self.dropout: float = getattr(config, "dropout", 0.0)
        self.device = train.ratings.device
        self.workers = Workers(self.device, workers)
        makers: tuple[Callable[[], Any], ...] = (strata, lambda: BiasFallback(train, validation))
        self.strata, self.fallback = self.workers.map(lambda make: make(), makers)
        self.tables = Tables.start(train, config.factors, config.init_std, generator(config.seed, 0, self.device))
        if initial:
            self.tables.take_up(initial, self.fallback.mu, self.strata.movie_rows)
        self.finished: MatrixFactorization | None = None
        self.rule = rule(self.tables, self.strata.counts)

    def epoch(self, number: int) -> float:
        self.finished = None
        s = self.strata
        rng = generator(self.config.seed, number)
        order = torch.randperm(s.blocks, generator=rng).tolist()
        seeds = torch.randint(1 << 62, (s.blocks, 1 + s.parts), generator=rng).tolist()
        errors: list[Tensor] = []
        for begin in range(0, s.blocks, s.parts):
            group = order[begin : begin + s.parts]
            cut = self.workers.map(lambda block: s.batches(block, seeds[block][0]), group)
            share = len(group) / s.blocks / s.parts
            for turn in range(s.parts):
                before = number - 1 + begin / s.blocks + turn * share
                parts = [(place + turn) % s.parts for place in range(len(group))]
                jobs = [
                    (batches[part], (s.user_spans[block], s.movie_spans[part]), before, share, seeds[block][1 + part])
                    for batches, part, block in zip(cut, parts, group, strict=True)
                ]
                errors += self.workers.map(lambda job: self._stratum(*job), jobs)
        return math.sqrt(torch.stack(errors).sum().item() / self.rows)

    def _stratum(
        self, batches: list[Columns], rows: tuple[slice, slice], before: float, share: float, seed: int
    ) -> Tensor:
        """Steps over batches of the users and movies ``rows`` that begin after ``before`` epochs and take ``share`` of
        one; the squared errors' sum."""
        within = rows if self.rule.moves_only_rated else None
        rng = torch.Generator(self.device).manual_seed(seed) if self.dropout else None
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for i, batch in enumerate(batches):
            if len(batch[0]) == 0:
                continue
            users, movies, error = self.tables.gradients(batch, self.dropout, rng, within)
            self.rule.step(users, movies, len(batch[0]), (before + i / len(batches) * share) / self.epochs)
            total += error
        return total

    def validation_rmse(self) -> float:
        return rmse(self.model(), self.validation, self.workers)

    def model(self) -> MatrixFactorization:
        if self.finished is None:
            t, movies = self.tables, self.strata.movie_rows
            tables = t.p, t.q.index_select(0, movies), t.b_u, t.b_m.index_select(0, movies)
            self.finished = self.fallback.finished(*tables, self.config.factors)
        return self.finished

    def state(self) -> dict[str, Any]:
        return {"tables": self.tables.all(), "rule": self.rule.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        for own, kept in zip(self.tables.all(), state["tables"], strict=True):
            own.copy_(kept)
        self.finished = None
        self.rule.load_state(state["rule"])
