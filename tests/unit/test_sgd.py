"""The sgd solver: a step by hand, how the ratings are drawn, and that the workers do not show in the outcome."""

from collections.abc import Callable, Iterable
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from mf.model import MatrixFactorization
from mf.solvers import EpochReport, RatingTensors, loop
from mf.solvers.minibatch import BlockedRatings, Penalty, Tables
from mf.solvers.sgd import MOVIE_SHARDS, SGDConfig, SGDTraining, learning_rate, update
from mf.workers import Workers

CPU = torch.device("cpu")
USERS, MOVIES, RATINGS = 200, 150, 6000
BLOCKED = SGDConfig(factors=4, batch_size=64, epochs=3, block_users=30)  # 8 blocks, 4 movie parts


def uneven() -> tuple[RatingTensors, RatingTensors]:
    """6,000 training and 500 validation ratings of noise, of users and movies that are very unevenly busy."""
    g = torch.Generator().manual_seed(0)
    busy, popular = (1 / torch.arange(1.0, n + 1)[torch.randperm(n, generator=g)] ** 0.7 for n in (USERS, MOVIES))
    pairs = torch.multinomial(torch.outer(busy, popular).flatten(), RATINGS + 500, generator=g)
    ratings = 3.5 + torch.randn(len(pairs), generator=g)
    parts = (slice(0, RATINGS), slice(RATINGS, None))
    train, validation = (RatingTensors(pairs[x] // MOVIES, pairs[x] % MOVIES, ratings[x], USERS, MOVIES) for x in parts)
    return train, validation


def pair(users: Tensor, movies: Tensor) -> Tensor:
    return users.long() * MOVIES + movies


@pytest.mark.parametrize("spans", [None, (slice(0, 2), slice(0, 3)), (slice(0, 1), slice(0, 2))])
@pytest.mark.parametrize(("progress", "lr"), [(0.0, 0.1), (0.5, 0.051), (1.0, 0.002)])
def test_a_step_equals_the_one_computed_by_hand(progress: float, lr: float, spans: tuple[slice, slice] | None) -> None:
    """User 0 gives 2.5 to movie 0 and 1.5 to movie 1, predicted 1.5 and 2.5; user 1 and movie 2 are not in it."""
    vectors = [[1.0], [7.0]], [[1.0], [2.0], [7.0]]
    tables = Tables(*map(torch.tensor, (*vectors, [0.5, 7.0], [0.0, 0.0, 7.0])))
    users, movies, ratings = torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([2.5, 1.5])
    penalty = Penalty.of(RatingTensors(users, movies, ratings, 2, 3).counts(), l2=0.5, bias_damping=2)
    batch = (users.int(), movies.int(), ratings)
    sums = tables.gradient_sums(batch, tables.residuals(batch), spans=spans)
    update(tables, penalty, sums, learning_rate(0.1, progress), row_damping=1)

    once, twice = lr / (1 + lr), lr / (1 + 2 * lr)  # the steps of a row with one rating and with two
    # The errors are 1 and -1; the penalty takes 0.5 a rating and parameter of the vectors, and of the biases 2 a row.
    expected = {
        "p": [1 + twice * (1 * 1 - 1 * 2 - 2 * 0.5 * 1), 7],
        "q": [1 + once * (1 * 1 - 0.5 * 1), 2 + once * (-1 * 1 - 0.5 * 2), 7],
        "b_u": [0.5 + twice * (1 - 1 - 2 * 0.5), 7],
        "b_m": [once * 1, once * -1, 7],
    }
    for name, values in expected.items():
        assert getattr(tables, name).flatten().tolist() == pytest.approx(values, rel=1e-6), name


def test_bias_damping_leaves_n_by_n_plus_damping_of_a_rows_mean_error() -> None:
    """Users come in pairs that rate 2.5 and 4.5, so that the movie's bias stays 0; l2 keeps the vectors at 0."""
    times, low_high = [1, 1, 4, 4, 20, 20], [2.5, 4.5] * 3
    users = torch.arange(6).repeat_interleave(torch.tensor(times))
    train = RatingTensors(users, torch.zeros_like(users), torch.tensor(low_high)[users], 6, 1)
    config = SGDConfig(factors=1, batch_size=4, epochs=200, l2=0.8, bias_damping=4, init_std=1e-6)
    model = loop.run(SGDTraining(train, train, config), len(train), False, [])
    bias = (model(torch.arange(6), torch.zeros(6, dtype=torch.int64)) - train.ratings.mean()).tolist()
    assert bias == pytest.approx([-1 / 5, 1 / 5, -1 / 2, 1 / 2, -5 / 6, 5 / 6], abs=0.005)


def test_the_result_does_not_depend_on_the_number_of_workers() -> None:
    train, validation = uneven()

    def fitted(workers: int) -> tuple[MatrixFactorization, list[EpochReport]]:
        reports: list[EpochReport] = []
        training = SGDTraining(train, validation, BLOCKED, workers=workers)
        return loop.run(training, len(train), True, [reports.append]), reports

    (alone, of_alone), (together, of_together) = fitted(1), fitted(3)
    for name, table in alone.state_dict().items():
        assert torch.equal(together.state_dict()[name], table), name
    assert [r.train_rmse for r in of_alone] == [r.train_rmse for r in of_together]


class Recorded(Workers):
    """Keeps what is worked on at the same time: the users and movies, int32[B] each, of every job of a turn."""

    def __init__(self) -> None:
        super().__init__(CPU, 1)
        self.turns: list[list[tuple[Tensor, Tensor]]] = []

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        items = list(items)
        if isinstance(items[0], tuple):  # batches and what goes with them, not the number of a block
            jobs = [[torch.cat(column) for column in zip(*batches, strict=True)] for batches, *_ in items]
            self.turns.append([(users, movies) for users, movies, _ in jobs])
        return super().map(work, items)


def recorded() -> tuple[RatingTensors, SGDTraining, Recorded]:
    train, validation = uneven()
    training = SGDTraining(train, validation, BLOCKED)
    training.workers = workers = Recorded()
    return train, training, workers


def test_threads_at_work_at_the_same_time_share_no_user_and_no_movie() -> None:
    _, training, workers = recorded()
    training.epoch(1)
    assert [len(turn) for turn in workers.turns] == [MOVIE_SHARDS] * 8  # 8 blocks and 4 parts, 4 at a time
    for turn in workers.turns:
        for one, other in combinations(turn, 2):
            for rows, others in zip(one, other, strict=True):
                assert not torch.isin(rows, others).any()


def test_every_epoch_draws_each_rating_once_in_a_new_order() -> None:
    train, training, workers = recorded()
    movie_of_row = training.ratings.movie_rows.argsort()
    drawn = []
    for number in (1, 2):
        workers.turns.clear()
        training.epoch(number)
        jobs = [job for turn in workers.turns for job in turn]
        drawn.append(torch.cat([pair(users, movie_of_row[movies.long()]) for users, movies in jobs]))
    for order in drawn:
        assert torch.equal(order.sort().values, pair(train.users, train.movies).sort().values)
    assert not torch.equal(*drawn)


def test_a_batch_keeps_each_ratings_user_movie_and_value_together_sorted_by_user() -> None:
    train, _ = uneven()
    given = torch.zeros(USERS * MOVIES)
    given[pair(train.users, train.movies)] = train.ratings - train.ratings.double().mean().float()
    blocked = BlockedRatings(train, 64, blocks=8, shards=4)
    movie_of_row = blocked.movie_rows.argsort()
    for part, batches in enumerate(blocked.batches(3, seed=1)):
        for users, movies, ratings in batches:
            torch.testing.assert_close(given[pair(users, movie_of_row[movies.long()])], ratings, rtol=0, atol=1e-6)
            assert (users.diff() >= 0).all()
            for rows, span in ((users, blocked.user_spans[3]), (movies, blocked.movie_spans[part])):
                assert ((span.start <= rows) & (rows < span.stop)).all()


def test_the_model_has_the_movies_in_their_original_order() -> None:
    train, validation = uneven()
    # As many factors as movies hold every product exactly; with few, known pairs give way to the damped biases.
    training = SGDTraining(train, validation, BLOCKED.model_copy(update={"factors": MOVIES}))
    training.epoch(1)
    rows, tables = training.ratings.movie_rows, training.tables
    assert sorted(rows.tolist()) == list(range(MOVIES))
    assert torch.equal(training.ratings.counts[1][rows], train.counts()[1])
    p, q = tables.p[train.users], tables.q[rows[train.movies]]
    expected = train.ratings.mean() + (p * q).sum(1) + tables.b_u[train.users] + tables.b_m[rows[train.movies]]
    torch.testing.assert_close(training.model()(train.users, train.movies), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 64, 999, 6000, 100_000])
def test_plain_batches_have_equal_sizes_up_to_the_batch_size(batch_size: int) -> None:
    train = uneven()[0]
    (batches,) = BlockedRatings(train, batch_size).batches(0, seed=1)
    *first, last = [len(users) for users, _, _ in batches]
    assert len(batches) == -(-RATINGS // batch_size)
    assert len({*first, last}) <= 2
    assert last <= max([*first, last]) <= batch_size


def test_blocks_hold_whole_users_and_have_equal_sizes_up_to_one_users_ratings() -> None:
    train = uneven()[0]
    blocked = BlockedRatings(train, 64, blocks=8, shards=4)
    busiest = int(train.counts()[0].max())
    assert blocked.starts[0] == 0
    assert blocked.starts[-1] == RATINGS
    assert all(abs(end - begin - RATINGS / 8) <= busiest for begin, end in pairwise(blocked.starts))
    edges, users = torch.tensor(blocked.starts[1:-1]), blocked.columns[0]
    assert (users[edges - 1] != users[edges]).all()


def test_movie_shards_have_equal_sizes_up_to_the_most_popular_movies_ratings() -> None:
    train = uneven()[0]
    blocked = BlockedRatings(train, 64, blocks=8, shards=4)
    counts, part = blocked.counts[1], blocked.shard_of_row.long()
    ratings = torch.bincount(part, weights=counts.double(), minlength=4)
    assert ratings.max() - ratings.min() <= counts.max()
    assert ratings.min() > 0.9 * RATINGS / 4
    assert sorted(torch.bincount(part).tolist()) == [37, 37, 38, 38]
