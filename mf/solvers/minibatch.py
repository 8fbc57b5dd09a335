"""Mini-batches of ``adam`` and ``sgd``: batches, gradient sums per row, blocked epochs.

A solver subclasses ``MiniBatchTraining`` and gives it ``step``, the update on one batch. Two things make it fast:

- No gradient is stored per rating: the sum over a row's ratings of error × the other vector is one ``embedding_bag``.
- Ratings can be drawn block by block (``BlockedRatings``): the rows in use stay in the processor's cache, and threads
  work on disjoint rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mf.model import MatrixFactorization
from mf.ranks import lanes_of
from mf.solvers.base import Initial, RatingTensors, Share, generator, rmse
from mf.solvers.dots import has_fused_dots, row_dots
from mf.solvers.sorting import Segments, grouped, stable_argsort
from mf.solvers.unseen import BiasFallback
from mf.workers import Workers

Batch = tuple[Tensor, Tensor, Tensor]  # users int32[B], sorted; movies int32[B]; ratings less mu float32[B]
Counts = tuple[Tensor, Tensor]  # ratings per user int64[n_users] and per movie int64[n_movies]
Spans = tuple[slice, slice]  # rows of a user block and of a movie part


def shuffled_batches(ratings: Batch, batch_size: int, seed: int) -> list[Batch]:
    """Random batches of equal size, at most ``batch_size``; the last may be smaller. Each is sorted by user."""
    n = len(ratings[0])
    batches = max(1, math.ceil(n / batch_size))
    size = max(1, math.ceil(n / batches))
    rng = torch.Generator(ratings[0].device).manual_seed(seed)
    batch_of = torch.randperm(n, generator=rng, device=rng.device, dtype=torch.int32).div_(size, rounding_mode="floor")
    order = stable_argsort(batch_of, batches)  # stable: the ratings are sorted by user, and stay so in a batch
    return list(zip(*(torch.split(column.index_select(0, order), size) for column in ratings), strict=True))


@dataclass(frozen=True)
class Lane:
    """A share of the users, in blocks.

    Attributes:
        number: among the lanes of all ranks.
        users: its rows.
        blocks: their rows, block by block.
        ratings: where the ratings of each block and movie part are.
    """

    number: int
    users: slice
    blocks: list[slice]
    ratings: list[list[slice]]


class BlockedRatings:
    """This rank's training ratings by lane, user block and movie part (stratified SGD; Gemulla et al. 2011).

    There are as many movie parts as lanes on all ranks. ``MiniBatchTraining.epoch`` works on all lanes at a time, each
    with another movie part, so that threads and ranks share no row and the result does not depend on their number. With
    one lane and one block these are simply all ratings.

    Movies are renumbered so that the rows of a part are adjacent: movie i has row ``movie_rows[i]``.

    Args:
        train: the ratings.
        lanes: the lanes of this rank, as ranges of its users.
        parts: number of lanes on all ranks together.
        block_users: users per block, about; 0: a block per lane.

    Attributes:
        columns: users, movie rows and ratings less their mean, sorted by block, movie part and user.
        counts: ratings per user row of this rank, and per movie row on all ranks.
        movie_spans: the rows of each movie part.
        batch_size: largest number of ratings per batch; set by the solver.
    """

    batch_size: int

    def __init__(self, train: Share, lanes: Sequence[slice], parts: int, block_users: int = 0) -> None:
        self.device, self.parts = train.device, parts
        # Movies by popularity are dealt out to parts 0, 1, 2, 3, 3, 2, 1, 0, 0, …, so that parts are of equal size.
        seat = torch.arange(train.n_movies, device=self.device) % (2 * parts)
        part = torch.empty_like(seat, dtype=torch.int32)
        part[train.movie_counts.argsort(descending=True, stable=True)] = seat.minimum(2 * parts - 1 - seat).int()
        by_part = stable_argsort(part, parts)
        self.movie_rows = by_part.argsort()
        self.counts = train.user_counts, train.movie_counts[by_part]
        self.movie_spans = _spans([0, *torch.bincount(part, minlength=parts).cumsum(0).tolist()])

        first = lanes_of(train.ranks.rank, train.ranks.world, parts)[0]
        ends = pad(train.user_counts.cumsum(0), (1, 0))
        on_gpu = self.device.type != "cpu"  # its memory is fast enough without blocks
        blocks = [_blocks(ends, lane, 0 if on_gpu else block_users) for lane in lanes]
        flat = [block for of_lane in blocks for block in of_lane]
        sizes = torch.tensor([block.stop - block.start for block in flat], device=self.device)
        if parts == 1:
            self.columns, per_key = self._by_user(train), train.user_counts
        else:
            self.columns, per_key = self._by_part(train, part, sizes)
        # Where each block and part starts among the keys, and where its ratings start.
        starts = parts * (sizes.cumsum(0) - sizes)
        cuts = starts[:, None] + sizes[:, None] * torch.arange(parts + 1, device=self.device)
        strata = [_spans(row) for row in pad(per_key.cumsum(0), (1, 0))[cuts].tolist()]
        self.n_blocks = len(flat)
        self.lanes: list[Lane] = []
        for lane, of_lane in zip(lanes, blocks, strict=True):
            self.lanes.append(Lane(first + len(self.lanes), lane, of_lane, strata[: len(of_lane)]))
            strata = strata[len(of_lane) :]

    def _by_user(self, train: Share) -> Batch:
        """The ratings as they are."""
        own = train.own
        return own.users.int(), self.movie_rows.int()[own.movies], own.ratings - train.mean

    def _by_part(self, train: Share, part: Tensor, sizes: Tensor) -> tuple[Batch, Tensor]:
        """The ratings by block, movie part and user, and how many each of these keys has.

        Args:
            part: int32[n_movies], of each movie.
            sizes: int64[blocks], users per block.
        """
        own, parts = train.own, self.parts
        user = torch.arange(own.n_users, device=self.device)
        size = sizes.repeat_interleave(sizes, output_size=own.n_users)
        start = (sizes.cumsum(0) - sizes).repeat_interleave(sizes, output_size=own.n_users)
        key = user + (parts - 1) * start  # of each user in part 0; in part i it is i * size more
        keys = key.int()[own.users].add_(part[own.movies].mul_(size.int()[own.users]))
        movies, ratings = grouped(keys, self.movie_rows.int()[own.movies], own.ratings, own.n_users * parts)
        ratings -= train.mean
        per_key = torch.bincount(keys, minlength=own.n_users * parts)
        user_of_key = torch.empty(own.n_users * parts, dtype=torch.int32, device=self.device)
        for i in range(parts):
            user_of_key[key + i * size] = user.int()
        users = user_of_key.repeat_interleave(per_key, output_size=len(own))
        return (users, movies, ratings), per_key

    def batches(self, lane: Lane, block: int, part: int, seed: int) -> list[Batch]:
        """Random batches of a block and movie part; none where it has no ratings."""
        ratings = lane.ratings[block][part]
        if ratings.start == ratings.stop:
            return []
        users, movies, values = (column[ratings] for column in self.columns)
        return shuffled_batches((users, movies, values), self.batch_size, seed)


def _spans(edges: list[int]) -> list[slice]:
    """The rows between each edge and the next."""
    return [slice(*pair) for pair in pairwise(edges)]


def _blocks(ends: Tensor, lane: slice, block_users: int) -> list[slice]:
    """Blocks of about ``block_users`` users and about as many ratings each; ``ends``: where each user's ratings
    start."""
    n = max(1, math.ceil((lane.stop - lane.start) / block_users)) if block_users else 1
    first, last = ends[lane.start], ends[lane.stop]
    wanted = first + torch.arange(1, n, device=ends.device) * (last - first) // n
    return _spans([lane.start, *torch.searchsorted(ends, wanted).clamp(max=lane.stop).tolist(), lane.stop])


def derived_l2(ratings: int) -> float:
    """0.05·(N / 2 million)^-0.2 within 0.03 to 0.06: a power law through the best values for 90 thousand ratings (0.06
    to 0.07), 2 million (0.05) and 21 million (0.03)."""
    return float(min(max(0.05 * (ratings / 2e6) ** -0.2, 0.03), 0.06))


@dataclass(frozen=True)
class Penalty:
    """L2 weight per rating for each row, float32[n_users] and float32[n_movies].

    ``weight_decay`` means what it means for torch's Adam with dense gradients: wd·θ is added to every parameter's
    gradient at each of the N/B steps of an epoch. A row with n ratings is touched only n times per epoch, and the
    gradient of w·θ² on one rating of a batch's mean is 2wθ/B, so w = N·wd / (2n) adds up to the same.
    A bias damping of λ is λ·b² over a row's n ratings: λ/n on each.
    """

    user_factors: Tensor
    movie_factors: Tensor
    user_bias: Tensor
    movie_bias: Tensor

    @classmethod
    def of(cls, counts: Counts, l2: float | None, bias_damping: float, weight_decay: float = 0.0) -> "Penalty":
        """The weights for rows with ``counts`` ratings, those of the movies on all ranks; ``l2`` None:
        ``derived_l2``."""
        ratings = int(counts[1].sum())
        l2 = derived_l2(ratings) if l2 is None else l2
        per_rating = [1.0 / n.clamp(min=1) for n in counts]
        decay = ratings * weight_decay / 2
        return cls(*(l2 + decay * x for x in per_rating), *((bias_damping + decay) * x for x in per_rating))


@dataclass(frozen=True)
class GradientSums:
    """Sums over a batch for each user, or each movie, that it touches.

    Attributes:
        segments: the touched rows, and the number of ratings of each.
        vectors: float32[S, factors], the sum of (r - r̂) × the other vector.
        biases: float32[S], the sum of r - r̂.
    """

    segments: Segments
    vectors: Tensor
    biases: Tensor


@dataclass(frozen=True)
class Tables:
    """This rank's parameters: vectors p, q float32[n, factors] and biases b_u, b_m float32[n]."""

    p: Tensor
    q: Tensor
    b_u: Tensor
    b_m: Tensor

    @classmethod
    def random(cls, train: Share, lanes: "Sequence[Lane]", config: Any) -> "Tables":
        """Vectors from N(0, init_std²), biases of 0; of this rank's users, drawn lane by lane, and of all movies."""
        device, factors = train.device, config.factors
        drawn = [generator(config.seed, 0, device, lane.number) for lane in lanes]

        def normal(n: int, rng: torch.Generator) -> Tensor:
            return torch.empty(n, factors, device=device).normal_(0, config.init_std, generator=rng)

        p = torch.cat([normal(lane.users.stop - lane.users.start, rng) for lane, rng in zip(lanes, drawn, strict=True)])
        # Of all lanes the first draws the movies too, after its users.
        movies = normal(train.n_movies, drawn[0]) if lanes[0].number == 0 else p.new_empty(0, factors)
        q = train.ranks.gather(movies)
        return cls(p, q, *(torch.zeros(len(table), device=device) for table in (p, q)))

    def warm_start(self, initial: Initial, mean: float, movie_rows: Tensor) -> None:
        """Overwrites the rows that an earlier model has, and adds the difference between its mean and ``mean`` to the
        users' biases."""
        initial.users.scatter_into(self.p, self.b_u)
        initial.movies.scatter_into(self.q, self.b_m, movie_rows)
        self.b_u.add_(initial.mu - mean)

    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """p, q, b_u, b_m."""
        return self.p, self.q, self.b_u, self.b_m

    def residuals(self, batch: Batch) -> Tensor:
        """r - r̂ of each rating, float32[B]."""
        users, movies, ratings = batch
        error = ratings - self.b_u.index_select(0, users)
        error -= self.b_m.index_select(0, movies)
        error -= row_dots(self.p, self.q, users, movies)
        return error

    def residuals_with_dropout(
        self, batch: Batch, dropout: float, rng: torch.Generator | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As ``residuals``, with entries of both vectors dropped and the kept ones divided by 1 - dropout; and the
        derivatives of r̂ by q_m and by p_u, float32[B, factors] each."""
        users, movies, ratings = batch
        p, q = self.p.index_select(0, users), self.q.index_select(0, movies)
        # Only products of two entries count: one mask drops a pair as often as a mask for each would.
        keep = (1 - dropout) ** 2
        mask = torch.empty_like(p).bernoulli_(keep, generator=rng).div_(keep)
        p *= mask
        dot = torch.linalg.vecdot(p, q)
        q *= mask
        error = ratings - self.b_u.index_select(0, users) - self.b_m.index_select(0, movies) - dot
        return error, (p, q)

    def gradient_sums(
        self,
        batch: Batch,
        error: Tensor,
        derivatives: tuple[Tensor, Tensor] | None = None,
        spans: Spans | None = None,
    ) -> tuple[GradientSums, GradientSums]:
        """Sums over each user's and each movie's ratings in the batch.

        Args:
            error: float32[B], from ``residuals``.
            derivatives: from ``residuals_with_dropout``; default: p and q themselves.
            spans: user rows and movie rows that contain the batch's. Where the batch has more ratings than a span has
                rows, the sums are for the whole span, mostly of no ratings.
        """
        users, movies, _ = batch
        user_span, movie_span = spans or (None, None)
        order = stable_argsort(movies, len(self.q))
        by_user = _segments(users, len(self.p), user_span)
        by_movie = _segments(movies.index_select(0, order), len(self.q), movie_span)
        error_by_movie = error.index_select(0, order)
        if derivatives is None:
            user_vectors = by_user.weighted_sums(movies, self.q, error)
            movie_vectors = by_movie.weighted_sums(users.index_select(0, order), self.p, error_by_movie)
        else:
            p, q = derivatives
            every = torch.arange(len(error), dtype=torch.int32, device=error.device)
            user_vectors = by_user.weighted_sums(every, q, error)
            movie_vectors = by_movie.weighted_sums(order.int(), p, error_by_movie)
        return (
            GradientSums(by_user, user_vectors, by_user.sums(error)),
            GradientSums(by_movie, movie_vectors, by_movie.sums(error_by_movie)),
        )


def _segments(ordered: Tensor, n_rows: int, span: slice | None) -> Segments:
    if span is None or ordered.is_cuda or span.stop - span.start > len(ordered):
        return Segments.of(ordered, n_rows)
    return Segments.of_span(ordered, span)


class MiniBatchTraining:
    """Base of ``adam`` and ``sgd``: parameters, epochs, validation, state; subclasses add ``step`` and more state.

    Args:
        train, validation: this rank's ratings.
        config: the solver's options; epochs, patience, factors, init_std, seed and lr are read here.
        lanes: as ``BlockedRatings``.
        initial: an earlier model to start from; rows that it lacks start at random.
        workers: number of threads; the result does not depend on it.
    """

    keeps_best = True
    note = ""

    def __init__(
        self,
        train: Share,
        validation: RatingTensors,
        config: Any,
        lanes: Sequence[slice],
        initial: Initial | None,
        workers: int | None,
    ) -> None:
        self.train, self.validation, self.config = train, validation, config
        self.epochs, self.patience, self.advice = config.epochs, config.patience, f"lower --lr (now {config.lr:g})"
        self.device, self.ranks = train.device, train.ranks
        self.workers = Workers(self.device, workers)
        parts = sum(self.ranks.gather_objects(len(lanes)))
        builders: tuple[Callable[[], Any], ...] = (
            lambda: BlockedRatings(train, lanes, parts, config.block_users),
            lambda: BiasFallback(train, validation),
        )
        self.ratings, self.fallback = self.workers.map(lambda build: build(), builders)
        self.tables = Tables.random(train, self.ratings.lanes, config)
        if initial:
            self.tables.warm_start(initial, self.fallback.mu, self.ratings.movie_rows)
        self.finished: MatrixFactorization | None = None
        has_fused_dots(self.device)  # tried now, so that no epoch waits for the GPU

    def step(self, batch: Batch, progress: float, rng: torch.Generator, spans: Spans) -> Tensor:
        """Updates the parameters on one batch.

        Args:
            progress: share of the training that is over, 0 to 1.
            rng: for dropout.
            spans: rows that no other thread touches at the same time.

        Returns:
            The sum of squared errors before the update, float64[].
        """
        raise NotImplementedError

    def movie_tables(self) -> list[Tensor]:
        """All that belongs to a movie, [n_movies, …] each."""
        return [self.tables.q, self.tables.b_m]

    def epoch(self, number: int) -> float:
        """One pass over the ratings; returns the training RMSE.

        In turn t, lane i works on movie part (i + t) mod ``parts``, block by block in random order: what runs at the
        same time shares no user and no movie. After a turn a part goes from lane i to lane i - 1; after the last one it
        is back where it started.
        """
        self.finished = None
        ratings, parts = self.ratings, self.ratings.parts
        drawn = [self._draw(number, lane) for lane in ratings.lanes]
        errors = torch.zeros(len(ratings.lanes), dtype=torch.float64, device=self.device)
        for turn in range(parts):
            passed = number - 1 + turn / parts
            jobs = [
                (lane, (lane.number + turn) % parts, order, seeds, passed)
                for lane, (order, seeds) in zip(ratings.lanes, drawn, strict=True)
            ]
            errors += torch.stack(self.workers.map(lambda job: self._lane_and_part(*job), jobs))
            leaving, coming = ratings.lanes[0].number + turn, ratings.lanes[-1].number + 1 + turn
            spans = (ratings.movie_spans[part % parts] for part in (leaving, coming))
            self.ranks.turn(self.movie_tables(), *spans)
        return math.sqrt(self.ranks.gather(errors).sum().item() / len(self.train))

    def _draw(self, number: int, lane: Lane) -> tuple[list[int], list[list[list[int]]]]:
        """Order of the lane's blocks, and per block and movie part a seed for its batches and one for dropout."""
        rng = generator(self.config.seed, number, lane=lane.number)
        seeds = torch.randint(1 << 62, (len(lane.blocks), self.ratings.parts, 2), generator=rng)
        return torch.randperm(len(lane.blocks), generator=rng).tolist(), seeds.tolist()

    def _lane_and_part(
        self, lane: Lane, part: int, order: list[int], seeds: list[list[list[int]]], passed: float
    ) -> Tensor:
        """Steps over the batches of a lane and movie part, from ``passed`` epochs on; returns the sum of squared
        errors."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        share = 1 / self.ratings.parts / len(order)
        for place, block in enumerate(order):
            seed, dropout_seed = seeds[block][part]
            rng = torch.Generator(self.device).manual_seed(dropout_seed)
            rows = lane.blocks[block], self.ratings.movie_spans[part]
            batches = self.ratings.batches(lane, block, part, seed)
            for i, batch in enumerate(batches):
                progress = (passed + (place + i / len(batches)) * share) / self.epochs
                total += self.step(batch, progress, rng, rows)
        return total

    def share_movies(self, tables: Sequence[Tensor]) -> None:
        """Overwrites the rows of other ranks' movie parts with theirs."""
        first, last = (self.ratings.lanes[i].number for i in (0, -1))
        here = slice(self.ratings.movie_spans[first].start, self.ratings.movie_spans[last].stop)
        for table in tables:
            table.copy_(self.ranks.gather(table[here]))

    def validation_rmse(self) -> float:
        return rmse(self.model(), self.validation, self.workers, self.ranks)

    def model(self) -> MatrixFactorization:
        if self.finished is None:
            t, movies = self.tables, self.ratings.movie_rows
            self.share_movies([t.q, t.b_m])
            parameters = t.p, t.q.index_select(0, movies), t.b_u, t.b_m.index_select(0, movies)
            self.finished = self.fallback.to_model(*parameters, self.config.factors)
        return self.finished

    def state(self) -> dict[str, Any]:
        t, users = self.tables, self.train.users
        self.share_movies(self.movie_tables())
        return {"tables": [users.whole(t.p), t.q, users.whole(t.b_u), t.b_m]}

    def load_state(self, state: dict[str, Any]) -> None:
        p, q, b_u, b_m = state["tables"]
        t, users = self.tables, self.train.users
        for table, saved in ((t.p, users.own(p)), (t.q, q), (t.b_u, users.own(b_u)), (t.b_m, b_m)):
            table.copy_(saved)
        self.finished = None
