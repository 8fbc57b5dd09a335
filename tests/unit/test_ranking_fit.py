"""The fit of the ranking model: closed forms, degenerate data, the same bits, options and errors."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mf.errors import ConfigError, DataError
from mf.ranking import Interactions, PassReport, RankingConfig, RankingModel
from mf.ranking.fit import fit, teacher_rank
from mf.ranking.interactions import UserRows
from mf.ranking.krylov import krylov_basis
from mf.ranking.matrix import LIKING, RATED, RatingMatrix
from mf.ranking.passes import Passes
from mf.ranking.taste import taste_vectors
from mf.ranking.teacher import fit_teacher
from mf.workers import Workers

CPU = torch.device("cpu")
USERS, MOVIES = 150, 24
Floats = npt.NDArray[np.float64]


def interactions(users: Any, movies: Any, ratings: Any, shape: tuple[int, int] | None = None) -> Interactions:
    u, m = (torch.as_tensor(np.asarray(x, dtype=np.int32)) for x in (users, movies))
    r = None if ratings is None else torch.as_tensor(np.asarray(ratings, dtype=np.float32))
    return Interactions(u, m, r, *(shape or (int(u.max()) + 1, int(m.max()) + 1)))


def toy(seed: int = 0, users: int = USERS, movies: int = MOVIES, share: float = 0.3) -> Interactions:
    """Half-star ratings of two planted groups of users and movies, in random order."""
    rng = np.random.default_rng(seed)
    same = np.arange(users)[:, None] % 2 == np.arange(movies) % 2
    u, m = np.nonzero(rng.random((users, movies)) < share * np.where(same, 1.5, 0.5))
    order = rng.permutation(len(u))
    u, m = u[order], m[order]
    ratings = np.round(2 * (3 + same[u, m] + rng.normal(0, 0.8, len(u)))).clip(1, 10) / 2
    return interactions(u, m, ratings, (users, movies))


def dense(data: Interactions, values: Any = 1.0) -> Floats:
    out = np.zeros((data.n_users, data.n_movies))
    out[data.users.numpy(), data.movies.numpy()] = values
    return out


def fitted(data: Interactions, threads: int | None = 1, **options: Any) -> RankingModel:
    return fit(data, RankingConfig.of(**options), CPU, threads=threads)


def scores(model: RankingModel, data: Interactions) -> Floats:
    return model.scores(model.user_vectors(data)).astype(np.float64)


def assert_close(found: Floats, expected: Floats, tolerance: float = 1e-4) -> None:
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


FULL: dict[str, Any] = {"factors": 64, "prior_ratings": 0.0, "taste": 0.0}  # more factors than movies: nothing is cut


def test_one_channel_at_full_rank_gives_the_scores_of_ease() -> None:
    data = toy()
    model = fitted(data, rated_only=True, input_exponent=0, target_exponent=0, **FULL)
    x = dense(data)
    inverse = np.linalg.inv(x.T @ x + model.regularization * np.eye(MOVIES))
    weights = -inverse / np.diag(inverse)  # Steck 2019, equation 8
    np.fill_diagonal(weights, 0)
    assert_close(scores(model, data), x @ weights)
    assert model.energy_beyond < 1e-5
    assert model.mu is None
    assert not model.liking.any()


def test_two_channels_at_full_rank_give_the_scores_of_the_dense_regression() -> None:
    data = toy()
    options = {"rho": 0.7, "rated_target": 0.4, "input_exponent": 0.4, "target_exponent": 0.2}
    model = fitted(data, relevance_threshold=4.0, **options, **FULL)
    assert data.ratings is not None
    ratings = data.ratings.double().numpy()
    like = 0.7 * (ratings - ratings.mean()) / ratings.std()
    count = np.maximum(dense(data).sum(1), 1)
    busy = (count / count.mean())[:, None]
    channels = np.hstack([dense(data), dense(data, like)])
    x, y = channels * busy**-0.4, dense(data, np.where(ratings >= 4, 1, 0.4)) * busy**-0.2
    expected = np.empty((USERS, MOVIES))
    for movie in range(MOVIES):  # each by a ridge regression on all columns but its own two
        others = np.delete(np.arange(2 * MOVIES), [movie, MOVIES + movie])
        gram = x[:, others].T @ x[:, others] + model.regularization * np.eye(len(others))
        expected[:, movie] = channels[:, others] @ np.linalg.solve(gram, x[:, others].T @ y[:, movie])
    assert_close(scores(model, data), expected)
    assert model.mu == pytest.approx(ratings.mean())
    assert model.sd == pytest.approx(ratings.std())


def test_the_regularization_is_the_squared_singular_value_at_a_tenth_of_the_users() -> None:
    data = toy(movies=60)
    model = fitted(data, rated_only=True, input_exponent=0)
    singular = np.linalg.svd(dense(data), compute_uv=False)
    assert model.regularization == pytest.approx(singular[USERS // 10 - 1] ** 2, rel=1e-4)
    assert fitted(data, rated_only=True, input_exponent=0, regularization_index=3).regularization == pytest.approx(
        singular[2] ** 2, rel=1e-4
    )


def test_what_lies_beyond_the_rank_is_reported_as_a_share_of_the_energy() -> None:
    data = toy(movies=100)
    squares = np.linalg.svd(dense(data), compute_uv=False) ** 2
    last = 1.0
    for rank in (40, 70, 90, 99):
        model = fitted(data, rated_only=True, input_exponent=0, teacher_rank=rank)
        assert model.teacher_rank == rank
        assert squares[rank:].sum() / squares.sum() <= model.energy_beyond < last
        last = model.energy_beyond
    assert last < 0.01
    assert fitted(data, rated_only=True, input_exponent=0).energy_beyond < 1e-5


def test_diagonals_of_a_cut_basis_are_estimated_from_what_lies_beyond() -> None:
    """EASE's diagonal at 90 of 160 directions: 13% off, where the known directions alone are 41% off."""
    data = toy(users=400, movies=160)
    ones = np.ones(400, np.float32)
    with torch.no_grad(), Workers(CPU, 1) as workers:
        matrix = RatingMatrix(UserRows.of(data), 160, {RATED: None}, None, 0.5, ones, ones, CPU, workers)
        teacher = fit_teacher(matrix, 90, RankingConfig(regularization_index=20), Passes(None))
    x, ridge = dense(data), teacher.regularization
    leverage = 1 - ridge * np.diag(np.linalg.inv(x.T @ x + ridge * np.eye(160)))
    shrunk = (teacher.singular**2 / (teacher.singular**2 + ridge)).numpy()
    known = (teacher.images[RATED] / teacher.singular).numpy() ** 2 @ shrunk
    exact, estimated, plain = leverage / (1 - leverage), teacher.gamma[RATED].numpy(), known / (1 - known)
    assert np.abs(estimated - exact).mean() < 0.2 * exact.mean()
    assert np.abs(plain - exact).mean() > 0.3 * exact.mean()


@pytest.mark.parametrize(("rank", "columns"), [(160, 200), (160, 100), (100, 160), (64, 65)])
def test_the_basis_is_orthonormal_and_ends_where_the_space_does(rank: int, columns: int) -> None:
    factor = torch.randn(400, rank, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -1, rank)
    square = factor @ factor.T

    def expand(block: torch.Tensor, at: slice) -> torch.Tensor | None:
        return square @ block if at.stop < columns else None

    with Workers(CPU, 1) as workers:
        start = square @ torch.randn(400, 64, generator=torch.Generator().manual_seed(1))
        basis = krylov_basis(start, expand, columns, workers)
    assert basis.shape[1] == min(rank, columns)
    assert (basis.T @ basis - torch.eye(basis.shape[1])).abs().max() < 1e-3
    assert (factor - basis @ (basis.T @ factor)).norm() <= (0.02 if columns >= rank else 0.5) * factor.norm()


@pytest.mark.parametrize(("movies", "users"), [(60, 40), (200, 150)])
def test_inputs_of_a_lower_rank_than_their_size_give_the_scores_of_ease(movies: int, users: int) -> None:
    """Every user occurs twice: a basis that went on beyond the rank would be rounding noise."""
    base = toy(movies=movies, users=users)
    data = interactions(torch.cat([base.users, base.users + users]), base.movies.repeat(2), None, (2 * users, movies))
    options = {"input_exponent": 0, "target_exponent": 0, "regularization_index": 5, **FULL}
    model = fitted(data, **{**options, "factors": movies})
    x = dense(data)
    inverse = np.linalg.inv(x.T @ x + model.regularization * np.eye(movies))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    assert model.teacher_rank == users
    assert_close(scores(model, data), x @ weights, 1e-2)  # directions below a thousandth are dropped


@pytest.mark.parametrize("options", [{}, {"rated_only": True}, {"taste": 2.0, "rho": 2.0}])
def test_lists_find_the_planted_groups(options: dict[str, Any]) -> None:
    data = toy(users=400, movies=40, share=0.25)
    model = fitted(data, **options)
    found = scores(model, data)
    found[dense(data) > 0] = -np.inf
    best = np.argsort(-found, axis=1)[:, :5]
    assert (best % 2 == np.arange(400)[:, None] % 2).mean() > 0.85


def test_the_cut_keeps_the_largest_directions_of_scores_of_length_1_per_user() -> None:
    """All users' directions are looked at (4 x factors), so that the result is that of a dense decomposition."""
    data = toy(users=40, movies=60)
    model = fitted(data, rated_only=True, input_exponent=0, target_exponent=0, factors=10)
    x = dense(data)
    inverse = np.linalg.inv(x.T @ x + model.regularization * np.eye(60))
    leverage = 1 - model.regularization * np.diag(inverse)
    answers = x @ (np.eye(60) - inverse / np.diag(inverse))  # EASE's scores, of the rated movies too
    unseen = answers + x * (leverage / (1 - leverage))  # as if nobody had rated the movie
    directions = np.linalg.svd(answers / np.linalg.norm(unseen, axis=1, keepdims=True))[2][:10]
    assert_close(model.embedding.astype(np.float64) @ model.embedding.T, directions.T @ directions, 1e-3)


def test_taste_vectors_are_those_of_a_loop_over_the_movies() -> None:
    data, k, unit, weight = toy(users=90, movies=25, share=0.1), 9, 0.8, 0.5
    rows = UserRows.of(data)
    assert rows.ratings is not None
    users, movies, above = rows.users, rows.movies, rows.ratings - rows.ratings.mean()
    assert np.bincount(movies).min() < k < np.bincount(movies).max()
    rng = torch.Generator().manual_seed(0)
    p, q, rated, liking = (torch.randn(n, k, generator=rng) for n in (90, 25, 25, 25))
    scale = np.linspace(0.5, 2, 90, dtype=np.float32)
    with torch.no_grad(), Workers(CPU, 1) as workers:
        matrix = RatingMatrix(rows, 25, {RATED: None, LIKING: above / unit}, None, 0.5, scale, scale, CPU, workers)
        found = taste_vectors(matrix, p, q, {RATED: rated, LIKING: liking}, unit, weight).numpy()
    rest = above - (np.bincount(movies, above) / (np.bincount(movies) + 5))[movies]
    rest = rest - (np.bincount(users, rest, 90) / (np.bincount(users, minlength=90) + 5))[users]
    expected = np.zeros((25, k))
    for movie in range(25):
        at = np.flatnonzero(movies == movie)
        own = rated[movie].numpy() + np.outer(above[at] / unit, liking[movie].numpy())
        z = (p.numpy()[users[at]] - own) / np.linalg.norm(p.numpy()[users[at]], axis=1, keepdims=True)
        expected[movie] = np.linalg.solve(z.T @ z + np.eye(k), z.T @ rest[at])
    one = p.numpy() / np.linalg.norm(p.numpy(), axis=1, keepdims=True)
    expected *= weight * (one @ q.numpy().T).std(1).mean() / (one @ expected.T).std(1).mean()
    assert_close(found, expected)


def test_taste_lifts_what_is_liked_above_what_is_only_rated() -> None:
    """All users rate alike, but even users like even movies and odd users odd ones."""
    rng = np.random.default_rng(0)
    u, m = np.nonzero(rng.random((600, 60)) < 0.3)
    data = interactions(u, m, np.where((u % 2) == (m % 2), 5.0, 2.0))
    same = (np.arange(600)[:, None] % 2) == (np.arange(60) % 2)
    gaps = []
    for taste in (0.0, 0.3, 0.6):
        found = scores(fitted(data, taste=taste), data)
        gaps.append((found[same].mean() - found[~same].mean()) / found.std())
    assert gaps[0] < gaps[1] < gaps[2]


def test_taste_is_off_where_any_rating_is_relevant() -> None:
    data = toy()
    assert np.array_equal(
        fitted(data, relevance_threshold=0.5).embedding, fitted(data, relevance_threshold=0.5, taste=0).embedding
    )


def test_movies_with_many_raters_are_sampled_for_their_taste(monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy(users=600, movies=30)
    whole = fitted(data, taste=1.0)
    monkeypatch.setattr("mf.ranking.taste.RATERS", 100)
    some = fitted(data, taste=1.0)
    assert not np.array_equal(whole.embedding, some.embedding)
    a, b = (model.embedding / np.linalg.norm(model.embedding, axis=1, keepdims=True) for model in (whole, some))
    assert (a * b).sum(1).mean() > 0.8


def test_default_threshold_is_three_quarters_up_the_range() -> None:
    data = toy()
    assert data.ratings is not None
    data = replace(data, ratings=data.ratings.clamp(min=1.0))
    assert fitted(data).relevance_threshold == 4.0
    assert fitted(data, relevance_threshold=3.5).relevance_threshold == 3.5


def test_an_unseen_user_gets_the_most_rated_movies_first() -> None:
    rng = np.random.default_rng(0)
    u, m = np.nonzero(rng.random((300, 30)) < np.linspace(0.6, 0.05, 30))
    model = fitted(interactions(u, m, None))
    order = np.argsort(-model.bias)
    assert np.abs(np.argsort(order) - np.arange(30)).mean() < 2
    assert np.array_equal(model.scores(np.zeros((1, 64), np.float32))[0], model.bias)


def test_columns_beyond_the_real_directions_are_zeros() -> None:
    model = fitted(toy(movies=10), factors=64)
    for table in (model.embedding, model.history, model.liking):
        assert table.shape == (10, 64)
        assert table[:, :10].any(0).all()
        assert not table[:, 10:].any()


def all_of_a_block() -> Interactions:
    u, m = np.divmod(np.arange(40 * 20), 20)
    keep = (u < 20) == (m < 10)
    return interactions(u[keep], m[keep], 1 + (u + m)[keep] % 5)


RNG = np.random.default_rng(5)
PAIRS = np.nonzero(RNG.random((200, 50)) < 0.2)
SPARSE = np.nonzero(RNG.random((354, 20)) < 0.01)
EVERYTHING = np.array([[200] * 50, range(50)])
DEGENERATE: dict[str, Interactions] = {
    "two blocks, each rated in full": all_of_a_block(),
    "two blocks, clicks": replace(all_of_a_block(), ratings=None),
    "one user": interactions([0] * 30, range(30), np.arange(30) % 5),
    "one movie": interactions(range(30), [0] * 30, np.arange(30) % 5),
    "one rating": interactions([0], [0], [3]),
    "twenty users": toy(users=20, movies=100),
    "few movies, many users": toy(users=900, movies=4, share=0.6),
    "pairs that occur twice": interactions(*np.tile(PAIRS, 2), RNG.integers(1, 6, 2 * len(PAIRS[0]))),
    "a user who rated everything": interactions(*np.c_[PAIRS, EVERYTHING], RNG.integers(1, 6, len(PAIRS[0]) + 50)),
    "everybody rated everything": interactions(*np.divmod(np.arange(100 * 12), 12), RNG.integers(1, 6, 1200)),
    "ratings of 0 and 1": interactions(*PAIRS, RNG.integers(0, 2, len(PAIRS[0]))),
    "ratings from -10 to 10": interactions(*PAIRS, RNG.uniform(-10, 10, len(PAIRS[0]))),
    "counts to 100,000": interactions(*PAIRS, np.exp(RNG.uniform(0, np.log(1e5), len(PAIRS[0]))).round()),
    "the same rating everywhere": interactions(*PAIRS, np.full(len(PAIRS[0]), 3.7)),
    "no user has two ratings": interactions(range(60), np.arange(60) % 7, np.arange(60) % 5),
    "a few ratings of many users": interactions(*SPARSE, np.exp(RNG.uniform(0, 11.5, len(SPARSE[0]))), (354, 20)),
    "rows without a rating": interactions([3, 5, 5], [4, 4, 9], [1, 2, 5], (20, 12)),
}  # fmt: skip


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("options", [{}, {"rated_only": True}, {"factors": 3}])
def test_degenerate_data_gives_small_finite_scores(name: str, options: dict[str, Any]) -> None:
    data = DEGENERATE[name]
    found = scores(fitted(data, **options), data)
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 10


def tensors(model: RankingModel) -> bytes:
    return b"".join(getattr(model, name).tobytes() for name in ("bias", "embedding", "history", "liking"))


def test_same_bits_for_any_number_of_threads_and_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mf.ranking.matrix.BLOCK_USERS", 64)  # several blocks and pieces of this small data
    monkeypatch.setattr("mf.workers.ROWS", 50)
    data = toy(users=300, movies=80)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    assert data.ratings is not None
    shuffled = replace(data, users=data.users[order], movies=data.movies[order], ratings=data.ratings[order])
    one = fitted(data, threads=1)
    for threads, given in ((2, data), (3, data), (2, shuffled), (7, shuffled)):
        other = fitted(given, threads=threads)
        assert tensors(other) == tensors(one)
        assert other.user_vectors(given, threads).tobytes() == one.user_vectors(data, 1).tobytes()
    assert tensors(fitted(data, seed=1)) != tensors(one)


def test_blocks_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy(users=300, movies=80)
    whole = scores(fitted(data), data)
    monkeypatch.setattr("mf.ranking.matrix.BLOCK_USERS", 64)
    monkeypatch.setattr("mf.ranking.matrix.MOVIE_RANGES", 5)
    assert_close(scores(fitted(data), data), whole)


def test_of_a_pair_that_occurs_twice_the_last_one_counts() -> None:
    data = toy()
    assert data.ratings is not None
    twice = interactions(
        np.r_[data.users, data.users], np.r_[data.movies, data.movies], np.r_[6 - data.ratings, data.ratings]
    )
    assert tensors(fitted(twice)) == tensors(fitted(data))


def test_two_users_with_the_same_movie_are_no_pair_that_occurs_twice() -> None:
    rows = UserRows.of(interactions([0, 1, 3, 3, 3], [3, 3, 3, 4, 4], [5, 1, 2, 3, 4]))
    assert rows.counts.tolist() == [1, 1, 0, 2]
    assert rows.movies.tolist() == [3, 3, 3, 4]
    assert rows.ratings is not None
    assert rows.ratings.tolist() == [5, 1, 2, 4]


def test_clicks_give_the_model_of_rated_only_and_counts_do_not_matter() -> None:
    data = toy()
    clicks = fitted(replace(data, ratings=None))
    assert tensors(clicks) == tensors(fitted(data, rated_only=True))
    assert tensors(clicks) == tensors(fitted(replace(data, ratings=torch.full((len(data),), 2.0))))
    assert clicks.rho == 0


def test_rho_0_leaves_the_liking_out_of_the_input_and_not_of_the_targets() -> None:
    data = toy()
    model = fitted(data, rho=0.0)
    assert not model.liking.any()
    assert tensors(model) != tensors(fitted(data, rated_only=True))


def test_every_pass_is_reported() -> None:
    reports: list[PassReport] = []
    fit(toy(users=300, movies=100), RankingConfig(), CPU, reports.append)
    said = [report.what for report in reports]
    assert said[0] == "ratings sorted"
    assert said[1:4] == [f"teacher {n}/200 directions" for n in (64, 128, 192)]
    assert said[-1] == "taste"
    assert reports[0].line().startswith("ranking  ratings sorted  0.")
    assert [report.seconds for report in reports] == sorted(report.seconds for report in reports)


def test_torch_keeps_its_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        fitted(toy(), threads=2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_rank_grows_with_the_ratings() -> None:
    sizes = (100_000, 7_900_000, 23_600_000, 10**9)
    assert [teacher_rank(n, 10_000, 64) for n in sizes] == [512, 512, 576, 704]
    assert teacher_rank(100_000, 610, 64) == 610
    assert teacher_rank(100_000, 10_000, 400) == 800


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": torch.empty(0), "movies": torch.empty(0), "ratings": torch.empty(0)}, "found no ratings"),
        ({"users": torch.tensor([0, 5])}, "found user row 5, expected -1 (unseen) to 1"),
        ({"movies": torch.tensor([-2, 0])}, "found movie row -2, expected -1 (unseen) to 2"),
        ({"ratings": torch.tensor([1.0, float("nan")])}, "not finite"),
        ({"ratings": torch.tensor([1.0])}, "found 1 ratings, expected 2, one per user"),
        ({"movies": torch.tensor([-1, -1])}, "found no ratings"),
    ],
)
def test_input_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    data = replace(interactions([0, 1], [1, 2], [3, 4]), **change)
    with pytest.raises(DataError) as error:
        fitted(data)
    assert message in str(error.value)


@pytest.mark.parametrize("option", [{"factors": 0}, {"rho": -1}, {"taste": "much"}, {"unknown": 1}, {"seed": -1}])
def test_options_that_cannot_be_are_refused_by_name(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        RankingConfig.of(**option)
