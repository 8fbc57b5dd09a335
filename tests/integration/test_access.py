"""Permissions of every table, view and function, with every key, through the API."""

import re
import threading
import uuid

import httpx
import numpy as np
import pytest
from planted import Planted, planted
from targets import api, rest

from mf.fold_in import fold_in, prior
from mf.supabase.client import call
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.schema import migration

RELATIONS = """
select c.relname from pg_class c
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v') and c.relname <> 'votes' order by 1
"""
FUNCTIONS = """
select p.proname, p.proargnames[1:p.pronargs], p.proargtypes::regtype[]::text[]
from pg_proc p where p.pronamespace = 'public'::regnamespace and p.prorettype <> 'trigger'::regtype order by 1
"""
NOBODY = "6f0a4c1e-8a53-4f5e-9a51-0d5a5e0a3c11"
ARGUMENTS = {"uuid": NOBODY, "integer": 1, "boolean": False, "text": "no run", "jsonb": [], "vector": "[1]"}
ARGUMENTS |= {"uuid[]": [], "real[]": [], "text[]": [], "double precision": 0, "double precision[]": []}
ARGUMENTS |= {"integer[]": [], "bigint[]": []}
SIGNED_IN = {"recommend_for_me", "recommend_from_ratings"}
PUBLIC = {"GET movie_embeddings", "GET mf_movie_embeddings", "similar_movies", "mf_nearest", "mf_check_list"}
PUBLIC |= {"GET mf_movie_counts", "popular_movies"}
HTTP = httpx.Client(trust_env=False, verify=False, timeout=300)


class Caller:
    """A caller of the API: a key and, if a user is signed in, a token."""

    def __init__(self, stack, key, user=None):
        self.stack, self.key = stack, getattr(stack, key)
        self.token = stack.user_token(user) if user else self.key

    def ask(self, method, path, body=None):
        headers = {"apikey": self.key, "Authorization": f"Bearer {self.token}"}
        return HTTP.request(method, f"{self.stack.url}/rest/v1{path}", headers=headers, json=body)

    def rpc(self, function, **arguments):
        answer = self.ask("POST", f"/rpc/{function}", arguments)
        assert answer.status_code == 200, answer.text
        return [tuple(row.values()) for row in answer.json()]


@pytest.fixture(scope="module", params=["legacy grants", "no grants", "legacy grants, public movies"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model() -> Planted:
    return planted("r2", users=20, movies=60, ids="uuid", seed=5)


@pytest.fixture(scope="module")
def database(fresh_stack, kind, model, tmp_path_factory):
    """A database of UUIDs with an earlier and a published run, and a table of ratings that the API's users may not
    read."""
    database = fresh_stack(legacy_grants="legacy" in kind)
    with database.connect() as connection:
        connection.execute("create table public.votes (user_id uuid, movie_id uuid, rating real)")
        connection.execute("alter table public.votes enable row level security")
        connection.execute("revoke all on public.votes from anon, authenticated")
        connection.execute("insert into public.votes values (%s, %s, 4)", [model.user_ids[0], model.best(0, 1)[0][0]])
    read = "movies" if "public movies" in kind else "none"
    config = SchemaConfig(user_id_type="uuid", movie_id_type="uuid", ratings_table="votes", public_read=read)
    database.migrate(migration(config))
    for each in (planted("r1", users=20, movies=60, ids="uuid", seed=4), model):
        rest(database).export(each.write(tmp_path_factory.mktemp("model")), ExportConfig())
    return database


def requests(stack):
    """One call of every relation and function that the catalog has, as (name, method, path, JSON body)."""
    with stack.connect() as connection:
        relations, functions = connection.execute(RELATIONS).fetchall(), connection.execute(FUNCTIONS).fetchall()
    for (name,) in relations:
        column, value = ("user_id", NOBODY) if name == "mf_forgotten" else ("run_id", "x")
        yield name, "GET", f"/{name}?limit=1", None
        yield name, "POST", f"/{name}", [{column: value}]
        yield name, "PATCH", f"/{name}?{column}=eq.{value}", {column: value}
        yield name, "DELETE", f"/{name}?{column}=eq.{value}", None
    for name, names, types in functions:
        arguments = {n: ARGUMENTS[t] for n, t in zip(names or [], types, strict=True)}
        if name == "mf_nearest":
            arguments["vectors"] = "embedding"
        elif name.startswith("recommend"):
            arguments["of_run"] = None
        yield name, "POST", f"/rpc/{name}", arguments


@pytest.mark.parametrize("key", ["anon_key", "publishable_key"])
@pytest.mark.parametrize("user", [None, NOBODY])
def test_everything_not_granted_is_refused_by_name(database, kind, key, user):
    caller, reached = Caller(database, key, user), set()
    for name, method, path, body in requests(database):
        answer = caller.ask(method, path, body)
        if answer.status_code < 300:
            reached.add(name if "/rpc/" in path else f"{method} {name}")
            continue
        assert answer.json()["code"] == "42501", f"{method} {name}: {answer.status_code} {answer.text}"
        # An open function may still fail on the tables behind it.
        assert re.fullmatch(rf"permission denied for (table|view|function) {name}", answer.json()["message"])
    assert reached == (SIGNED_IN if user else set()) | (PUBLIC if "public movies" in kind else set())


@pytest.mark.parametrize("key", ["service_role_key", "secret_key"])
def test_the_service_role_reaches_everything_but_what_is_for_a_signed_in_user(database, key):
    refused = set()
    for name, method, path, body in requests(database):
        writes_a_view = name in ("movie_embeddings", "user_embeddings") and method != "GET"
        if not writes_a_view and name not in ("mf_rollback", "mf_prune"):  # these would do what they are asked
            answer = Caller(database, key).ask(method, path, body)
            refused |= {name} if "42501" in answer.text else set()
    assert refused == {"recommend_for_me"}


def assert_same(answer, expected):
    assert [row[0] for row in answer] == [movie for movie, _ in expected]
    np.testing.assert_allclose([row[2] for row in answer], [rating for _, rating in expected], atol=1e-5, rtol=0)


@pytest.mark.parametrize("key", ["anon_key", "publishable_key"])
def test_a_signed_in_user_gets_its_own_recommendations_and_nobody_elses(database, model, key):
    for row in (0, 7):
        own = Caller(database, key, model.user_ids[row])
        assert_same(own.rpc("recommend_for_me", k=5, exclude_rated=False), model.best(row, 5))
        asked = own.ask("POST", "/rpc/recommend_for_me", {"for_user": model.user_ids[1]})
        assert asked.json()["code"] == "PGRST202"
    assert_same(Caller(database, key, NOBODY).rpc("recommend_for_me"), model.best(None, 10))
    without = tuple(m for m, _ in model.best(0, 1))
    own = Caller(database, key, model.user_ids[0])
    assert_same(own.rpc("recommend_for_me", k=5), model.best(0, 5, without=without))


def test_a_token_without_a_user_is_told_that_nobody_is_signed_in(database):
    with database.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute("set local role authenticated")
        with pytest.raises(Exception, match="nobody is signed in: send the access token of a user"):
            connection.execute("select public.recommend_for_me()")


def test_a_signed_in_user_gets_recommendations_from_the_ratings_that_it_passes(database, model):
    ratings = [{"movie_id": m, "rating": r} for m, r in zip(model.movie_ids[:3], (5, 1, 4), strict=True)]
    p, bias = fold_in(model.q[:3], model.movie_bias[:3], [5, 1, 4], model.mu, prior(model.p, model.user_bias, 0.81))
    scores = np.clip(model.mu + bias + model.movie_bias + model.q @ p, model.rating_min, model.rating_max)
    answer = Caller(database, "publishable_key", NOBODY).rpc("recommend_from_ratings", ratings=ratings, k=100)
    assert {m for m, *_ in answer} == set(model.movie_ids[3:])
    np.testing.assert_allclose([row[2] for row in answer], sorted(scores[3:], reverse=True), atol=1e-5)


@pytest.mark.parametrize("user", [None, NOBODY])
def test_public_movies_are_those_of_the_published_run_alone(database, kind, model, user):
    if "public movies" not in kind:
        return  # what is refused then is tested above
    caller = Caller(database, "publishable_key", user)
    rows = caller.ask("GET", "/movie_embeddings").json()
    assert {(row["run_id"], row["movie_id"]) for row in rows} == {("r2", movie) for movie in model.movie_ids}
    assert caller.ask("GET", "/mf_runs?select=run_id,status").json() == [{"run_id": "r2", "status": "published"}]
    tables = caller.ask("GET", "/mf_movie_embeddings?select=run_id").json()
    assert {row["run_id"] for row in tables} == {"r2"}
    assert caller.ask("GET", "/mf_movie_history?select=liking").json()["code"] == "42501"
    found = caller.rpc("similar_movies", for_movie=model.movie_ids[0], k=4)
    assert found == Caller(database, "secret_key").rpc("similar_movies", for_movie=model.movie_ids[0], k=4)
    assert len(found) == 4


def test_a_migration_without_public_read_closes_what_one_with_it_opened(fresh_stack):
    stack = fresh_stack()
    for read, status in (("movies", 200), ("none", 401)):
        stack.migrate(migration(SchemaConfig(public_read=read)))
        for path in (
            "/movie_embeddings", "/mf_runs?select=run_id,status", "/mf_movie_embeddings?select=movie_id",
            "/mf_movie_history?select=history", "/mf_movie_counts?select=n",
        ):  # fmt: skip
            assert Caller(stack, "publishable_key").ask("GET", path).status_code == status


def test_signed_in_users_see_one_whole_run_in_every_call_while_ten_are_published(fresh_stack, tmp_path):
    stack = fresh_stack(legacy_grants=False)
    stack.migrate(migration(SchemaConfig(user_id_type="uuid")))
    user, ones = str(uuid.uuid4()), np.ones((40, 1), np.float32)

    def constant(i):
        """Run i predicts 2 i for every movie to its known user, and another number to unknown users."""
        bias = np.full(40, i, np.float32)
        users = [user, *(str(uuid.uuid4()) for _ in range(39))]
        return Planted(f"r{i}", users, bias, i * ones, list(range(40)), 0 * bias, ones, 0, -1000, 1000)

    def from_ratings(i):
        model = constant(i)
        known = prior(model.p, model.user_bias, (2000 / 5) ** 2)
        p, bias = fold_in([[1]], [0], [5], 0, known)
        return float(p[0] + bias)

    expected = {
        "recommend_for_me": [2 * i for i in range(1, 12)],
        "recommend_from_ratings": [from_ratings(i) for i in range(1, 12)],
    }
    arguments = {"recommend_for_me": {}, "recommend_from_ratings": {"ratings": [{"movie_id": 0, "rating": 5}]}}
    mixed, seen, stop = [], set(), threading.Event()

    def read():
        caller = Caller(stack, "publishable_key", user)
        while not stop.is_set():
            for name, runs in expected.items():
                ratings = {row[2] for row in caller.rpc(name, k=39, **arguments[name])}
                near = [i for i, rating in enumerate(runs) if np.isclose(rating, min(ratings), rtol=1e-5, atol=0)]
                seen.update((name, i) for i in near)
                if len(ratings) != 1 or len(near) != 1:
                    mixed.append((name, ratings))

    with api(stack) as client:
        rest(stack).export(constant(1).write(tmp_path / "1"), ExportConfig())
        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        try:
            for i in range(2, 12):
                rest(stack).export(constant(i).write(tmp_path / str(i)), ExportConfig())
                call(client.rpc("mf_index", {"run": f"r{i}"}), "index")
        finally:
            stop.set()
            for reader in readers:
                reader.join(30)
    assert mixed == []
    assert {name for name, _ in seen} == set(expected)
    assert len(seen) > 6
