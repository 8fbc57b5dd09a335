"""Exports through the API, with injected faults."""

import os
import random
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from faults import Fault
from planted import Planted, planted
from targets import api, pairs, rest

from mf.errors import DataError, SupabaseError
from mf.supabase.client import call
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.recommend import published_run, recommend_movies
from mf.supabase.runs import rollback
from mf.supabase.schema import migration
from mf.supabase.target import ExportResult

SMALL_BATCHES = ExportConfig(rows_per_request=20)
COUNTS = """
select r.run_id, (select count(*) from public.mf_user_embeddings u where u.run_id = r.run_id),
  (select count(*) from public.mf_movie_embeddings m where m.run_id = r.run_id)
from public.mf_runs r order by 1
"""


def sql(database, text, *values):
    with database.connect() as connection:
        return connection.execute(text, values).fetchall()


def writes(database):
    return [r for r in database.gateway.requests if r.method == "POST" and "/mf_schema" not in r.path]


def statuses(client):
    return {r["run_id"]: r["status"] for r in call(client.rpc("mf_list_runs"), "list")}


def assert_published(client, model):
    assert published_run(client)["run_id"] == model.run_id
    answer = recommend_movies(client, model.user_ids[3], 20)
    assert [movie for movie, _ in pairs(answer)] == [movie for movie, _ in model.best(3, 20)]
    for view, n in (("user_embeddings", len(model.user_ids)), ("movie_embeddings", len(model.movie_ids))):
        rows = client.table(view).select("run_id").execute().data
        assert [r["run_id"] for r in rows] == [model.run_id] * n


def test_an_export_publishes_the_whole_model_and_a_second_one_changes_nothing(database, client, tmp_path):
    model = planted("r1")
    directory = model.write(tmp_path)
    assert rest(database).export(directory, SMALL_BATCHES) == ExportResult("r1", 120, 300, changed=True, previous=None)
    assert_published(client, model)
    # xmin is the transaction that wrote a row last.
    state = "select r::text, (select sum(u.xmin::text::bigint) from public.mf_user_embeddings u) from public.mf_runs r"
    before = sql(database, state)
    assert rest(database).export(directory, SMALL_BATCHES) == ExportResult("r1", 120, 300, changed=False, previous="r1")
    assert sql(database, state) == before


def test_vectors_are_stored_as_exactly_the_same_float32(database, client, tmp_path):
    odd = np.array([[1e-42, 3.4e38], [-0.1, 16777217], [1 / 3, -1e-7]], np.float32)
    model = Planted("odd", [1, 2, 3], odd[:, 0], odd, [1, 2, 3], np.zeros(3, np.float32), odd)
    rest(database).export(model.write(tmp_path), ExportConfig())
    stored = sql(database, "select user_id, bias, embedding::real[] from public.mf_user_embeddings order by user_id")
    assert [(np.float32(bias), *np.float32(vector)) for _, bias, vector in stored] == [(row[0], *row) for row in odd]


def test_a_killed_export_changes_nothing_for_readers_and_a_rerun_finishes_it(database, client, tmp_path):
    old, new = planted("old", seed=1), planted("new", seed=2)
    rest(database).export(old.write(tmp_path / "old"), ExportConfig())
    program = (
        "import sys; from pathlib import Path; from mf.supabase.config import ExportConfig; "
        "from mf.supabase.find import find_target\n"
        "find_target().export(Path(sys.argv[1]), ExportConfig(rows_per_request=10))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(new.write(tmp_path / "new"))],
        env=os.environ | {"SUPABASE_URL": database.url, "SUPABASE_KEY": database.secret_key},
    )

    def kill_in_the_users(request):
        if "/mf_load_users" in request.path and sql(database, COUNTS)[0][1] >= 40:
            process.send_signal(signal.SIGKILL)

    database.gateway.faults.append(kill_in_the_users)
    assert process.wait(900) == -signal.SIGKILL
    database.gateway.faults.clear()
    run_id, users, movies = sql(database, COUNTS)[0]
    assert (run_id, movies) == ("new", 300)
    assert 40 <= users < 120
    assert statuses(client) == {"old": "published", "new": "loading"}
    assert_published(client, old)
    with pytest.raises(SupabaseError, match=r"the run new is incomplete: \d+ of 120 users"):
        call(client.rpc("mf_publish", {"run": "new"}), "publish run new")
    assert rest(database).export(tmp_path / "new", SMALL_BATCHES) == ExportResult(
        "new", 120, 300, changed=True, previous="old"
    )
    assert_published(client, new)


def test_an_export_is_complete_although_a_fifth_of_the_requests_fail(database, client, tmp_path):
    rng = random.Random(20)
    faults = [Fault(status=503), Fault(drop="before"), Fault(drop="after")]
    database.gateway.faults.append(lambda request: rng.choice(faults) if rng.random() < 0.2 else None)
    for seed in range(3):
        model = planted(f"r{seed}", seed=seed)
        done = rest(database).export(model.write(tmp_path / str(seed)), SMALL_BATCHES)
        assert done == ExportResult(f"r{seed}", 120, 300, changed=True, previous=f"r{seed - 1}" if seed else None)
    database.gateway.faults.clear()
    outcomes = [request.status for request in database.gateway.requests]
    assert outcomes.count(503) > 3
    assert outcomes.count(None) > 6
    assert_published(client, model)
    assert sql(database, COUNTS) == [("r1", 120, 300), ("r2", 120, 300)]


def test_a_publish_whose_response_was_lost_is_still_reported_as_a_change(database, client, tmp_path):
    lost = iter([Fault(drop="after")])
    database.gateway.faults.append(lambda request: next(lost, None) if request.path.endswith("/mf_publish") else None)
    assert rest(database).export(planted("r1").write(tmp_path), ExportConfig()).changed
    assert [r.status for r in database.gateway.requests if r.path.endswith("/mf_publish")] == [None, 200]


def test_a_retried_publish_does_not_undo_another_export_in_between(database, client, tmp_path):
    other = planted("other", seed=2)
    lost = []

    def publish_another_and_lose_the_answer(request):
        if "/rpc/mf_publish" in request.path and not lost:
            lost.append(request)
            return Fault(drop="after")
        if "/rpc/mf_publish" in request.path and len(lost) == 1:
            lost.append(request)  # the other export's own, which goes through
            rest(database).export(other.write(tmp_path / "other"), SMALL_BATCHES)
        return None

    database.gateway.faults.append(publish_another_and_lose_the_answer)
    first = rest(database).export(planted("first", seed=1).write(tmp_path / "first"), SMALL_BATCHES)
    assert (first.changed, first.superseded_by) == (True, "other")
    assert first.summary() == "published run first; another export has published run other since"
    assert_published(client, other)


def test_a_wrong_key_is_refused_in_one_line_without_the_key(database, tmp_path):
    wrong = "sb_secret_wrongwrongwrong"
    with pytest.raises(SupabaseError, match="check SUPABASE_KEY") as error:
        rest(database, wrong).export(planted("r1").write(tmp_path), ExportConfig())
    assert wrong not in str(error.value)
    assert "\n" not in str(error.value)
    assert sql(database, COUNTS) == []


@pytest.mark.parametrize("key", ["publishable_key", "anon_key"])
def test_a_public_key_is_refused_before_anything_is_written(database, tmp_path, key):
    with pytest.raises(
        SupabaseError, match=r"permission denied for function mf_schema \(42501\): the key's role lacks"
    ):
        rest(database, getattr(database, key)).export(planted("r1").write(tmp_path), ExportConfig())
    assert writes(database) == []


def test_a_model_with_a_nan_is_refused_and_nothing_is_sent(database, client, tmp_path):
    model = planted("r1")
    model.p[17, 3] = np.nan
    with pytest.raises(DataError, match=r"user_embeddings\.parquet row 17: embedding holds a value that is not finite"):
        rest(database).export(model.write(tmp_path), ExportConfig())
    assert database.gateway.requests == []


@pytest.mark.parametrize("ids", ["text", "uuid"])
def test_ids_of_another_type_are_refused_with_the_migrations_command(database, client, tmp_path, ids):
    said = rf"user_id_type is '{ids}', but its migration was made for 'bigint': apply what "
    with pytest.raises(SupabaseError, match=rf"{said}`python -m mf schema --user_id_type {ids} --movie_id_type {ids}`"):
        rest(database).export(planted("r1", ids=ids).write(tmp_path), ExportConfig())
    assert writes(database) == []


def test_integer_ids_go_into_a_database_of_text_ids(fresh_stack, tmp_path):
    database = fresh_stack()
    database.migrate(migration(SchemaConfig(user_id_type="text", movie_id_type="text")))
    model = planted("r1", users=4, movies=30)
    rest(database).export(model.write(tmp_path), ExportConfig())
    with api(database) as client:
        answer = recommend_movies(client, str(model.user_ids[3]), 5)
    assert [movie for movie, _ in pairs(answer)] == [str(movie) for movie, _ in model.best(3, 5)]


def test_a_view_that_is_not_in_the_migration_is_refused(database, client, tmp_path):
    config = ExportConfig(movie_export_table="films")
    with pytest.raises(SupabaseError, match=r"made for 'movie_embeddings': .* schema --movie_export_table films`"):
        rest(database).export(planted("r1").write(tmp_path), config)
    assert writes(database) == []


def test_without_the_migration_the_error_names_the_command_that_prints_it(fresh_stack, tmp_path):
    database = fresh_stack()
    with pytest.raises(SupabaseError, match=r"is the migration applied\? `python -m mf schema` prints it$"):
        rest(database).export(planted("r1").write(tmp_path), ExportConfig())


def test_half_loaded_rows_of_another_content_under_the_same_run_are_deleted(database, client, tmp_path):
    first, second = planted("r1", users=200, seed=1), planted("r1", users=100, seed=2)
    database.gateway.faults.append(lambda request: Fault(status=403) if request.path.endswith("/mf_publish") else None)
    with pytest.raises(SupabaseError, match="cannot publish run r1"):
        rest(database).export(first.write(tmp_path / "first"), ExportConfig())
    database.gateway.faults.clear()
    assert sql(database, COUNTS) == [("r1", 200, 300)]
    rest(database).export(second.write(tmp_path / "second"), ExportConfig())
    assert sql(database, COUNTS) == [("r1", 100, 300)]
    assert_published(client, second)
    with pytest.raises(
        SupabaseError, match=r"the run r1 is already in the database \(published\) with another content"
    ):
        rest(database).export(tmp_path / "first", ExportConfig())
    assert_published(client, second)


def test_surplus_rows_keep_a_run_from_being_published(database, client, tmp_path):
    model = planted("r1")

    def add_a_row(request):
        if request.path.endswith("/mf_publish"):
            sql(database, "insert into public.mf_movie_embeddings values ('r1', -5, 0, '[1]') returning run_id")

    database.gateway.faults.append(add_a_row)
    with pytest.raises(SupabaseError, match=r"incomplete: 301 of 300 movies.* are there; run its export again"):
        rest(database).export(model.write(tmp_path), ExportConfig())
    assert published_run(client) is None


def test_pruning_keeps_the_published_the_previous_and_loading_runs(database, client, tmp_path):
    for seed in range(4):
        rest(database).export(
            planted(f"r{seed}", users=5, movies=5, seed=seed).write(tmp_path / str(seed)), ExportConfig()
        )
    assert statuses(client) == {"r3": "published", "r2": "retired"}
    new = "insert into public.mf_runs (run_id, content_hash, factors, mu, rating_min, rating_max, n_users, n_movies, "
    new += "created_at) values (%s, 'h', 1, 0, 0, 1, 1, 1, now() - %s::interval) returning 1"
    sql(database, new, "stale", "25 hours")
    sql(database, new, "loading", "23 hours")
    assert call(client.rpc("mf_prune"), "prune") == {"removed": ["stale"]}
    assert statuses(client) == {"r3": "published", "r2": "retired", "loading": "loading"}
    assert call(client.rpc("mf_prune", {"keep": 0}), "prune") == {"removed": ["r2"]}
    assert sql(database, COUNTS) == [("loading", 0, 0), ("r3", 5, 5)]
    with pytest.raises(SupabaseError, match="keep is -1, expected a number of earlier runs"):
        call(client.rpc("mf_prune", {"keep": -1}), "prune")


def test_a_rollback_publishes_the_previous_run_and_its_retry_does_not_undo_it(database, client, tmp_path):
    old, new = planted("old", seed=1), planted("new", seed=2)
    with pytest.raises(SupabaseError, match="there is no earlier run to roll back to"):
        rollback(client)
    for model in (old, new):
        rest(database).export(model.write(tmp_path / model.run_id), ExportConfig())
    lost = iter([Fault(drop="after")])
    database.gateway.faults.append(lambda request: next(lost, None) if request.path.endswith("/mf_rollback") else None)
    assert rollback(client) == ("old", "new")
    assert_published(client, old)
    assert statuses(client) == {"old": "published", "new": "retired"}
    assert rollback(client, "new") == ("new", "old")
    assert_published(client, new)
    with pytest.raises(SupabaseError, match="there is no run nope: "):
        rollback(client, "nope")


def test_a_retired_model_that_is_exported_again_is_published_without_being_sent_again(database, client, tmp_path):
    for seed in (1, 2):
        rest(database).export(planted(f"r{seed}", seed=seed).write(tmp_path / str(seed)), ExportConfig())
    database.gateway.requests.clear()
    assert rest(database).export(tmp_path / "1", ExportConfig()) == ExportResult(
        "r1", 120, 300, changed=True, previous="r2"
    )
    assert [r.path.rsplit("/", 1)[1] for r in writes(database)] == ["mf_register", "mf_rollback", "mf_prune"]
    assert_published(client, planted("r1", seed=1))


def test_two_runs_published_at_once_leave_one_published(database, client, tmp_path):
    names = ["a", "b", "c", "d"]
    for name in names:
        planted(name, users=20, movies=20, seed=ord(name)).write(tmp_path / name)

    def send(name):
        rest(database).export(tmp_path / name, SMALL_BATCHES)

    threads = [threading.Thread(target=send, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(statuses(client).values()) == ["published", "retired"]
    last = published_run(client)["run_id"]
    assert_published(client, planted(last, users=20, movies=20, seed=ord(last)))
