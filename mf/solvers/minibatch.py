"""Mini-batches of ``adam`` and ``sgd``: batches, gradient sums per row, blocked epochs.

A solver subclasses ``MiniBatchTraining`` and gives it ``step``, the update on one batch. Two things make it fast:

- No gradient is stored per rating: the sum over a row's ratings of error × the other vector is one ``embedding_bag``.
- Ratings can be drawn block by block (``BlockedRatings``): the rows in use stay in the processor's cache, and threads
  work on disjoint rows.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mf.model import MatrixFactorization
from mf.ranks import lanes_of
from mf.solvers.base import Initial, RatingTensors, Share, generator, rmse
from mf.solvers.dots import has_fused_dots, row_dots
from mf.solvers.sorting import Segments, grouped, on_gpu, stable_argsort
from mf.solvers.unseen import BiasFallback
from mf.workers import Workers

Batch = tuple[Tensor, Tensor, Tensor]  # users int32[B], sorted; movies int32[B]; ratings less mu float32[B]
Counts = tuple[Tensor, Tensor]  # ratings per user int64[n_users] and per movie int64[n_movies]
Spans = tuple[slice, slice]  # rows of a user block and of a movie part

# Ratings whose batches are sorted and laid out at a time on a GPU: at most 100 bytes each beside the ratings.
LAID_OUT = 1 << 22


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
class Layout:
    """Where the users and the movies of a batch lie in it.

    Attributes:
        order: int64[B], the batch's stable order by movie.
        users: int32[B], its users in that order.
        by_user: runs of the batch's users.
        by_movie: runs of its movies, in their order.
    """

    order: Tensor
    users: Tensor
    by_user: Segments
    by_movie: Segments

    @classmethod
    def of(cls, batch: Batch, n_users: int, n_movies: int, spans: Spans | None = None) -> "Layout":
        """The layout of one batch; ``spans`` as for ``Tables.gradient_sums``."""
        users, movies, _ = batch
        user_span, movie_span = spans or (None, None)
        order = stable_argsort(movies, n_movies)
        by_user = _segments(users, n_users, user_span)
        by_movie = _segments(movies.index_select(0, order), n_movies, movie_span)
        return cls(order, users.index_select(0, order), by_user, by_movie)


def layouts(batches: Sequence[Batch], n_users: int, n_movies: int) -> Iterator[Layout]:
    """``Layout.of`` each batch, made for many batches at a time: on a GPU the launches are what small batches cost."""
    at = 0
    while at < len(batches):
        size = len(batches[at][0])
        chunk = [batch for batch in batches[at : at + max(1, LAID_OUT // size)] if len(batch[0]) == size]
        at += len(chunk)
        users, movies = (torch.stack([batch[i] for batch in chunk]) for i in (0, 1))
        # One sort, by batch and movie.
        number = torch.arange(len(chunk), device=movies.device)[:, None]
        bound = len(chunk) * n_movies
        keys = (movies + number * n_movies).to(torch.int32 if bound < 1 << 31 else torch.int64)
        order = stable_argsort(keys.flatten(), bound).view_as(movies) - number * size
        by_movie = Segments.of_each(movies.gather(1, order), n_movies)
        yield from map(Layout, order, users.gather(1, order), Segments.of_each(users, n_users), by_movie)


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

    def empty(self) -> "Tables":
        """Tables of the same shapes, without values."""
        return Tables(*(torch.empty_like(table) for table in self.all()))

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
        layout: Layout | None = None,
    ) -> tuple[GradientSums, GradientSums]:
        """Sums over each user's and each movie's ratings in the batch.

        Args:
            error: float32[B], from ``residuals``.
            derivatives: from ``residuals_with_dropout``; default: p and q themselves.
            spans: user rows and movie rows that contain the batch's. Where the batch has more ratings than a span has
                rows, the sums are for the whole span, mostly of no ratings.
            layout: of the batch, where it is known.
        """
        layout = layout or Layout.of(batch, len(self.p), len(self.q), spans)
        order, by_user, by_movie = layout.order, layout.by_user, layout.by_movie
        error_by_movie = error.index_select(0, order)
        if derivatives is None:
            user_vectors = by_user.weighted_sums(batch[1], self.q, error)
            movie_vectors = by_movie.weighted_sums(layout.users, self.p, error_by_movie)
        else:
            p, q = derivatives
            every = torch.arange(len(error), dtype=torch.int32, device=error.device)
            user_vectors = by_user.weighted_sums(every, q, error)
            movie_vectors = by_movie.weighted_sums(order.int(), p, error_by_movie)
        return (
            GradientSums(by_user, user_vectors, by_user.sums(error)),
            GradientSums(by_movie, movie_vectors, by_movie.sums(error_by_movie)),
        )


def _scalars(values: Sequence[float], device: torch.device) -> tuple[Tensor, ...]:
    """float64[] each, on the device, which nobody waits for."""
    column = torch.tensor(values, dtype=torch.float64)
    return (column.pin_memory() if device.type == "cuda" else column).to(device, non_blocking=True).unbind()


def _segments(ordered: Tensor, n_rows: int, span: slice | None) -> Segments:
    if span is None or on_gpu(ordered) or span.stop - span.start > len(ordered):
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
        self.kept: Tables | None = None  # those of the best epoch
        self.keeps_last = False  # whether they are those of the last epoch
        self.is_whole = True  # whether this rank has all movies as they are
        has_fused_dots(self.device)  # tried now, so that no epoch waits for the GPU

    def step(
        self, batch: Batch, lr: Tensor | float, rng: torch.Generator, spans: Spans, layout: Layout | None = None
    ) -> Tensor:
        """Updates the parameters on one batch.

        On a GPU all sizes are known and nothing waits for it, so that a CUDA graph can hold a step.

        Args:
            lr: learning rate; on a GPU a scalar there, float64[].
            rng: for dropout.
            spans: rows that no other thread touches at the same time.
            layout: of the batch, where it is known.

        Returns:
            The sum of squared errors before the update, float64[].
        """
        raise NotImplementedError

    def learning_rate(self, progress: float) -> float:
        """The learning rate when a share of ``progress`` of the training is over."""
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
        self.keeps_last = self.is_whole = False
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
            progress = ((passed + (place + i / len(batches)) * share) / self.epochs for i in range(len(batches)))
            floats = [self.learning_rate(x) for x in progress]
            rates: Sequence[Tensor | float] = floats
            of_batches: Iterable[Layout | None] = repeat(None, len(batches))  # each step makes its own
            if batches and on_gpu(total):
                rates = _scalars(floats, self.device)
                of_batches = layouts(batches, len(self.tables.p), len(self.tables.q))
            for batch, lr, layout in zip(batches, rates, of_batches, strict=True):
                total += self.step(batch, lr, rng, rows, layout)
        return total

    def share_movies(self, tables: Sequence[Tensor]) -> None:
        """Overwrites the rows of other ranks' movie parts with theirs."""
        first, last = (self.ratings.lanes[i].number for i in (0, -1))
        here = slice(self.ratings.movie_spans[first].start, self.ratings.movie_spans[last].stop)
        for table in tables:
            table.copy_(self.ranks.gather(table[here]))

    def validation_rmse(self) -> float:
        predictor = self.fallback.predictor(*self._parameters(self._whole_tables()), self.config.factors)
        return rmse(predictor or self._finished(self.tables), self.validation, self.workers, self.ranks)

    def keep(self) -> None:
        self.kept = self.kept or self.tables.empty()
        for kept, table in zip(self.kept.all(), self._whole_tables().all(), strict=True):
            kept.copy_(table)
        self.keeps_last = True

    def model(self) -> MatrixFactorization:
        return self._finished(self.kept or self._whole_tables())

    def state(self) -> dict[str, Any]:
        self.share_movies(self.movie_tables())
        tables = self._saved(self.tables)
        # The same list twice is one on disk.
        return {"tables": tables, "kept": tables if self.keeps_last else self.kept and self._saved(self.kept)}

    def load_state(self, state: dict[str, Any]) -> None:
        self._load(self.tables, state["tables"])
        if state["kept"]:
            self.kept = self.tables.empty()
            self._load(self.kept, state["kept"])
        self.keeps_last, self.is_whole = False, True

    def _whole_tables(self) -> Tables:
        """The tables with every rank's movies."""
        if not self.is_whole:
            self.share_movies([self.tables.q, self.tables.b_m])
            self.is_whole = True
        return self.tables

    def _parameters(self, tables: Tables) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """p, q, b_u, b_m with the movies in their original order."""
        movies = self.ratings.movie_rows
        return tables.p, tables.q.index_select(0, movies), tables.b_u, tables.b_m.index_select(0, movies)

    def _finished(self, tables: Tables) -> MatrixFactorization:
        model: MatrixFactorization = self.fallback.to_model(*self._parameters(tables), self.config.factors)
        return model

    def _saved(self, tables: Tables) -> list[Tensor]:
        users = self.train.users
        return [users.whole(tables.p), tables.q, users.whole(tables.b_u), tables.b_m]

    def _load(self, tables: Tables, saved: list[Tensor]) -> None:
        p, q, b_u, b_m = saved
        own = self.train.users.own
        for table, values in zip(tables.all(), (own(p), q, own(b_u), b_m), strict=True):
            table.copy_(values)
