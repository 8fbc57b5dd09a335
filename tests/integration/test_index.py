"""Indexed runs: recall, fallback to the exact search, building and dropping."""

import re
import threading

import numpy as np
import psycopg
import pytest
from faults import Fault
from planted import Planted, planted
from targets import api, direct, pairs, rest

from mf.errors import SupabaseError
from mf.supabase.client import call
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.recommend import recommend_from_ratings, recommend_movies, similar_movies
from mf.supabase.schema import migration

MOVIES, USERS = 1200, 100
INDEXES = (
    "select indexrelname, idx_scan from pg_stat_user_indexes where starts_with(indexrelname, 'mf_hnsw_') order by 1"
)


@pytest.fixture(scope="module")
def database(fresh_stack):
    stack = fresh_stack()
    with stack.connect() as connection:
        connection.execute("create table public.votes (user_id bigint, movie_id bigint, rating real)")
    stack.migrate(migration(SchemaConfig(ratings_table="votes")))
    return stack


@pytest.fixture(scope="module")
def client(database):
    with api(database) as client:
        yield client


@pytest.fixture(scope="module")
def model(database, client, tmp_path_factory) -> Planted:
    """Published, with an index; a hundred of its movies have zero vectors."""
    model = planted("indexed", users=USERS, movies=MOVIES, factors=16, seed=3)
    model.q[:100] = 0
    rest(database).export(model.write(tmp_path_factory.mktemp("model")), ExportConfig())
    built = call(client.rpc("mf_index", {"run": "indexed"}), "index")
    assert built["changed"]
    assert built["seconds"] > 0
    return model


def sql(database, text, *values):
    with database.connect() as connection:
        found = connection.execute(text, values)
        return found.fetchall() if found.description else []


def movies(answer):
    return [row[0] for row in answer]


def test_at_least_99_of_100_are_found_by_the_index_and_come_in_the_exact_order(database, client, model):
    with database.connect() as connection:
        for user in model.user_ids:
            connection.execute("select public.recommend_movies(%s)", [user])
        for movie in model.movie_ids[100:200]:
            connection.execute("select public.similar_movies(%s)", [movie])
        connection.execute("select pg_stat_force_next_flush()")
    assert [scans for _, scans in sql(database, INDEXES)] == [100, 100]
    unit = model.q[100:] / np.linalg.norm(model.q[100:], axis=1, keepdims=True)
    found = {"recommended": [], "similar": []}
    for row in range(USERS):
        answer = recommend_movies(client, model.user_ids[row])
        assert answer == sorted(answer, key=lambda row: -row.score)
        found["recommended"].append(len({*movies(answer)} & {*movies(model.best(row, 10))}))
        near = np.argsort(-(unit @ unit[row]))[1:11] + 100
        answer = similar_movies(client, model.movie_ids[row + 100])
        assert answer == sorted(answer, key=lambda row: -row.similarity)
        found["similar"].append(len({*movies(answer)} & {model.movie_ids[i] for i in near}))
    assert {side: np.mean(n) / 10 >= 0.99 for side, n in found.items()} == {"recommended": True, "similar": True}


@pytest.mark.parametrize("left", [0, 7, 15, 1000])
def test_lists_are_complete_however_many_movies_a_user_has_rated(database, client, model, left):
    user = 20
    order = movies(model.best(user, MOVIES))
    sql(database, "truncate public.votes")
    sql(database, "insert into public.votes select %s, unnest(%s)", model.user_ids[user], order[: MOVIES - left])
    answer = recommend_movies(client, model.user_ids[user], 10, exclude_rated=True)
    assert movies(answer) == order[MOVIES - left :][:10]


@pytest.mark.parametrize("k", [400, 600, 1000])
def test_long_lists_are_exact_or_nearly(client, model, k):
    answer = movies(recommend_movies(client, model.user_ids[1], k))
    assert len({*answer}) == k
    assert len({*answer} & {*movies(model.best(1, k))}) >= 0.99 * k


def test_recommendations_from_ratings_come_from_the_index_too(database, client, model):
    ratings = dict.fromkeys(model.movie_ids[100:110], 5.0)
    by_index = recommend_from_ratings(client, ratings)
    with database.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute("select public.mf_drop_indexes('indexed')")
        exact = connection.execute(
            "select * from public.recommend_from_ratings((select jsonb_agg(jsonb_build_object('movie_id', m, "
            "'rating', 5)) from unnest(%s::bigint[]) m))", [list(ratings)]
        ).fetchall()  # fmt: skip
    assert len({*movies(by_index)} & {*movies(exact)}) >= 9
    assert len(sql(database, INDEXES)) == 2


def test_a_zero_vector_which_the_index_lacks_is_equally_similar_to_all_movies(client, model):
    assert pairs(similar_movies(client, model.movie_ids[0], 5)) == [
        (m, 0.0) for m in sorted([*model.movie_ids[1:]])[:5]
    ]


def test_an_index_is_built_in_parallel_only_by_a_pgvector_that_does_so_safely(database, client, model):
    """pgvector before 0.8.2 has an advisory on parallel builds (CVE-2026-3172)."""
    told = []
    with database.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute("alter table public.mf_movie_ranking set (parallel_workers = 1)")
        connection.execute("select public.mf_drop_indexes('indexed')")
        connection.add_notice_handler(lambda notice: told.append(notice.message_primary))
        connection.execute("set local client_min_messages = debug1")
        connection.execute("select public.mf_index('indexed')")
        version = connection.execute("select extversion from pg_extension where extname = 'vector'").fetchone()[0]
    safe = tuple(map(int, version.split("."))) >= (0, 8, 2)
    assert any("parallel workers" in message for message in told) == safe


def test_an_index_is_built_by_one_process_where_there_is_too_little_shared_memory(database, client, model):
    """As in a container, whose /dev/shm has 64 MB."""
    with database.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute("alter table public.mf_movie_ranking set (parallel_workers = 1)")
        connection.execute("select public.mf_drop_indexes('indexed')")
        connection.execute("set local maintenance_work_mem = '1TB'")
        ((built,),) = connection.execute("select public.mf_index('indexed')").fetchall()
    assert built["changed"]


def test_indexing_again_changes_nothing(client, model):
    again = call(client.rpc("mf_index", {"run": "indexed"}), "index")
    assert (again["run_id"], again["changed"]) == ("indexed", False)


def test_a_missing_or_incomplete_run_is_not_indexed(database, client, model):
    with pytest.raises(SupabaseError, match="there is no run nope: mf_list_runs"):
        call(client.rpc("mf_index", {"run": "nope"}), "index")
    run = {"run_id": "half", "content_hash": "h", "factors": 2, "mu": 0, "rating_min": 0, "rating_max": 1}
    call(client.rpc("mf_register", {"run": run | {"n_users": 1, "n_movies": 3}}), "register")
    with pytest.raises(SupabaseError, match="the run half is incomplete: 0 of 3 movies are there; load it, then index"):
        call(client.rpc("mf_index", {"run": "half"}), "index")


def test_more_factors_than_an_index_takes_are_refused(database, client, model):
    run = {"run_id": "wide", "content_hash": "h", "factors": 2000, "mu": 0, "rating_min": 0, "rating_max": 1}
    call(client.rpc("mf_register", {"run": run | {"n_users": 1, "n_movies": 1}}), "register")
    sql(database, "insert into public.mf_movie_embeddings values ('wide', 1, 0, array_fill(1, array[2000])::vector)")
    with pytest.raises(SupabaseError, match="has 2000 factors, and an index takes at most 1999"):
        call(client.rpc("mf_index", {"run": "wide"}), "index")


def test_a_killed_build_leaves_nothing_behind(database, client, model):
    sql(database, "select public.mf_drop_indexes('indexed')")
    with database.connect() as connection:
        connection.execute("begin")
        connection.execute("select public.mf_index('indexed')")
        sql(database, "select pg_terminate_backend(%s)", connection.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("commit")
    assert sql(database, INDEXES) == []
    assert movies(recommend_movies(client, model.user_ids[0])) == movies(model.best(0, 10))
    assert call(client.rpc("mf_index", {"run": "indexed"}), "index")["changed"]
    assert len(sql(database, INDEXES)) == 2


@pytest.mark.parametrize("fault", ["waits for another build", "gateway timeout"])
def test_a_build_that_outlasts_the_apis_time_limits_says_what_to_do(
    database, client, model, monkeypatch, tmp_path, fault
):
    monkeypatch.setattr("mf.supabase.client.TRIES", 1)
    with database.connect() as builder, builder.transaction(force_rollback=True):
        if fault == "gateway timeout":
            database.gateway.faults.append(lambda request: Fault(status=504) if "/mf_index" in request.path else None)
        else:
            sql(database, "alter function public.mf_index set lock_timeout = '100ms'")
            builder.execute("lock table public.mf_movie_ranking in share update exclusive mode")
        try:
            with pytest.raises(
                SupabaseError, match=r"may still be building it: export again .* or set SUPABASE_DB_URL"
            ):
                rest(database).export(model.write(tmp_path), ExportConfig(hnsw_index=True))
        finally:
            database.gateway.faults.clear()
            sql(database, "alter function public.mf_index set lock_timeout = '45s'")


def test_the_direct_connection_shows_the_progress_of_a_build(database, model, monkeypatch, capsys):
    monkeypatch.setattr("mf.supabase.index_progress.POLL_S", 0.005)
    monkeypatch.setattr("mf.progress.LOG_EVERY_S", 0.0)
    sql(database, "select public.mf_drop_indexes('indexed')")
    with direct(database).session() as session:
        assert session.call("mf_index", "index", run="indexed")["changed"]
        session.commit("index")
    assert re.search(r"^index mf_movie_\w+: \d+ of \d+ pages, ", capsys.readouterr().err, re.M)
    assert len(sql(database, INDEXES)) == 2


def test_readers_are_not_blocked_while_an_index_is_built(database, client, model):
    sql(database, "select public.mf_drop_indexes('indexed')")
    with database.connect() as builder, builder.transaction():
        builder.execute("select public.mf_index('indexed')")
        # Built and not committed: whatever the build locks is still locked.
        assert movies(recommend_movies(client, model.user_ids[0])) == movies(model.best(0, 10))
        assert len(similar_movies(client, model.movie_ids[0])) == 10


def test_an_index_is_dropped_with_its_run_without_blocking_readers(database, client, model, tmp_path):
    others = [planted(f"r{i}", users=5, movies=5, seed=i) for i in range(2)]
    with database.connect() as reader:
        reader.execute("begin")
        reader.execute("select count(*) from public.mf_movie_ranking")  # and holds the table's lock
        for each in others:
            rest(database).export(each.write(tmp_path / each.run_id), ExportConfig())
        assert sql(database, "select count(*) from public.mf_movie_embeddings where run_id = 'indexed'") == [(0,)]
        assert len(sql(database, INDEXES)) == 2
        prune = threading.Thread(target=call, args=(client.rpc("mf_prune", {"keep": 1}), "prune"))
        prune.start()
        with database.connect() as asking:
            asking.execute("set lock_timeout = '5s'")  # the removal gives up its own wait after 0.2 s
            while prune.is_alive():
                asking.execute("select public.recommend_movies(1)")
        reader.execute("commit")
    assert call(client.rpc("mf_prune", {"keep": 1}), "prune") == {"removed": []}
    assert sql(database, INDEXES) == []
