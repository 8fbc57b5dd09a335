"""The migration on a real PostgreSQL with Supabase's legacy default grants, seen through a real PostgREST."""

import uuid
from pathlib import Path

import httpx
import numpy as np
import pytest
from planted import planted
from targets import api, pairs, rest

from mf.errors import SupabaseError
from mf.model_directory import read_model
from mf.supabase.client import call
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.recommend import recommend_from_ratings, recommend_movies, similar_movies
from mf.supabase.runs import rollback
from mf.supabase.schema import migration

# Nothing but what the migration made: what belongs to an extension lies in another schema.
RELATIONS = """
select c.relname, c.relkind, c.relrowsecurity, c.reloptions, c.oid
from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
order by 1
"""
FUNCTIONS = """
select p.proname, p.proargnames[1:p.pronargs], p.proargtypes::regtype[]::text[], p.prosecdef, p.proconfig, p.oid
from pg_proc p where p.pronamespace = 'public'::regnamespace and p.prorettype <> 'trigger'::regtype order by 1
"""
EXPECTED = {"mf_runs", "mf_priors", "mf_user_embeddings", "mf_movie_embeddings", "user_embeddings", "movie_embeddings"}
EXPECTED |= {
    "mf_movie_ranking",
    "mf_movie_history",
    "mf_user_ranking",
    "mf_movie_counts",
    "mf_forgotten",
    "mf_withheld",
}
EXPECTED |= {"recommend_movies", "similar_movies", "mf_schema", "mf_register", "mf_publish", "mf_list_runs"}
EXPECTED |= {"mf_rollback", "mf_prune", "mf_load_users", "mf_load_movies", "mf_index", "mf_drop_indexes"}
EXPECTED |= {"mf_nearest", "recommend_from_ratings", "mf_run", "mf_fold_in", "mf_recommend"}
EXPECTED |= {"mf_check_list", "mf_load_user_ranking", "mf_load_movie_ranking", "mf_load_movie_history"}
EXPECTED |= {"mf_load_movie_counts", "popular_movies", "mf_forget_user"}
# Those that run as their owner, each for the reason that stands beside it in the migration.
DEFINERS = {"mf_index", "mf_drop_indexes", "recommend_from_ratings", "recommend_for_me"}


def rows(stack, sql, *values):
    with stack.connect() as connection:
        return connection.execute(sql, values).fetchall()


def run(stack, sql):
    with stack.connect() as connection:
        connection.execute(sql)


@pytest.fixture
def empty(fresh_stack):
    return fresh_stack()


def test_the_catalog_shows_what_is_expected_to_be_there(migrated):
    assert {name for name, *_ in rows(migrated, RELATIONS) + rows(migrated, FUNCTIONS)} == EXPECTED


def test_no_default_privilege_is_left_and_every_object_is_guarded(migrated):
    for role in ("anon", "authenticated"):
        for name, *_, oid in rows(migrated, RELATIONS):
            held = "SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER"
            assert rows(migrated, "select has_table_privilege(%s, %s::oid, %s)", role, oid, held) == [(False,)], name
        for name, *_, oid in rows(migrated, FUNCTIONS):
            open_to_role = role == "authenticated" and name == "recommend_from_ratings"
            granted = rows(migrated, "select has_function_privilege(%s, %s::oid, 'EXECUTE')", role, oid)
            assert granted == [(open_to_role,)], name
    for name, kind, row_security, options, _ in rows(migrated, RELATIONS):
        assert row_security if kind == "r" else options == ["security_invoker=true"], name
    for name, _, _, definer, settings, _ in rows(migrated, FUNCTIONS):
        assert definer == (name in DEFINERS), name
        assert "search_path=pg_catalog, pg_temp" in settings, name


def test_no_argument_has_a_columns_name_and_no_function_is_overloaded(migrated):
    columns = {
        c for (c,) in rows(migrated, "select column_name from information_schema.columns where table_schema = 'public'")
    }
    functions = rows(migrated, FUNCTIONS)
    assert not columns & {argument for _, names, *_ in functions for argument in names or []}
    assert len({name for name, *_ in functions}) == len(functions)


def test_running_it_again_changes_nothing(migrated):
    before = (
        rows(migrated, RELATIONS),
        rows(migrated, FUNCTIONS),
        rows(migrated, "select * from pg_indexes where schemaname = 'public'"),
    )
    migrated.migrate(migration(SchemaConfig()))
    after = (
        rows(migrated, RELATIONS),
        rows(migrated, FUNCTIONS),
        rows(migrated, "select * from pg_indexes where schemaname = 'public'"),
    )
    assert after == before


def test_it_runs_as_plain_statements_too_and_leaves_nothing_when_refused(empty):
    with empty.connect() as connection:
        connection.execute(migration(SchemaConfig()))
        assert connection.execute("select public.mf_schema() ->> 'user_id_type'").fetchone() == ("bigint",)
    with pytest.raises(SupabaseError, match=r"there is no table public\.nope"):
        empty.migrate(migration(SchemaConfig(ratings_table="nope", movie_export_table="films")))
    assert rows(empty, "select to_regclass('public.films')") == [(None,)]


def test_other_id_types_than_the_tables_have_are_refused_until_the_tables_go(empty):
    empty.migrate(migration(SchemaConfig()))
    other = migration(SchemaConfig(user_id_type="uuid", movie_id_type="text"))
    with pytest.raises(SupabaseError, match=r"user_id is bigint, and this migration is for uuid") as error:
        empty.migrate(other)
    assert "--user_id_type bigint" in str(error.value)
    run(empty, str(error.value).split("first run: ")[1].split(";")[0])
    empty.migrate(other)
    empty.migrate(other)
    signatures = {name: types for name, _, types, *_ in rows(empty, FUNCTIONS)}
    assert signatures["recommend_movies"] == ["uuid", "integer", "boolean", "text[]", "text[]", "integer", "text"]
    assert signatures["similar_movies"] == ["text", "integer", "text[]", "text[]"]
    assert len(signatures) == len(rows(empty, FUNCTIONS))


def test_a_table_or_a_view_of_the_users_with_a_views_name_is_refused_with_the_command_that_renames_it(empty):
    run(empty, 'create table public."Movie embeddings" (movie_id int, embedding text)')
    run(empty, "create view public.user_embeddings as select 1 as user_id, 0.0::real as bias")
    sql = migration(SchemaConfig(movie_export_table="Movie embeddings"))
    for kind, name in (("table", '"Movie embeddings"'), ("view", "user_embeddings")):
        with pytest.raises(SupabaseError, match=rf"your {kind} public\..+ has the name of a view") as error:
            empty.migrate(sql)
        command = str(error.value).split("; run: ")[1].split(";")[0]
        assert command.startswith(f"alter {kind} public.{name} rename to ")
        run(empty, command)
    empty.migrate(sql)
    assert rows(empty, "select to_regclass('public.\"Movie embeddings_old\"') is not null") == [(True,)]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"ratings_table": "stars"}, "there is no table public.stars: give --ratings_table"),
        ({"ratings_table": "votes"}, "the table public.votes has no column user_id: give --user_column"),
        (
            {"ratings_table": "votes", "user_column": "voter", "movie_column": "film"},
            "has no column film: give --movie_c",
        ),
        (
            {"ratings_table": "votes", "user_column": "voter", "movie_column": "name"},
            "public.votes.name is text, which cannot be compared with movie ids of type bigint",
        ),
        (
            {"ratings_table": "votes", "user_column": "voter", "movie_column": "movie", "rating_column": "stars"},
            "has no column stars: give --rating_column the name of its column of ratings, or none",
        ),
    ],
)
def test_an_unusable_ratings_table_is_refused(migrated, config, said):
    run(migrated, "create table if not exists public.votes (voter integer, movie bigint, name text, rating integer)")
    try:
        with pytest.raises(SupabaseError) as error:
            migrated.migrate(migration(SchemaConfig(**config)))
        assert said in str(error.value)
    finally:
        run(migrated, "drop table public.votes")


def test_in_a_project_without_default_grants_the_service_role_can_export_and_recommend(fresh_stack, tmp_path):
    stack = fresh_stack(legacy_grants=False)
    run(stack, 'create table public."Votes" ("user" integer, "Movie" integer, rating numeric)')
    config = SchemaConfig(
        movie_export_table="My films'", user_export_table='people "in"', ratings_table="Votes", user_column="user",
        movie_column="Movie",
    )  # fmt: skip
    stack.migrate(migration(config))
    model = planted("r1", users=5, movies=8)
    with api(stack) as client:
        views = {"movie_export_table": config.movie_export_table, "user_export_table": config.user_export_table}
        assert rest(stack).export(model.write(tmp_path), ExportConfig(**views)).changed
        assert len(recommend_movies(client, model.user_ids[0], 3, exclude_rated=True)) == 3
        assert len(client.table(config.movie_export_table).select("movie_id,bias,embedding,run_id").execute().data) == 8


def test_a_function_of_the_users_own_is_refused_with_the_command_that_renames_it(fresh_stack):
    database = fresh_stack()
    with database.connect() as connection:
        connection.execute("create function public.similar_movies(title text) returns int language sql as 'select 1'")
    with pytest.raises(SupabaseError, match=r"alter function .*title text. rename to similar_movies_old"):
        database.migrate(migration(SchemaConfig()))
    with database.connect() as connection:
        connection.execute("alter function public.similar_movies(title text) rename to similar_movies_old")
    database.migrate(migration(SchemaConfig()))
    database.migrate(migration(SchemaConfig()))


@pytest.mark.parametrize("earlier", ["first", "second"])
def test_a_project_of_an_earlier_migration_is_upgraded_and_keeps_its_runs(fresh_stack, tmp_path, earlier):
    database = fresh_stack()
    database.migrate((Path(__file__).parent / f"{earlier}_migration.sql").read_text())
    models = [planted(f"r{i}", users=20, movies=30, seed=i) for i in range(2)]
    for model, status in zip(models, ("retired", "published"), strict=True):
        content = read_model(model.write(tmp_path / model.run_id)).content_hash
        run(
            database,
            "insert into public.mf_runs (run_id, status, content_hash, factors, mu, rating_min, rating_max, n_users, "
            "n_movies, published_at) "
            f"values ('{model.run_id}', '{status}', '{content}', 8, 3.5, 0.5, 5, 20, 30, now())",
        )
        for side, ids, bias, vectors in (
            ("user", model.user_ids, model.user_bias, model.p),
            ("movie", model.movie_ids, model.movie_bias, model.q),
        ):
            with database.connect() as connection, connection.cursor() as cursor:
                values = [
                    (model.run_id, *row) for row in zip(ids, bias.tolist(), map(str, vectors.tolist()), strict=True)
                ]
                cursor.executemany(f"insert into public.mf_{side}_embeddings values (%s, %s, %s, %s)", values)
    before = rows(database, "select to_jsonb(r) from public.mf_runs r order by run_id")
    with pytest.raises(SupabaseError, match=r"is older than this release, .*: apply what `python -m mf schema` prints"):
        rest(database).export(tmp_path / "r1", ExportConfig())
    for _ in range(2):
        database.migrate(migration(SchemaConfig()))
    # New columns are null in a run of before.
    after = rows(database, "select to_jsonb(r) from public.mf_runs r order by run_id")
    added = {"ranking": None, "ignore_ratings": [], "n_counts": None, "judged": None}
    assert [row for (row,) in after] == [{"trained_on": None, **row, **added} for (row,) in before]
    ratings = {models[1].movie_ids[0]: 5.0}
    with api(database) as client:
        best = [movie for movie, _ in models[1].best(0, 5)]
        assert [movie for movie, _ in pairs(recommend_movies(client, models[1].user_ids[0], 5))] == best
        assert len(similar_movies(client, best[0], 5)) == 5
        with pytest.raises(SupabaseError, match=r"the run r1 was exported without .*: export it again"):
            recommend_from_ratings(client, ratings)
        assert not rest(database).export(tmp_path / "r1", ExportConfig()).changed
        assert len(recommend_from_ratings(client, ratings, 5)) == 5
        assert rollback(client) == ("r0", "r1")
        best = [movie for movie, _ in models[0].best(0, 5)]
        assert [row.movie_id for row in recommend_movies(client, models[0].user_ids[0], 5)] == best


def test_an_export_of_an_earlier_release_still_works(migrated, tmp_path):
    model, run = planted("r1", users=3, movies=4), {"run": "r1", "content": "h"}
    with api(migrated) as client:
        registered = {"run_id": "r1", "content_hash": "h", "factors": 8, "mu": 3.5, "rating_min": 0.5, "rating_max": 5}
        registered |= {"n_users": 3, "n_movies": 4, "trained_on": None, "prior": np.eye(9).ravel().tolist()}
        call(client.rpc("mf_register", {"run": registered}), "register")
        for side, ids, bias, vectors in (
            ("users", model.user_ids, model.user_bias, model.p),
            ("movies", model.movie_ids, model.movie_bias, model.q),
        ):
            loaded = {"ids": ids, "biases": bias.tolist(), "embeddings": [str(vector) for vector in vectors.tolist()]}
            call(client.rpc(f"mf_load_{side}", run | loaded), "load")
        call(client.rpc("mf_publish", {"run": "r1"}), "publish")
        assert pairs(recommend_movies(client, model.user_ids[0])) == [
            (movie, pytest.approx(rating, abs=1e-5)) for movie, rating in model.best(0, 10)
        ]


def test_an_owner_who_is_no_superuser_as_supabases_can_do_all_of_it(fresh_stack, tmp_path):
    database = fresh_stack(legacy_grants=False)
    run(database, "create role project_owner bypassrls; grant create, usage on schema public to project_owner")
    run(database, "grant usage on schema extensions, auth to project_owner; grant project_owner to postgres")
    try:
        with database.connect() as connection:
            # A session in which nothing has loaded the extension's library yet.
            connection.execute("set role project_owner")
            connection.execute("create table public.stars (user_id uuid, movie_id bigint, rating real)")
            connection.execute(
                migration(SchemaConfig(user_id_type="uuid", ratings_table="stars", public_read="movies"))
            )
        assert rows(database, "select distinct tableowner from pg_tables where schemaname = 'public'") == [
            ("project_owner",)
        ]
        database.migrate("select 1")  # the API reads the schema
        model = planted("r1", users=5, movies=1200, ids="bigint")
        model.user_ids = [str(uuid.uuid4()) for _ in model.user_ids]
        with api(database) as client:
            rest(database).export(model.write(tmp_path), ExportConfig())
            assert call(client.rpc("mf_index", {"run": "r1"}), "index")["changed"]
            answer = recommend_movies(client, model.user_ids[0], 10, exclude_rated=True)
            assert [movie for movie, _ in pairs(answer)] == [movie for movie, _ in model.best(0, 10)]
            assert len(recommend_from_ratings(client, {model.movie_ids[0]: 5.0})) == 10
            call(client.rpc("mf_drop_indexes", {"run": "r1"}), "drop")
        headers = {
            "apikey": database.publishable_key,
            "Authorization": f"Bearer {database.user_token(model.user_ids[0])}",
        }
        own = httpx.post(f"{database.url}/rest/v1/rpc/recommend_for_me", headers=headers, json={"k": 10})
        assert [row["movie_id"] for row in own.json()] == [movie for movie, _ in model.best(0, 10)]
    finally:
        run(database, "drop owned by project_owner cascade; drop role project_owner")
