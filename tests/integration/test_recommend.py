"""What the API answers, against numpy on planted vectors."""

import json
import random

import numpy as np
import pytest
from planted import Planted, planted
from pydantic import SecretStr

from mf.errors import SupabaseError
from mf.supabase.client import call, connect
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.credentials import Credentials
from mf.supabase.export import export
from mf.supabase.recommend import published_run, recommend_movies, similar_movies
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
        connection.execute(f"create table public.votes (who {kind}, what {kind})")
    config = SchemaConfig(
        user_id_type=kind, movie_id_type=kind, ratings_table="votes", user_column="who", movie_column="what"
    )
    stack.migrate(migration(config))
    return stack


@pytest.fixture(scope="module")
def client(database):
    with connect(Credentials(database.url, SecretStr(database.secret_key))) as client:
        yield client


@pytest.fixture(scope="module")
def model(client, kind, tmp_path_factory) -> Planted:
    model = planted(f"planted {kind}", ids=kind, seed=7)
    assert published_run(client) is None
    assert recommend_movies(client, model.user_ids[0]) == []
    assert similar_movies(client, model.movie_ids[0]) == []
    export(client, model.write(tmp_path_factory.mktemp("model")), ExportConfig(rows_per_request=100))
    return model


def assert_same(answer, expected):
    assert [movie for movie, _ in answer] == [movie for movie, _ in expected]
    np.testing.assert_allclose([rating for _, rating in answer], [rating for _, rating in expected], atol=1e-5, rtol=0)


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
    assert answer[-1][1] == model.rating_min


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


def test_an_unknown_movie_is_like_no_other(client, model, kind):
    assert similar_movies(client, UNKNOWN[kind]) == []


def test_rated_movies_are_left_out_when_asked(client, model, database):
    rated = tuple(movie for movie, _ in model.best(0, 3)[::2])
    others = [movie for movie, _ in model.best(1, 5)]
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.executemany("insert into public.votes values (%s, %s)", [(model.user_ids[0], m) for m in (*rated, None)])
        cursor.executemany("insert into public.votes values (%s, %s)", [(model.user_ids[1], m) for m in others])
    user = model.user_ids[0]
    assert_same(recommend_movies(client, user, exclude_rated=True), model.best(0, 10, without=rated))
    assert_same(recommend_movies(client, user, exclude_rated=False), model.best(0, 10))


def test_the_views_hold_the_model_as_it_is(client, model, kind):
    rows = client.table("movie_embeddings").select("*").execute().data
    assert list(rows[0]) == ["movie_id", "bias", "embedding", "run_id"]
    found = {row["movie_id"]: np.array([row["bias"], *json.loads(row["embedding"])], np.float32) for row in rows}
    assert set(found) == set(model.movie_ids)
    for movie, bias, vector in zip(model.movie_ids, model.movie_bias, model.q, strict=True):
        np.testing.assert_array_equal(found[movie], [bias, *vector])


def test_the_published_run_says_what_the_model_is(client, model):
    run = published_run(client)
    assert run is not None
    assert (run["run_id"], run["factors"], run["n_users"], run["n_movies"]) == (model.run_id, 8, 120, 300)
    assert (run["mu"], run["rating_min"], run["rating_max"], run["status"]) == (3.5, 0.5, 5.0, "published")
    assert run["published_at"] >= run["created_at"]


@pytest.mark.parametrize("k", [None, -1])
def test_a_k_that_cannot_be_is_refused_in_one_sentence(client, model, k):
    said = rf"k is {'null' if k is None else k}, expected a number of movies from 0 to 1000"
    with pytest.raises(SupabaseError, match=said):
        recommend_movies(client, model.user_ids[0], k)
    with pytest.raises(SupabaseError, match=said):
        similar_movies(client, model.movie_ids[0], k)


def test_a_missing_id_is_refused_and_k_0_gives_nothing(client, model):
    with pytest.raises(SupabaseError, match="for_user is null"):
        recommend_movies(client, None)
    with pytest.raises(SupabaseError, match="for_movie is null"):
        similar_movies(client, None)
    assert recommend_movies(client, model.user_ids[0], 0) == []
    assert similar_movies(client, model.movie_ids[0], 0) == []


@pytest.fixture(scope="module")
def plain(fresh_stack):
    """A database of the default migration, and no limit on the rows of an answer but the functions' own."""
    stack = fresh_stack(max_rows=5000)
    stack.migrate(migration(SchemaConfig()))
    with connect(Credentials(stack.url, SecretStr(stack.service_role_key))) as client:
        yield client


def test_equal_scores_come_in_the_order_of_the_ids_and_a_thousand_at_most(plain, tmp_path):
    ids = random.Random(1).sample(range(10_000), 1200)
    zeros, ones = np.zeros((1200, 2), np.float32), np.ones((1, 2), np.float32)
    model = Planted("ties", [1], np.zeros(1), ones, ids, np.repeat(np.float32([9, 0, -9]), 400), zeros)
    export(plain, model.write(tmp_path), ExportConfig())
    expected = [(movie, 5.0) for movie in sorted(ids[:400])] + [(movie, 3.5) for movie in sorted(ids[400:800])]
    expected += [(movie, 0.5) for movie in sorted(ids[800:])]
    assert recommend_movies(plain, 1, 2000) == expected[:1000]
    # Of zero vectors none is nearer than another.
    assert similar_movies(plain, ids[0], 2000) == [(movie, 0.0) for movie in sorted(ids[1:])[:1000]]


def test_without_a_ratings_table_exclude_rated_says_what_to_do(plain):
    with pytest.raises(SupabaseError, match=r"`python -m mf schema --ratings_table NAME`"):
        recommend_movies(plain, 1, exclude_rated=True)


def test_an_id_of_another_type_is_refused_in_one_line(plain):
    with pytest.raises(SupabaseError, match=r"^cannot recommend movies for user x1: [^\n]*bigint[^\n]*$"):
        recommend_movies(plain, "x1")


def test_the_arguments_that_are_left_out_have_their_defaults(plain):
    assert len(call(plain.rpc("recommend_movies", {"for_user": 1}), "recommend")) == 10
