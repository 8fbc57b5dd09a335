"""Recommendations through the API, against numpy on planted vectors."""

import json
import random
from dataclasses import replace

import numpy as np
import psycopg
import pytest
from planted import Planted, planted
from targets import api, pairs, rest

from mf.errors import SupabaseError
from mf.fold_in import fold_in, prior
from mf.supabase.client import call, connect
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.recommend import (
    pages,
    published_run,
    recommend_from_ratings,
    recommend_movies,
    similar_movies,
)
from mf.supabase.schema import migration

UNKNOWN = {"bigint": -1, "text": 'nobody, (really) "né"', "uuid": "00000000-0000-0000-0000-000000000000"}


@pytest.fixture(scope="module", params=["bigint", "text", "uuid"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def database(fresh_stack, kind):
    """An empty database whose ids are of one kind and whose ratings table knows two of the first user's movies."""
    stack = fresh_stack()
    with stack.connect() as connection:
        connection.execute(f"create table public.votes (who {kind}, what {kind}, stars real)")
    config = SchemaConfig(
        user_id_type=kind,
        movie_id_type=kind,
        ratings_table="votes",
        user_column="who",
        movie_column="what",
        rating_column="stars",
    )
    stack.migrate(migration(config))
    return stack


@pytest.fixture(scope="module")
def client(database):
    with api(database) as client:
        yield client


@pytest.fixture(scope="module")
def model(database, client, kind, tmp_path_factory) -> Planted:
    model = planted(f"planted {kind}", ids=kind, seed=7)
    assert published_run(client) is None
    assert recommend_movies(client, model.user_ids[0]) == []
    assert similar_movies(client, model.movie_ids[0]) == []
    rest(database).export(model.write(tmp_path_factory.mktemp("model")), ExportConfig(rows_per_request=100))
    return model


def assert_same(answer, expected):
    found = pairs(answer)
    assert [movie for movie, _ in found] == [movie for movie, _ in expected]
    np.testing.assert_allclose([rating for _, rating in found], [rating for _, rating in expected], atol=1e-5, rtol=0)


def test_the_ten_best_movies_of_a_hundred_users_are_those_of_the_model(client, model):
    clipped = 0
    for user in range(100):
        expected = model.best(user, 10)
        assert_same(recommend_movies(client, model.user_ids[user]), expected)
        clipped += sum(rating == model.rating_max for _, rating in expected)
    assert clipped > 100


def test_the_worst_movies_are_clipped_to_the_lowest_rating_and_all_are_in_the_models_order(client, model):
    answer = recommend_movies(client, model.user_ids[0], 1000)
    assert_same(answer, model.best(0, 1000))
    assert len(answer) == 300
    assert answer[-1].predicted_rating == model.rating_min


def test_an_unknown_user_gets_the_movies_with_the_highest_bias(client, model, kind):
    assert_same(recommend_movies(client, UNKNOWN[kind]), model.best(None, 10))


def test_the_most_similar_movies_are_those_with_the_highest_cosine(client, model):
    q = model.q.astype(np.float64)
    unit = q / np.linalg.norm(q, axis=1, keepdims=True)
    for row in range(20):
        cosine = unit @ unit[row]
        order = [i for i in np.argsort(-cosine) if i != row][:10]
        assert_same(
            similar_movies(client, model.movie_ids[row]), [(model.movie_ids[i], float(cosine[i])) for i in order]
        )


def test_an_unknown_movie_has_no_similar_movies(client, model, kind):
    assert similar_movies(client, UNKNOWN[kind]) == []


def test_rated_movies_are_left_out_with_exclude_rated(client, model, database):
    rated = tuple(movie for movie, _ in model.best(0, 3)[::2])
    others = [movie for movie, _ in model.best(1, 5)]
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.executemany("insert into public.votes values (%s, %s)", [(model.user_ids[0], m) for m in (*rated, None)])
        cursor.executemany("insert into public.votes values (%s, %s)", [(model.user_ids[1], m) for m in others])
    user = model.user_ids[0]
    assert_same(recommend_movies(client, user, exclude_rated=True), model.best(0, 10, without=rated))
    assert_same(recommend_movies(client, user, exclude_rated=False), model.best(0, 10))


def test_the_views_hold_the_model_unchanged(client, model, kind):
    rows = client.table("movie_embeddings").select("*").execute().data
    assert list(rows[0]) == ["movie_id", "bias", "embedding", "run_id"]
    found = {row["movie_id"]: np.array([row["bias"], *json.loads(row["embedding"])], np.float32) for row in rows}
    assert set(found) == set(model.movie_ids)
    for movie, bias, vector in zip(model.movie_ids, model.movie_bias, model.q, strict=True):
        np.testing.assert_array_equal(found[movie], [bias, *vector])


def test_the_published_run_describes_the_model(client, model):
    run = published_run(client)
    assert run is not None
    assert (run["run_id"], run["factors"], run["n_users"], run["n_movies"]) == (model.run_id, 8, 120, 300)
    assert (run["mu"], run["rating_min"], run["rating_max"], run["status"]) == (3.5, 0.5, 5.0, "published")
    assert run["published_at"] >= run["created_at"]


@pytest.mark.parametrize("k", [None, -1, 1001])
def test_an_invalid_k_is_refused_in_one_sentence(client, model, k):
    said = rf"k is {'null' if k is None else k}, expected a number of movies from 0 to 1000"
    with pytest.raises(SupabaseError, match=said):
        recommend_movies(client, model.user_ids[0], k)
    with pytest.raises(SupabaseError, match=said):
        similar_movies(client, model.movie_ids[0], k)


def test_an_array_that_is_null_or_nested_and_a_run_without_a_name_are_refused_in_one_sentence(client, model):
    ids = model.movie_ids[:4]
    for arguments, said in (
        ({"without_ids": None}, "without_ids is null, expected an array of movie ids"),
        ({"without_ids": [ids[:2], ids[2:]]}, "without_ids is an array of arrays, expected an array of movie ids"),
        ({"only_ids": [ids[:2], ids[2:]]}, "only_ids is an array of arrays, expected an array of movie ids"),
        ({"of_run": ""}, 'there is no run "", or no longer'),
        ({"of_run": "x" * 5000}, f"there is no run {'x' * 100}, or no longer"),
    ):
        for function, first in (
            ("recommend_movies", {"for_user": model.user_ids[0]}),
            ("recommend_from_ratings", {"ratings": []}),
        ):
            with pytest.raises(SupabaseError) as error:
                call(client.rpc(function, first | arguments), "recommend")
            assert said in str(error.value)


def test_a_missing_id_is_refused_and_k_0_returns_nothing(client, model):
    with pytest.raises(SupabaseError, match="for_user is null"):
        recommend_movies(client, None)
    with pytest.raises(SupabaseError, match="for_movie is null"):
        similar_movies(client, None)
    assert recommend_movies(client, model.user_ids[0], 0) == []
    assert similar_movies(client, model.movie_ids[0], 0) == []


@pytest.fixture(scope="module")
def plain_database(fresh_stack):
    """A database of the default migration, without the API's limit of rows: only the functions' own limit applies."""
    stack = fresh_stack(max_rows=5000)
    stack.migrate(migration(SchemaConfig()))
    return stack


@pytest.fixture(scope="module")
def plain(plain_database):
    """A client of the service role, by its legacy key."""
    with connect(rest(plain_database, plain_database.service_role_key).credentials) as client:
        yield client


def test_ties_are_ordered_by_id_and_at_most_a_thousand_are_returned(plain_database, plain, tmp_path):
    ids = random.Random(1).sample(range(10_000), 1200)
    zeros, ones = np.zeros((1200, 2), np.float32), np.ones((1, 2), np.float32)
    model = Planted("ties", [1], np.zeros(1), ones, ids, np.repeat(np.float32([9, 0, -9]), 400), zeros)
    legacy_key = plain_database.service_role_key
    rest(plain_database, legacy_key).export(model.write(tmp_path), ExportConfig())
    expected = [(movie, 5.0) for movie in sorted(ids[:400])] + [(movie, 3.5) for movie in sorted(ids[400:800])]
    expected += [(movie, 0.5) for movie in sorted(ids[800:])]
    assert pairs(recommend_movies(plain, 1, 1000)) == expected[:1000]
    # Of zero vectors none is nearer than another.
    assert pairs(similar_movies(plain, ids[0], 1000)) == [(movie, 0.0) for movie in sorted(ids[1:])[:1000]]


def test_pages_stay_in_the_run_of_the_first_page_while_others_are_published_until_it_is_gone(
    plain_database, plain, tmp_path
):
    runs = [planted(f"page {i}", users=5, movies=40, seed=i) for i in range(3)]
    user = runs[0].user_ids[0]
    expected = [movie for movie, _ in runs[0].best(0, 20)]
    rest(plain_database).export(runs[0].write(tmp_path / "0"), ExportConfig())
    first = recommend_movies(plain, user, 10)
    rest(plain_database).export(runs[1].write(tmp_path / "1"), ExportConfig())
    assert recommend_movies(plain, user, 1)[0].run_id == "page 1"
    second = recommend_movies(plain, user, 10, skip=10, of_run=first[0].run_id)
    assert [row.movie_id for row in first + second] == expected
    assert {row.run_id for row in first + second} == {"page 0"}
    rest(plain_database).export(runs[2].write(tmp_path / "2"), ExportConfig())
    with pytest.raises(SupabaseError, match="there is no run page 0, or no longer: leave out of_run"):
        recommend_movies(plain, user, 10, skip=20, of_run=first[0].run_id)


def test_without_a_ratings_table_exclude_rated_says_what_to_do(plain):
    with pytest.raises(SupabaseError, match=r"`python -m mf schema --ratings_table NAME`"):
        recommend_movies(plain, 1, exclude_rated=True)


def test_an_id_of_another_type_is_refused_in_one_line(plain):
    with pytest.raises(SupabaseError, match=r"^cannot recommend movies for user x1: [^\n]*bigint[^\n]*$"):
        recommend_movies(plain, "x1")


def test_the_arguments_that_are_left_out_have_their_defaults(plain):
    assert len(call(plain.rpc("recommend_movies", {"for_user": 1}), "recommend")) == 10


def folded(model: Planted, ratings: dict, k: int) -> list:
    """The expected result of recommend_from_ratings, from the library's fold-in; the planted models' RMSE is 0.9."""
    row = {movie: i for i, movie in enumerate(model.movie_ids)}
    rows = [row[movie] for movie in ratings if movie in row]
    known = prior(model.p, model.user_bias, noise_variance=(4.5 / 5) ** 2)
    scores = [rating for movie, rating in ratings.items() if movie in row]
    p, bias = fold_in(model.q[rows], model.movie_bias[rows], scores, model.mu, known)
    new = replace(model, p=p[None], user_bias=np.array([bias]))
    return new.best(0, k, without=tuple(ratings))


@pytest.mark.parametrize("n", [0, 1, 7, 30, 250])
def test_recommendations_from_ratings_are_those_of_the_librarys_fold_in(client, model, n):
    rng = np.random.default_rng(n)
    movies = [model.movie_ids[i] for i in rng.permutation(300)[:n]]
    ratings = dict(zip(movies, rng.choice([0.5, 2.0, 3.5, 5.0], n).tolist(), strict=True))
    answer = recommend_from_ratings(client, ratings, 20)
    assert_same(answer, folded(model, ratings, 20))
    assert len(answer) == 20


def test_no_ratings_and_unknown_movies_give_what_an_unseen_user_gets(client, model, kind):
    assert_same(recommend_from_ratings(client, {}), model.best(None, 10))
    assert_same(recommend_from_ratings(client, {UNKNOWN[kind]: 1.0}), model.best(None, 10))


def test_the_last_rating_of_a_repeated_movie_counts(client, model):
    first, second = model.movie_ids[:2]
    given = [{"movie_id": m, "rating": r} for m, r in ((first, 0.5), (second, 4), (first, 5.0))]
    rows = call(client.rpc("recommend_from_ratings", {"ratings": given, "k": 5}), "recommend")
    assert [row["movie_id"] for row in rows] == [m for m, _ in folded(model, {first: 5.0, second: 4.0}, 5)]


BAD = [
    (None, "ratings is null, expected a JSON array"),
    ({"movie_id": 1}, "ratings is object, expected a JSON array"),
    ([3], 'entry 1 of ratings is 3, expected {"movie_id": '),
    ([{"rating": 3}], 'entry 1 of ratings is {"rating": 3}, expected'),
    ([{"movie_id": None, "rating": 3}], "entry 1 of ratings is"),
    ([{"movie_id": "M", "rating": "3"}], "entry 1 of ratings is"),
    ([{"movie_id": "M", "rating": None}], "entry 1 of ratings is"),
    ([{"movie_id": "M", "rating": 1}, {"movie_id": "M"}], "entry 2 of ratings is"),
    ([{"movie_id": "M", "rating": 1}] * 1001, "ratings has 1001 entries, expected 1000 at most"),
]


@pytest.mark.parametrize(("ratings", "said"), BAD)
def test_invalid_ratings_are_refused_in_one_sentence(client, model, ratings, said):
    passed = json.loads(json.dumps(ratings).replace('"M"', json.dumps(model.movie_ids[0])))
    with pytest.raises(SupabaseError) as error:
        call(client.rpc("recommend_from_ratings", {"ratings": passed}), "recommend")
    assert said in str(error.value)


def test_a_rating_out_of_range_and_an_id_of_another_type_are_refused(client, model, database, kind):
    huge = json.dumps([{"movie_id": model.movie_ids[0], "rating": 0}]).replace(": 0", ": 1e400")
    with database.connect() as connection, pytest.raises(psycopg.Error, match="entry 1 of ratings is"):
        connection.execute("select public.recommend_from_ratings(%s::jsonb)", [huge])
    if kind != "text":
        with pytest.raises(SupabaseError, match=f"entry 1 of ratings is .*expected .*{kind}"):
            recommend_from_ratings(client, {"no id": 3.0})


def test_a_run_of_an_earlier_release_says_what_to_do(client, model, database):
    with database.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute("delete from public.mf_priors")
        with pytest.raises(psycopg.Error, match=f"the run {model.run_id} was exported without .*: export it again"):
            connection.execute("select public.recommend_from_ratings('[]')")


@pytest.mark.parametrize("side", ["user", "movie"])
def test_a_reader_of_many_pages_reads_the_run_that_it_names_across_a_publish(fresh_stack, kind, side, tmp_path):
    stack = fresh_stack(max_rows=50)
    stack.migrate(migration(SchemaConfig(user_id_type=kind, movie_id_type=kind)))
    runs = [planted(f"r{i}", ids=kind, seed=i) for i in range(4)]
    with api(stack) as client:
        rest(stack).export(runs[0].write(tmp_path / "0"), ExportConfig())
        reading, late = (pages(client, side, "r0") for _ in range(2))
        rows = [*next(reading), *next(late)][:50]
        rest(stack).export(runs[1].write(tmp_path / "1"), ExportConfig())
        rows += [row for page in reading for row in page]
        ids, vectors = (runs[0].user_ids, runs[0].p) if side == "user" else (runs[0].movie_ids, runs[0].q)
        assert len(rows) == len(ids)
        found = {row[f"{side}_id"]: np.float32(json.loads(row["embedding"])) for row in rows}
        for id_, vector in zip(ids, vectors, strict=True):
            np.testing.assert_array_equal(found[id_], vector)
        rest(stack).export(runs[2].write(tmp_path / "2"), ExportConfig())
        with pytest.raises(SupabaseError, match="run r0 is not, or no longer, complete in the database: start again"):
            list(late)
