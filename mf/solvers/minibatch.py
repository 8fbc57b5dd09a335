"""Mini-batches of ``adam`` and ``sgd``: batches, gradient sums per row, blocked epochs.

A solver subclasses ``MiniBatchTraining`` and gives it ``step``, the update on one batch. Two things make it fast:

- No gradient is stored per rating: the sum over a row's ratings of error × the other vector is one ``embedding_bag``.
- Ratings can be drawn block by block (``BlockedRatings``): the rows in use stay in the processor's cache, and threads
  work on disjoint rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mf.model import MatrixFactorization
from mf.solvers.base import Initial, RatingTensors, generator, rmse
from mf.solvers.dots import has_fused_dots, row_dots
from mf.solvers.sorting import Segments, grouped, stable_argsort
from mf.solvers.unseen import BiasFallback
from mf.workers import Workers

L2 = "L2 regularisation of both vectors, per rating; default: 0.05·(N / 2 million)^-0.2 within 0.03 to 0.06"
BIAS_DAMPING = "L2 regularisation of the biases, in ratings: a row's bias is n / (n + damping) of its mean error"

Batch = tuple[Tensor, Tensor, Tensor]  # users int32[B], sorted; movies int32[B]; ratings less mu float32[B]
Counts = tuple[Tensor, Tensor]  # ratings per user int64[n_users] and per movie int64[n_movies]
Spans = tuple[slice, slice]  # rows of a user block and of a movie shard


def shuffled_batches(ratings: Batch, batch_size: int, seed: int) -> list[Batch]:
    """Random batches of equal size, at most ``batch_size``; the last may be smaller. Each is sorted by user."""
    n = len(ratings[0])
    batches = max(1, math.ceil(n / batch_size))
    size = max(1, math.ceil(n / batches))
    rng = torch.Generator(ratings[0].device).manual_seed(seed)
    batch_of = torch.randperm(n, generator=rng, device=rng.device, dtype=torch.int32).div_(size, rounding_mode="floor")
    order = stable_argsort(batch_of, batches)  # stable: the ratings are sorted by user, and stay so in a batch
    return list(zip(*(torch.split(column.index_select(0, order), size) for column in ratings), strict=True))


class BlockedRatings:
    """Training ratings by user block and movie shard (stratified SGD; Gemulla et al. 2011).

    ``MiniBatchTraining.blocked_epoch`` works on ``shards`` blocks at a time, each with another movie shard, so that
    threads share no row and the result does not depend on their number. With one block and one shard, the default,
    these are simply all ratings.

    Movies are renumbered so that the rows of a shard are adjacent: movie i has row ``movie_rows[i]``.

    Args:
        train: the ratings.
        batch_size: ratings per batch, on average.
        blocks: number of user blocks, each with about as many ratings.
        shards: number of movie shards, each with about as many ratings.

    Attributes:
        columns: users, movie rows and ratings less their mean, sorted by user.
        counts: ratings per user row and per movie row.
        user_spans, movie_spans: the rows of each block and of each shard.
        starts: the first rating of each block, and the number of ratings.
    """

    def __init__(self, train: RatingTensors, batch_size: int, blocks: int = 1, shards: int = 1) -> None:
        self.batch_size, self.blocks, self.shards = batch_size, blocks, shards
        self.device = train.ratings.device
        user_counts, movie_counts = train.counts()
        # Movies by popularity are dealt out to shards 0, 1, 2, 3, 3, 2, 1, 0, 0, …, so that shards are of equal size.
        seat = torch.arange(train.n_movies, device=self.device) % (2 * shards)
        shard = torch.empty_like(seat, dtype=torch.int32)
        shard[movie_counts.argsort(descending=True, stable=True)] = seat.minimum(2 * shards - 1 - seat).int()
        by_shard = stable_argsort(shard, shards)
        self.shard_of_row, self.movie_rows = shard[by_shard], by_shard.argsort()
        self.counts = user_counts, movie_counts[by_shard]

        rows = torch.arange(train.n_users, dtype=torch.int32, device=self.device)
        users = rows.repeat_interleave(user_counts, output_size=len(train))
        movies = self.movie_rows.int().index_select(0, train.movies)
        movies, ratings = grouped(train.users, movies, train.ratings, train.n_users)
        ratings -= train.ratings.double().mean()
        self.columns: Batch = (users, movies, ratings)

        ends = pad(user_counts.cumsum(0), (1, 0))
        wanted = torch.arange(1, blocks, device=self.device) * len(train) // blocks
        first = torch.searchsorted(ends, wanted)
        self.starts = [0, *ends[first].tolist(), len(train)]
        self.user_spans = spans([0, *first.tolist(), train.n_users])
        self.movie_spans = spans([0, *torch.bincount(shard, minlength=shards).cumsum(0).tolist()])

    @classmethod
    def of_block_size(cls, train: RatingTensors, batch_size: int, block_users: int, shards: int) -> "BlockedRatings":
        """Blocks of about ``block_users`` users; one block for 0, and on a GPU: its memory is fast enough without
        blocks, and tensor sizes there must not depend on the data."""
        if block_users == 0 or train.ratings.is_cuda:
            return cls(train, batch_size)
        return cls(train, batch_size, shards * math.ceil(train.n_users / (block_users * shards)), shards)

    def batches(self, block: int, seed: int) -> list[list[Batch]]:
        """Random batches of a block, a list per movie shard; a batch may be empty."""
        start, end = self.starts[block], self.starts[block + 1]
        users, movies, ratings = (column[start:end] for column in self.columns)
        if self.shards == 1:
            return [shuffled_batches((users, movies, ratings), self.batch_size, seed)]
        n = max(1, math.ceil((end - start) / (self.batch_size * self.shards)))
        rng = torch.Generator(self.device).manual_seed(seed)
        batch_of = torch.randint(n, (end - start,), generator=rng, device=self.device, dtype=torch.int32)
        batch_of += self.shard_of_row.index_select(0, movies) * n
        sizes = torch.bincount(batch_of, minlength=n * self.shards).tolist()
        order = stable_argsort(batch_of, n * self.shards)  # stable: a batch stays sorted by user
        split = (torch.split(column.index_select(0, order), sizes) for column in (users, movies, ratings))
        batches = list(zip(*split, strict=True))
        return [batches[i : i + n] for i in range(0, n * self.shards, n)]


def spans(edges: list[int]) -> list[slice]:
    """The rows between each edge and the next."""
    return [slice(*pair) for pair in pairwise(edges)]


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
        """The weights for rows with ``counts`` ratings; ``l2`` None: ``derived_l2``."""
        ratings = int(counts[0].sum())
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
    """The parameters: vectors p, q float32[n, factors] and biases b_u, b_m float32[n]."""

    p: Tensor
    q: Tensor
    b_u: Tensor
    b_m: Tensor

    @classmethod
    def random(cls, train: RatingTensors, factors: int, std: float, rng: torch.Generator) -> "Tables":
        """Vectors from N(0, std²), biases of 0."""
        sizes = (train.n_users, train.n_movies)
        p, q = (torch.empty(n, factors, device=rng.device).normal_(0, std, generator=rng) for n in sizes)
        return cls(p, q, *(torch.zeros(n, device=rng.device) for n in sizes))

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
        keep = 1 - dropout
        mask = [torch.empty_like(x).bernoulli_(keep, generator=rng).div_(keep) for x in (p, q)]
        scale = mask[0] * mask[1]
        p, q = p * scale, q * scale
        dot = torch.linalg.vecdot(p, self.q.index_select(0, movies))
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
    """Base of ``adam`` and ``sgd``: parameters, validation, state; subclasses add ``epoch``, ``step`` and state.

    Args:
        train, validation: the ratings.
        config: the solver's options; epochs, patience, factors, init_std, seed and lr are read here.
        make_ratings: builds the training ratings.
        initial: an earlier model to start from; rows that it lacks start at random.
        workers: number of threads; the result does not depend on it.
    """

    keeps_best = True
    note = ""

    def __init__(
        self,
        train: RatingTensors,
        validation: RatingTensors,
        config: Any,
        make_ratings: Callable[[], BlockedRatings],
        initial: Initial | None,
        workers: int | None,
    ) -> None:
        self.validation, self.config = validation, config
        self.epochs, self.patience, self.advice = config.epochs, config.patience, f"lower --lr (now {config.lr:g})"
        self.n_ratings = len(train)
        self.device = train.ratings.device
        self.workers = Workers(self.device, workers)
        builders: tuple[Callable[[], Any], ...] = (make_ratings, lambda: BiasFallback(train, validation))
        self.ratings, self.fallback = self.workers.map(lambda build: build(), builders)
        self.tables = Tables.random(train, config.factors, config.init_std, generator(config.seed, 0, self.device))
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

    def blocked_epoch(self, number: int) -> float:
        """One pass over the ratings, block by block; returns the training RMSE.

        Blocks come in random order, ``shards`` at a time. In turn t, block i of such a group works on movie shard
        (i + t) mod ``shards``: what runs at the same time shares no user and no movie.
        """
        self.finished = None
        ratings = self.ratings
        rng = generator(self.config.seed, number)
        order = torch.randperm(ratings.blocks, generator=rng).tolist()
        seeds = torch.randint(1 << 62, (ratings.blocks, 1 + ratings.shards), generator=rng).tolist()
        errors: list[Tensor] = []
        for begin in range(0, ratings.blocks, ratings.shards):
            group = order[begin : begin + ratings.shards]
            batches = self.workers.map(lambda block: ratings.batches(block, seeds[block][0]), group)
            share = len(group) / ratings.blocks / ratings.shards
            for turn in range(ratings.shards):
                passed = number - 1 + begin / ratings.blocks + turn * share
                jobs = []
                for i, block in enumerate(group):
                    shard = (i + turn) % ratings.shards
                    rows = ratings.user_spans[block], ratings.movie_spans[shard]
                    jobs.append((batches[i][shard], rows, passed, share, seeds[block][1 + shard]))
                errors += self.workers.map(lambda job: self._block_and_shard(*job), jobs)
        return math.sqrt(torch.stack(errors).sum().item() / self.n_ratings)

    def _block_and_shard(self, batches: list[Batch], rows: Spans, passed: float, share: float, seed: int) -> Tensor:
        """Steps over the batches of one block and shard, from ``passed`` epochs on, ``share`` of an epoch long; returns
        the sum of squared errors."""
        rng = torch.Generator(self.device).manual_seed(seed)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for i, batch in enumerate(batches):
            if len(batch[0]):
                total += self.step(batch, (passed + i / len(batches) * share) / self.epochs, rng, rows)
        return total

    def validation_rmse(self) -> float:
        return rmse(self.model(), self.validation, self.workers)

    def model(self) -> MatrixFactorization:
        if self.finished is None:
            t, movies = self.tables, self.ratings.movie_rows
            parameters = t.p, t.q.index_select(0, movies), t.b_u, t.b_m.index_select(0, movies)
            self.finished = self.fallback.to_model(*parameters, self.config.factors)
        return self.finished

    def state(self) -> dict[str, Any]:
        return {"tables": self.tables.all()}

    def load_state(self, state: dict[str, Any]) -> None:
        for table, saved in zip(self.tables.all(), state["tables"], strict=True):
            table.copy_(saved)
        self.finished = None
