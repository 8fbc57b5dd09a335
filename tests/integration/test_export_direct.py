"""Exports over the direct connection, with kills and locks."""

import os
import re
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
from faults import Fault
from planted import Planted, planted
from pydantic import SecretStr
from targets import api, direct, pairs, rest

from mf.errors import DataError, SupabaseError
from mf.supabase import direct_target
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.database import Database
from mf.supabase.direct_target import DirectTarget
from mf.supabase.recommend import published_run, recommend_movies
from mf.supabase.schema import migration
from mf.supabase.target import ExportResult

CONFIG = ExportConfig()
COUNTS = """
select r.run_id, r.status, (select count(*) from public.mf_user_embeddings u where u.run_id = r.run_id),
  (select count(*) from public.mf_movie_embeddings m where m.run_id = r.run_id)
from public.mf_runs r order by 1
"""


def sql(database, text, *values):
    with database.connect() as connection:
        return connection.execute(text, values).fetchall()


def refused(database, model_dir, url=None):
    """The error message of a failing export; neither it nor the traceback shows the password."""
    with pytest.raises(SupabaseError) as caught:
        (DirectTarget(Database(SecretStr(url))) if url else direct(database)).export(model_dir, CONFIG)
    said = str(caught.value)
    password = re.search(":([^:@]+)@", url or database.db_url)[1]
    assert "\n" not in said
    assert password not in said + "".join(traceback.format_exception(caught.value))
    return said


@pytest.mark.parametrize("ids", ["bigint", "text", "uuid"])
def test_the_api_returns_exactly_what_was_exported_directly(fresh_stack, tmp_path, ids):
    database = fresh_stack()
    database.migrate(migration(SchemaConfig(user_id_type=ids, movie_id_type=ids)))
    model = planted("r é1", ids=ids)
    assert direct(database).export(model.write(tmp_path), CONFIG) == ExportResult(
        "r é1", 120, 300, changed=True, previous=None
    )
    vectors = "select movie_id::text, bias, embedding::real[], r.vector::real[] from public.mf_movie_embeddings "
    vectors += "join public.mf_movie_ranking r using (run_id, movie_id)"
    rows = {id_: (bias, vector, searched) for id_, bias, vector, searched in sql(database, vectors)}
    assert rows.keys() == {str(id_) for id_ in model.movie_ids}
    for id_, bias, vector in zip(model.movie_ids, model.movie_bias, model.q, strict=True):
        np.testing.assert_array_equal(np.float32(rows[str(id_)][1]), vector)
        np.testing.assert_array_equal(np.float32(rows[str(id_)][2]), [*vector, bias])
        assert np.float32(rows[str(id_)][0]) == bias
    with api(database) as client:
        assert published_run(client)["run_id"] == "r é1"
        for user in (3, 77):
            answer = recommend_movies(client, model.user_ids[user], 20)
            assert [movie for movie, _ in pairs(answer)] == [movie for movie, _ in model.best(user, 20)]
    # The other connection recognises the run.
    assert not rest(database).export(tmp_path, CONFIG).changed


def test_integer_ids_go_into_a_database_of_text_ids_and_float32_values_are_exact(fresh_stack, tmp_path):
    database = fresh_stack()
    database.migrate(migration(SchemaConfig(user_id_type="text", movie_id_type="text")))
    odd = np.array([[1e-42, 3.4e38], [-0.1, 16777217], [1 / 3, -1e-7]], np.float32)
    model = Planted("odd", [1, -22, 333], odd[:, 0], odd, [1, 2, 3], np.zeros(3, np.float32), odd)
    direct(database).export(model.write(tmp_path), CONFIG)
    stored = sql(database, "select user_id, bias, embedding::real[] from public.mf_user_embeddings order by bias")
    expected = sorted(zip(["1", "-22", "333"], odd, strict=True), key=lambda row: row[1][0])
    assert [(id_, np.float32(bias), *np.float32(vector)) for id_, bias, vector in stored] == [
        (id_, row[0], *row) for id_, row in expected
    ]


def test_a_second_export_changes_nothing_and_a_retired_run_is_published_again(database, tmp_path):
    for seed in (1, 2):
        direct(database).export(planted(f"r{seed}", seed=seed).write(tmp_path / str(seed)), CONFIG)
    rows = "select sum(u.xmin::text::bigint) from public.mf_user_embeddings u"
    before = sql(database, rows)
    again = direct(database).export(tmp_path / "2", CONFIG)
    assert again == ExportResult("r2", 120, 300, changed=False, previous="r2")
    assert direct(database).export(tmp_path / "1", CONFIG) == ExportResult("r1", 120, 300, changed=True, previous="r2")
    assert sql(database, COUNTS) == [("r1", "published", 120, 300), ("r2", "retired", 120, 300)]
    assert sql(database, rows) == before


def test_a_half_loaded_export_through_the_api_is_finished_directly(database, tmp_path):
    model = planted("r1")
    lost = iter([Fault(status=403)])
    database.gateway.faults.append(lambda request: next(lost, None) if "/mf_load_users" in request.path else None)
    with pytest.raises(SupabaseError, match="write users 0 to 119 of run r1"):
        rest(database).export(model.write(tmp_path), CONFIG)
    # One that the model does not hold, and an export through the API would leave there.
    sql(database, "insert into public.mf_user_embeddings values ('r1', 5, 0, '[1]') returning 1")
    assert sql(database, COUNTS) == [("r1", "loading", 1, 300)]
    assert direct(database).export(tmp_path, CONFIG).changed
    assert sql(database, COUNTS) == [("r1", "published", 120, 300)]


@pytest.mark.parametrize("way", ["direct", "api"])
def test_an_index_is_built_before_the_publish_and_dropped_with_its_run(database, tmp_path, way):
    indexes = "select count(*) from pg_indexes where indexname like 'mf_hnsw%%'"
    config = ExportConfig(hnsw_index=True)
    for seed in range(3):
        model = planted(f"r{seed}", seed=seed)
        if way == "direct":
            direct(database).export(model.write(tmp_path / str(seed)), config)
        else:
            database.gateway.requests.clear()
            rest(database).export(model.write(tmp_path / str(seed)), config)
            called = [request.path.rsplit("/", 1)[1] for request in database.gateway.requests]
            assert called.index("mf_index") < called.index("mf_publish")
    # Two of each run that is kept: for recommend_movies and for similar_movies.
    assert sql(database, indexes) == [(4,)]
    direct(database).export(planted("r3", seed=3).write(tmp_path / "3"), CONFIG)
    assert sql(database, indexes) == [(2,)]
    with api(database) as client:
        answer = recommend_movies(client, planted("r3", seed=3).user_ids[3], 20)
    assert [movie for movie, _ in pairs(answer)] == [movie for movie, _ in planted("r3", seed=3).best(3, 20)]


def test_a_model_with_a_nan_is_refused_and_no_connection_is_made(tmp_path):
    model = planted("r1")
    model.p[17, 3] = np.nan
    nowhere = DirectTarget(Database(SecretStr("postgresql://u:p@127.0.0.1:1/postgres")))
    with pytest.raises(DataError, match=r"user_embeddings\.parquet row 17: embedding holds a value that is not finite"):
        nowhere.export(model.write(tmp_path), CONFIG)


def test_other_ids_other_views_and_a_missing_migration_give_the_errors_of_the_api(database, fresh_stack, tmp_path):
    texts = planted("r1", ids="text").write(tmp_path / "text")
    assert "`python -m mf schema --user_id_type text --movie_id_type text`" in refused(database, texts)
    films = ExportConfig(movie_export_table="films")
    ids = planted("r1").movie_ids
    with pytest.raises(SupabaseError, match=r"made for 'movie_embeddings': .* schema --movie_export_table films`"):
        direct(database).check(pa.chunked_array([ids]), pa.chunked_array([ids]), films)
    said = refused(fresh_stack(), planted("r1").write(tmp_path / "r1"))
    assert re.search(r"\(42883\): is the migration applied\? `python -m mf schema` prints it$", said)


def test_errors_of_a_wrong_password_and_a_dead_host_do_not_show_the_password(database, tmp_path):
    model = planted("r1").write(tmp_path)
    wrong = re.sub(":[^:@]+@", ":hunter2hunter2@", database.db_url)
    assert "check the password in SUPABASE_DB_URL" in refused(database, model, wrong)
    assert "nothing listens there" in refused(database, model, "postgresql://u:hunter2hunter2@127.0.0.1:1/postgres")


@pytest.fixture
def stranger(database):
    """The URL of a user who may connect and has no grants."""
    with database.connect() as connection:
        connection.execute("drop role if exists stranger")
        connection.execute("create role stranger login password 'strangers-own'")
    yield re.sub("//postgres:[^@]+@", "//stranger:strangers-own@", database.db_url)
    with database.connect() as connection:
        connection.execute("drop owned by stranger")
        connection.execute("drop role stranger")


def test_a_user_without_grants_or_under_row_level_security_is_told_which_role_to_use(database, stranger, tmp_path):
    model = planted("r1").write(tmp_path)
    advice = "let SUPABASE_DB_URL name the user who applied the migration; Supabase's is postgres"
    said = refused(database, model, stranger)
    assert said == (
        "cannot read the options of the migration: permission denied for function mf_schema (42501): " + advice
    )
    with database.connect() as connection:
        connection.execute("grant all on all tables in schema public to stranger")
        connection.execute("grant execute on all functions in schema public to stranger")
    assert refused(database, model, stranger).endswith(advice)
    assert sql(database, COUNTS) == []


def test_a_full_disk_is_reported_and_changes_nothing_for_readers(database, tmp_path):
    direct(database).export(planted("old").write(tmp_path / "old"), CONFIG)
    fill = """
    create function public.no_space() returns trigger language plpgsql as
      $$ begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$;
    create trigger no_space before insert on public.mf_user_embeddings
      for each row execute function public.no_space();
    """
    try:
        with database.connect() as connection:
            connection.execute(fill)
        said = refused(database, planted("new", seed=2).write(tmp_path / "new"))
    finally:
        with database.connect() as connection:
            connection.execute("drop function public.no_space cascade")
    assert said == (
        "cannot write the users of run new: could not extend file: No space left on device (53100): the database's "
        "disk is full: enlarge it, or drop runs with `python -m mf runs prune`, then export again"
    )
    assert sql(database, COUNTS) == [("old", "published", 120, 300)]


PROGRAM = (
    "import sys; from pathlib import Path; from mf.supabase.config import ExportConfig; "
    "from mf.supabase.find import find_target\n"
    "find_target().export(Path(sys.argv[1]), ExportConfig())"
)


@contextmanager
def held_up(database):
    """Block exports in their transaction, at the users; yields a function that waits for one and returns its backend's
    process id."""
    waiting = "select pid from pg_stat_activity where wait_event = 'relation' and query ilike '%%mf_user_embeddings%%'"

    def backend():
        deadline = time.monotonic() + 900
        while not (found := sql(database, waiting)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return found[0][0]

    with database.connect() as blocker, blocker.transaction():
        blocker.execute("lock table public.mf_user_embeddings in exclusive mode")
        yield backend


@pytest.fixture
def exporting(database):
    """Export in a thread; returns a future."""
    with ThreadPoolExecutor() as pool:
        yield lambda model_dir: pool.submit(direct(database).export, model_dir, CONFIG)


def test_a_killed_export_leaves_nothing_behind_and_does_not_block_the_next(database, tmp_path):
    old, new = planted("old", seed=1).write(tmp_path / "old"), planted("new", seed=2).write(tmp_path / "new")
    direct(database).export(old, CONFIG)
    environment = os.environ | {"SUPABASE_DB_URL": database.db_url}
    with held_up(database) as backend:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(new)], env=environment)
        backend()
        process.send_signal(signal.SIGKILL)
        process.wait()
        # The table is still locked, so that only the look at the client's connection can end the transaction.
        deadline = time.monotonic() + 900
        while sql(database, "select 1 from pg_locks where locktype = 'advisory' and granted"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert sql(database, COUNTS) == [("old", "published", 120, 300)]
    assert direct(database).export(new, CONFIG).previous == "old"


def test_an_export_whose_connection_is_terminated_reports_it_and_can_be_run_again(database, exporting, tmp_path):
    new = planted("new").write(tmp_path)
    with held_up(database) as backend:
        ended = exporting(new)
        sql(database, "select pg_terminate_backend(%s)", backend())
        said = str(ended.exception(30))
    assert "cannot write the users of run new: terminating connection due to administrator command" in said
    assert said.endswith("the connection was lost: run it again")
    assert sql(database, COUNTS) == []
    assert direct(database).export(new, CONFIG).changed


@pytest.mark.parametrize("other", ["direct", "api"])
@pytest.mark.parametrize("same", [True, False])
def test_two_concurrent_exports_both_finish_and_one_is_published(database, exporting, tmp_path, other, same):
    first = planted("first", seed=1).write(tmp_path / "first")
    second = first if same else planted("second", seed=2).write(tmp_path / "second")

    with ThreadPoolExecutor() as pool:
        with held_up(database) as backend:
            one = exporting(first)
            backend()
            two = exporting(second) if other == "direct" else pool.submit(rest(database).export, second, CONFIG)
            with pytest.raises(TimeoutError):
                two.result(0.3)
        assert one.result(30) == ExportResult("first", 120, 300, changed=True, previous=None)
        found = ExportResult("first", 120, 300, changed=False, previous="first")
        after = ExportResult("second", 120, 300, changed=True, previous="first")
        assert two.result(30) == (found if same else after)
    alone = [("first", "published", 120, 300)]
    both = [("first", "retired", 120, 300), ("second", "published", 120, 300)]
    assert sql(database, COUNTS) == (alone if same else both)


def test_a_lock_timeout_says_that_another_export_is_running(database, exporting, tmp_path, monkeypatch):
    with held_up(database) as backend:
        first = exporting(planted("first").write(tmp_path / "first"))
        backend()
        monkeypatch.setitem(direct_target.SETTINGS, "lock_timeout", "100ms")
        said = refused(database, planted("second", seed=2).write(tmp_path / "second"))
    assert first.result(30).changed
    assert said == (
        "cannot register run second: canceling statement due to lock timeout (55P03): another export is running, and "
        "this one changed nothing: run it again when the other one has finished"
    )
    assert sql(database, COUNTS) == [("first", "published", 120, 300)]


def test_a_concurrent_load_of_the_same_run_through_the_api_finds_it_published(database, tmp_path):
    model = planted("r1").write(tmp_path)
    small = ExportConfig(rows_per_request=20, clients=1)
    done = []

    def export_directly_in_between(request):
        if "/mf_load_users" in request.path and not done:
            done.append(direct(database).export(model, CONFIG))

    database.gateway.faults.append(export_directly_in_between)
    rest(database).export(model, small)
    assert done == [ExportResult("r1", 120, 300, changed=True, previous=None)]
    assert sql(database, COUNTS) == [("r1", "published", 120, 300)]


def test_an_export_whose_run_name_is_taken_by_another_content_writes_nothing(database, tmp_path):
    first, second = planted("r1", seed=1).write(tmp_path / "1"), planted("r1", seed=2).write(tmp_path / "2")
    taken = []

    def take_the_name(request):
        if "/mf_load_users" in request.path and not taken:
            taken.append(direct(database).export(second, CONFIG))

    database.gateway.faults.append(take_the_name)
    with pytest.raises(SupabaseError, match="write users 0 to 19 of run r1: the run r1 is no longer this export's"):
        rest(database).export(first, ExportConfig(rows_per_request=20, clients=1))
    with api(database) as client:
        answer = recommend_movies(client, planted("r1", seed=2).user_ids[3], 20)
    assert [movie for movie, _ in pairs(answer)] == [movie for movie, _ in planted("r1", seed=2).best(3, 20)]
