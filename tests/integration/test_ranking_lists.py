"""Lists of a trained ranking model: the database's are the library's."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from faults import Fault
from supabase import Client
from targets import api, direct, rest
from trained import MOVIES, STRANGER, UNSEEN, Trained, train_groups

from mf.errors import SupabaseError
from mf.fold_in import fold_in, prior
from mf.local import LocalSupabase
from mf.model_directory import TrainedModel, read_model
from mf.ratings.schema import MOVIE, RATING, USER
from mf.supabase.client import call
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.recommend import Recommendation, recommend_from_ratings, recommend_movies, similar_movies
from mf.supabase.runs import rollback
from mf.supabase.schema import migration


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train_groups()


@pytest.fixture(scope="module")
def directory(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    trained.model.save(path)
    return path


@pytest.fixture(scope="module")
def database(fresh_stack, trained: Trained, directory: Path) -> LocalSupabase:
    """The run published through the API, and its ratings in a table."""
    stack = fresh_stack()
    with stack.connect() as connection:
        connection.execute("create table public.ratings (user_id bigint, movie_id bigint, rating numeric)")
        with connection.cursor().copy("copy public.ratings from stdin") as copy:
            for row in trained.ratings.to_pylist():
                copy.write_row((row[USER], row[MOVIE], row[RATING]))
    stack.migrate(migration(SchemaConfig(ratings_table="ratings")))
    rest(stack).export(directory, ExportConfig(rows_per_request=300))
    return stack


@pytest.fixture(scope="module")
def client(database):
    with api(database) as client:
        yield client


def check(answer: list[Recommendation], expected: list[tuple[int, float, int | None]], run_id: str) -> None:
    assert [(row.movie_id, row.because, row.run_id) for row in answer] == [(m, why, run_id) for m, _, why in expected]
    scale = max(1.0, *(abs(score) for _, score, _ in expected)) if expected else 1.0
    scores = [score for _, score, _ in expected]
    np.testing.assert_allclose([row.score for row in answer], scores, rtol=0, atol=1e-5 * scale)


def test_the_ten_best_movies_of_a_hundred_users_are_those_of_the_library(client: Client, trained: Trained) -> None:
    for user in range(7, 107):
        answer = recommend_movies(client, user)
        check(answer, trained.best(trained.own(user), 10), trained.model.run_id)
        movies = pa.array([row.movie_id for row in answer])
        predicted = trained.model.predict(pa.array([user] * 10), movies)
        np.testing.assert_allclose([row.predicted_rating for row in answer], predicted, atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 30, 700])
def test_a_new_user_gets_the_librarys_list_and_the_predicted_ratings_of_the_fold_in(
    client: Client, trained: Trained, directory: Path, n: int
) -> None:
    rng = np.random.default_rng(n)
    rated = [3 * int(movie) for movie in rng.permutation(MOVIES)[:n]]
    ratings = dict(zip(rated, rng.choice([0.5, 2.0, 3.5, 5.0], n).tolist(), strict=True))
    known = set(trained.ranking.movies.ids.to_pylist())
    answer = recommend_from_ratings(client, ratings | {-5: 5.0}, 20)
    expected = trained.best({movie: stars for movie, stars in ratings.items() if movie in known}, 20)
    check(answer, expected, trained.model.run_id)
    published = read_model(directory)
    star, bias = published.movies, published.movies.bias
    rows, stars = star.rows(pa.array(rated, pa.int64())), np.array([*ratings.values()])
    covariance = prior(published.users.vectors, published.users.bias, published.noise_variance)
    seen = rows >= 0
    p, b_u = fold_in(star.vectors[rows[seen]], bias[rows[seen]], stars[seen], published.header.mu, covariance)
    for row in answer:
        (at,) = star.rows(pa.array([row.movie_id]))
        rating = published.header.mu + b_u + (bias[at] + star.vectors[at] @ p if at >= 0 else 0)
        clipped = min(max(rating, published.header.rating_min), published.header.rating_max)
        assert row.predicted_rating == pytest.approx(clipped, abs=1e-4)


def test_a_user_and_a_movie_that_the_star_model_lacks_have_lists_and_the_mean_as_rating(
    client: Client, trained: Trained
) -> None:
    check(recommend_movies(client, STRANGER, 5), trained.best({UNSEEN: 4.5}, 5), trained.model.run_id)
    own = recommend_movies(client, STRANGER, 1, exclude_rated=False, only_ids=[UNSEEN])
    assert own[0].predicted_rating == pytest.approx(trained.model.module.mu.item(), abs=1e-5)
    nobody = recommend_movies(client, -1, 5)
    check(nobody, trained.best({}, 5), trained.model.run_id)


def test_stored_vectors_and_sums_of_the_library_and_of_sql_agree_for_10000_ratings_too(
    database: LocalSupabase, trained: Trained
) -> None:
    rng = np.random.default_rng(1)
    ranking, ids = trained.ranking, trained.ranking.movies.ids.to_pylist()
    many = rng.integers(0, len(ids), 10_000)
    asked = [(0, many, rng.choice(np.arange(1, 11) / 2, 10_000))]
    for user in (7, 50, 106):
        own = trained.own(user)
        asked.append((user, ranking.movies.rows(pa.array([*own])), np.array([*own.values()])))
    bias, embedding = (np.float64(part) for part in (ranking.model.bias, ranking.model.embedding))
    with database.connect() as connection:
        for user, rows, stars in asked:
            of_library = ranking.model.user_vector(rows, stars)
            if user:
                (row,) = ranking.users.rows(pa.array([user]))
                tolerance = 1e-5 * np.abs(of_library).max()
                np.testing.assert_allclose(ranking.vectors[row], of_library, rtol=0, atol=tolerance)
            found = connection.execute(
                "select movie_id, score from public.mf_recommend("
                "null, null, null, null, %s::bigint[], %s::float8[], %s::bigint[], 1000, '{}', null, 0, '{}')",
                [[ids[row] for row in rows], stars.tolist(), [1] * len(rows)],
            ).fetchall()
            assert len(found) == min(1000, len(ids))
            scores = dict(zip(ids, embedding @ of_library + bias, strict=True))
            tolerance = 1e-5 * max(map(abs, scores.values()))
            np.testing.assert_allclose([score for _, score in found], [scores[movie] for movie, _ in found], rtol=0,
                                       atol=tolerance)  # fmt: skip


def test_the_most_similar_movies_have_the_nearest_history_vectors(client: Client, trained: Trained) -> None:
    history, ids = trained.ranking.model.history.astype(np.float64), trained.ranking.movies.ids.to_pylist()
    length = np.linalg.norm(history, axis=1, keepdims=True)
    unit = history / np.where(length > 0, length, 1)
    for row in range(0, 100, 10):
        cosine = unit @ unit[row]
        cosine[row] = -np.inf
        order = np.argsort(-cosine, kind="stable")[:10]
        answer = similar_movies(client, ids[row])
        assert [near.movie_id for near in answer] == [ids[i] for i in order]
        np.testing.assert_allclose([near.similarity for near in answer], cosine[order], atol=1e-5)
        assert {near.run_id for near in answer} == {trained.model.run_id}


def test_pages_choices_and_runs_are_those_that_are_named(client: Client, trained: Trained) -> None:
    ten = recommend_movies(client, 20, 10)
    assert recommend_movies(client, 20, 4, skip=3, of_run=trained.model.run_id) == ten[3:7]
    left = [row.movie_id for row in ten[::2]]
    assert recommend_movies(client, 20, 5, without_ids=left)[:5] == ten[1::2]
    chosen = [ten[8].movie_id, ten[2].movie_id, -1]
    assert recommend_movies(client, 20, only_ids=chosen) == [ten[2], ten[8]]
    assert recommend_from_ratings(client, trained.own(20), 4, skip=3, without_ids=[ten[0].movie_id])[0].movie_id == (
        ten[4].movie_id
    )
    near = similar_movies(client, ten[0].movie_id, 6)
    assert similar_movies(client, ten[0].movie_id, 5, without_ids=[near[0].movie_id]) == near[1:]
    assert similar_movies(client, ten[0].movie_id, only_ids=[near[3].movie_id]) == [near[3]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"k": 600, "skip": 401}, "skip is 401, expected a number from 0 to 400 (k + skip is at most 1000)"),
        ({"skip": -1}, "skip is -1, expected a number from 0 to 990"),
        ({"without_ids": [1] * 10_001}, "without_ids has 10001 entries, expected 10000 at most"),
        ({"only_ids": [1] * 10_001}, "only_ids has 10001 entries, expected 10000 at most"),
        ({"of_run": "nope"}, "there is no run nope, or no longer: leave out of_run for the published one"),
    ],
)
def test_arguments_out_of_range_are_refused_in_one_sentence(client: Client, arguments: dict, said: str) -> None:
    for ask, first in ((recommend_movies, 7), (recommend_from_ratings, {})):
        with pytest.raises(SupabaseError) as error:
            ask(client, first, **arguments)
        assert said in str(error.value)


def test_a_published_ranking_is_read_back_over_both_connections(database: LocalSupabase, directory: Path) -> None:
    sent = read_model(directory).ranking
    assert sent
    for target in (rest(database), direct(database)):
        run = target.published_run()
        assert run
        found = target.ranking(run)
        assert found
        assert found.numbers == sent.numbers | {"users": 0}
        movies, order = (np.argsort(ids.to_numpy()) for ids in (found.movie_ids, sent.movie_ids))
        for name in ("bias", "embedding", "history", "liking"):
            np.testing.assert_array_equal(getattr(found, name)[movies], getattr(sent, name)[order])
        assert not len(found.user_ids), "the database sums up their vectors itself"


def test_an_index_finds_99_of_100_of_recommended_and_similar_movies(
    database: LocalSupabase, client: Client, trained: Trained
) -> None:
    exact = {user: recommend_movies(client, user) for user in range(7, 107)}
    near = {movie: similar_movies(client, movie) for movie in range(0, 300, 3) if similar_movies(client, movie)}
    assert call(client.rpc("mf_index", {"run": trained.model.run_id}), "index")["changed"]
    with database.connect() as connection:
        names = connection.execute(
            "select tablename from pg_indexes where starts_with(indexname, 'mf_hnsw_') order by 1"
        ).fetchall()
    assert names == [("mf_movie_history",), ("mf_movie_ranking",)]
    found = sum(len({*recommend_movies(client, user)} & {*answer}) for user, answer in exact.items())
    assert found >= 0.99 * 10 * len(exact)
    found = sum(
        len({row.movie_id for row in similar_movies(client, movie)} & {row.movie_id for row in answer})
        for movie, answer in near.items()
    )
    assert found >= 0.99 * 10 * len(near)
    call(client.rpc("mf_drop_indexes", {"run": trained.model.run_id}), "drop")


def test_an_export_over_the_direct_connection_stores_the_same_and_an_interrupted_one_nothing(
    fresh_stack, trained: Trained, directory: Path, tmp_path: Path
) -> None:
    stack = fresh_stack()
    stack.migrate(migration(SchemaConfig()))
    model, ranking = trained.model, trained.model.ranking
    earlier = TrainedModel(**(vars(model) | {"run_id": "stars", "ranking": None}))
    earlier.save(tmp_path / "stars")
    with api(stack) as client:
        direct(stack).export(tmp_path / "stars", ExportConfig(hnsw_index=True))
        by_stars = recommend_movies(client, 20)
        assert by_stars[0].because is None
        assert by_stars[0].score >= by_stars[1].score
        predicted = model.predict(pa.array([20] * 10), pa.array([row.movie_id for row in by_stars]))
        np.testing.assert_allclose([row.predicted_rating for row in by_stars], predicted, atol=1e-5)
        same = similar_movies(client, by_stars[0].movie_id)

        # Publishing stops before the last of the ranking's tables: readers see the earlier run.
        stop = Fault(status=403, body=b'{"code": "42501", "message": "stop"}', content_type="application/json")
        stack.gateway.faults.append(lambda request: stop if "/mf_load_user_ranking" in request.path else None)
        with pytest.raises(SupabaseError, match=r"cannot write user ranking 0 to 150 of run .*: stop"):
            rest(stack).export(directory, ExportConfig())
        stack.gateway.faults.clear()
        assert recommend_movies(client, 20) == by_stars
        with pytest.raises(SupabaseError, match=r"incomplete: 0 of 151 users of the ranking are there; run its export"):
            call(client.rpc("mf_publish", {"run": model.run_id}), "publish")

        assert direct(stack).export(directory, ExportConfig(hnsw_index=True)).previous == "stars"
        expected = [(movie, score, None) for movie, score, _ in trained.best(trained.own(20), 10, exclude=False)]
        check(recommend_movies(client, 20), expected, model.run_id)
        assert rollback(client) == ("stars", model.run_id)
        assert recommend_movies(client, 20) == by_stars
        assert similar_movies(client, by_stars[0].movie_id) == same
        assert rollback(client) == (model.run_id, "stars")
        check(recommend_movies(client, 20), expected, model.run_id)
        call(client.rpc("mf_prune", {"keep": 0}), "prune")
    with stack.connect() as connection:
        for table in ("mf_movie_ranking", "mf_movie_history", "mf_user_ranking"):
            assert connection.execute(f"select distinct run_id from public.{table}").fetchall() == [(model.run_id,)]
    assert ranking
