"""Attacks on the functions, the bounds of their work, and the rules of Supabase's Security Advisor."""

import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest
from planted import planted
from targets import api, direct, rest

from mf.local import LocalSupabase
from mf.supabase.client import call
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.schema import migration

SCHEMA = SchemaConfig(
    user_id_type="uuid", ratings_table="ratings", items_table="movies", items_filter="genre", public_read="movies"
)
SETUP = """
create table public.ratings (user_id uuid, movie_id bigint, rating real, created_at timestamptz default now());
create table public.movies (id bigint primary key, genre text);
alter table public.ratings enable row level security;
alter table public.movies enable row level security;
revoke all on public.movies, public.ratings from anon, authenticated;
create policy visible on public.movies for select to anon, authenticated using (genre <> 'secret');
grant select on public.movies to anon, authenticated;
"""
ME = str(uuid.UUID(int=1))
DOCS = Path("docs/security.md")


@pytest.fixture(scope="module")
def database(fresh_stack, tmp_path_factory) -> LocalSupabase:
    stack = fresh_stack()
    with stack.connect() as connection:
        connection.execute(SETUP)
    stack.migrate(migration(SCHEMA))
    model = planted("r1", users=50, movies=2000, factors=64, seed=1)
    model.user_ids = [str(uuid.UUID(int=i + 1)) for i in range(50)]
    model.p, model.q = model.p / 2, model.q / 2
    with stack.connect() as connection, connection.cursor() as cursor:
        cursor.executemany("insert into public.movies values (%s, 'drama')", [(m,) for m in model.movie_ids])
        rated = [(user, movie) for user in model.user_ids[:3] for movie in model.movie_ids[:5]]
        cursor.executemany("insert into public.ratings values (%s, %s, 4)", rated)
    direct(stack).export(model.write(tmp_path_factory.mktemp("model")), ExportConfig())
    return stack


FUNCTIONS = """
select p.oid::regprocedure::text, p.proname, p.proargnames[1:p.pronargs], p.proargtypes::regtype[]::text[]
from pg_proc p
where p.pronamespace = 'public'::regnamespace and p.prorettype <> 'trigger'::regtype
  and has_function_privilege(%s, p.oid, 'execute') order by 1
"""
TYPES = (
    "text int8 int4 int2 uuid jsonb json numeric float8 float4 bool timestamptz name oid regclass regtype bytea char"
)
# Values that lead a function as far as possible; the types are named with their schema, as a victim's code should.
VALUES = {
    "uuid": f"'{ME}'::pg_catalog.uuid", "integer": "3", "boolean": "false", "text": "null", "bigint": "1",
    "jsonb": """'[{"movie_id": 1, "rating": 4}]'::pg_catalog.jsonb""", "double precision": "1",
    "vector": "null", "bigint[]": "'{}'", "uuid[]": "'{}'", "text[]": "'{}'", "real[]": "'{}'",
    "integer[]": "'{}'", "double precision[]": "'{}'", "movies": "null", "mf_list": "null", "mf_similar": "null",
    "mf_popular": "null",
}  # fmt: skip


@pytest.mark.parametrize("role", ["authenticated", "service_role"])
def test_no_function_looks_into_the_callers_temporary_schema(database, role: str) -> None:
    """A temporary domain with the name of each built-in type, whose CHECK notes who evaluates it."""
    with database.connect() as connection:
        functions = connection.execute(FUNCTIONS, [role]).fetchall()
        connection.execute("begin")
        connection.execute("select set_config('request.jwt.claims', %s, true)", [json.dumps({"sub": ME})])
        connection.execute(f"set local role {role}")
        connection.execute(
            "create function pg_temp.steal() returns pg_catalog.bool language sql volatile as "
            "$$select pg_catalog.set_config('attack.ran', current_user, true) is not null$$"
        )
        for name in TYPES.split():
            connection.execute(f'create domain pg_temp."{name}" as pg_catalog."{name}" check (pg_temp.steal())')
        for name in ("mf_runs", "mf_items", "mf_movie_ranking", "ratings", "movies"):
            connection.execute(f"create temporary table {name} (run_id pg_catalog.int4)")
        # The trap works: a function that does not pin its path runs into it.
        connection.execute("select '1'::pg_temp.text")
        assert connection.execute("select current_setting('attack.ran')").fetchone() == (role,)
        connection.execute("select set_config('attack.ran', '', true)")
        assert len(functions) > (25 if role == "service_role" else 5)
        ran = {}
        for signature, name, names, types in functions:
            arguments = ", ".join(VALUES[t] for n, t in zip(names or [""] * len(types), types, strict=True))
            connection.execute("savepoint attack")
            try:
                connection.execute(f"select * from public.{name}({arguments})".encode())
            except psycopg.Error:
                connection.execute("rollback to attack")
            else:
                found = connection.execute("select current_setting('attack.ran')").fetchone()
                if found != ("",):
                    ran[signature] = found
                connection.execute("rollback to attack")
        assert ran == {}
        for function in ("recommend_for_me()", "recommend_from_ratings('[]')", "popular_movies()"):
            if role == "authenticated" or "me" not in function:
                assert connection.execute(f"select * from public.{function}".encode()).fetchall()
        connection.execute("rollback")


def backend(connection: psycopg.Connection[Any]) -> Path:
    return Path(f"/proc/{connection.info.backend_pid}")


BOMBS = {
    "ids": ('[{"movie_id": 1e131000, "rating": 4}%s]', "entry 1 of ratings is a object, expected"),
    "ratings": ('[{"movie_id": 1, "rating": 1e131000}%s]', "entry 1 of ratings is a object, expected a rating from"),
    "small": ('[{"movie_id": 1e-16000, "rating": 4}%s]', 'entry 1 of ratings is {"rating": 4, "movie_id": 0.000'),
    "nested": ('[{"movie_id": {"a": [1e131000, 1e131000]}, "rating": 4}%s]', "entry 1 of ratings is a object"),
    "entries": ("[1e131000%s]", "entry 1 of ratings is a number"),
    "late": ('[{"movie_id": 1, "rating": 4}%s, 5]', "entry 1000 of ratings is 5, expected"),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("bomb", BOMBS)
def test_numbers_with_a_hundred_thousand_digits_are_refused_before_they_are_written_out(database, bomb: str) -> None:
    text, said = BOMBS[bomb]
    first = text[1 : text.index("%s")]
    more = 998 if bomb == "late" else 999
    with database.connect() as connection:
        connection.execute("select count(*) from public.recommend_from_ratings('[]')")
        before = memory(connection)
        with pytest.raises(psycopg.Error) as error:
            connection.execute("select * from public.recommend_from_ratings(%s::jsonb)", [text % (f", {first}" * more)])
        assert said in str(error.value)
        assert len(str(error.value)) < 1000
        assert memory(connection) - before < 50e6


def memory(connection: psycopg.Connection[Any]) -> float:
    """Peak of the backend's memory, bytes."""
    status = (backend(connection) / "status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def test_a_rating_out_of_range_is_refused_by_its_place_and_a_long_list_by_its_size(database) -> None:
    with database.connect() as connection:
        for ratings, said in (
            ([{"movie_id": 1, "rating": 4}, {"movie_id": 2, "rating": 7}],
             'entry 2 of ratings is {"rating": 7, "movie_id": 2}, expected a rating from 0.5 to 5'),
            ([{"movie_id": 1, "rating": 4, "note": "x" * 1_000_000}], "ratings has 10000"),
        ):  # fmt: skip
            with pytest.raises(psycopg.Error) as error:
                connection.execute("select public.recommend_from_ratings(%s::jsonb)", [json.dumps(ratings)])
            assert said in str(error.value)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="CPU time is read from /proc")
@pytest.mark.parametrize(("factors", "most_ms"), [(64, 60), (256, 300)])
def test_a_thousand_ratings_cost_a_bounded_time(database, fresh_stack, tmp_path, factors: int, most_ms: float) -> None:
    stack = database
    if factors != 64:
        stack = fresh_stack()
        stack.migrate(migration(SchemaConfig()))
        model = planted("r", users=50, movies=2000, factors=factors, seed=1)
        model.q /= 4
        direct(stack).export(model.write(tmp_path), ExportConfig())
    with stack.connect() as connection:
        movies = connection.execute("select movie_id from public.mf_movie_embeddings limit 1000").fetchall()
        ratings = json.dumps([{"movie_id": movie, "rating": 1 + i % 4} for i, (movie,) in enumerate(movies)])
        spent = []
        for _ in range(6):
            began = cpu_ms(connection)
            assert (
                len(connection.execute("select public.recommend_from_ratings(%s::jsonb)", [ratings]).fetchall()) == 10
            )
            spent.append(cpu_ms(connection) - began)
    assert np.mean(spent[1:]) <= most_ms


def cpu_ms(connection: psycopg.Connection[Any]) -> float:
    """CPU time of the backend."""
    fields = (backend(connection) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 1000


def test_a_token_of_another_service_gets_one_sentence(database) -> None:
    headers = {"apikey": database.publishable_key, "Authorization": f"Bearer {database.user_token('auth0|42')}"}
    answer = httpx.post(f"{database.url}/rest/v1/rpc/recommend_for_me", json={}, headers=headers, trust_env=False)
    assert answer.status_code == 400
    assert answer.json()["message"].startswith("the sub of the access token is no UUID, and recommend_for_me is for")


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_nobody_but_the_service_role_can_hold_up_a_publish(database, tmp_path, role: str) -> None:
    with database.connect() as connection:
        tables = connection.execute(
            "select format('%I', relname) from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'"
        ).fetchall()
        connection.execute("begin")
        connection.execute(f"set local role {role}")
        for key in ("mf_runs", "mf_index"):
            connection.execute("select pg_advisory_xact_lock(hashtext(%s)), pg_advisory_xact_lock_shared(1)", [key])
        held = []
        modes = ("row share", "row exclusive", "share update exclusive", "share", "share row exclusive", "exclusive",
                 "access exclusive")  # fmt: skip
        attempts = [f"lock table public.{table} in {mode} mode" for (table,) in tables for mode in modes]
        attempts += [
            f"select 1 from public.{table} for {how}" for (table,) in tables for how in ("update", "key share")
        ]
        attempts += [f"select 1 from public.{table}" for (table,) in tables]
        for attempt in attempts:
            connection.execute("savepoint attempt")
            try:
                connection.execute(attempt.encode())
                held.append(attempt)
            except psycopg.errors.InsufficientPrivilege:
                connection.execute("rollback to attempt")
        rest(database).export(planted_again(tmp_path, role).write(tmp_path), ExportConfig(hnsw_index=True))
        with api(database) as client:
            call(client.rpc("mf_rollback", {}), "roll back")
            call(client.rpc("mf_forget_user", {"forget": str(uuid.uuid4())}), "forget")
        assert all(attempt.startswith("select 1 from") and not re.search(" for ", attempt) for attempt in held), held
        connection.execute("rollback")


def planted_again(path: Path, role: str) -> Any:
    model = planted(f"locked out {role}", users=5, movies=30, factors=64, seed=2)
    model.user_ids = [str(uuid.uuid4()) for _ in model.user_ids]
    return model


def test_nobody_gets_anything_of_another_user(database) -> None:
    """Whatever a signed-in user passes, the list is that of his own token and of what the arguments themselves say."""
    others = [str(uuid.UUID(int=i)) for i in (2, 3)]
    headers = {"apikey": database.publishable_key, "Authorization": f"Bearer {database.user_token(str(uuid.uuid4()))}"}

    def ask(function: str, **arguments: Any) -> Any:
        return httpx.post(
            f"{database.url}/rest/v1/rpc/{function}", json=arguments, headers=headers, trust_env=False
        ).json()

    plain = ask("recommend_for_me", k=20)
    assert all(row["because"] is None for row in plain)
    for forged in ({"for_user": others[0]}, {"user_id": others[0]}, {"stored": "[1]"}, {"rated": [1]}):
        assert ask("recommend_for_me", **forged)["code"] == "PGRST202"
    assert ask("recommend_movies", for_user=others[0])["code"] == "42501"
    assert ask("mf_own_ratings", of_user=others[0])["code"] == "42501"
    assert ask("recommend_for_me", k=20, genre="drama") == plain
    assert ask("recommend_for_me", k=20, genre="x' or true --") == []
    ratings = [{"movie_id": plain[0]["movie_id"], "rating": 5}]
    because = {row["because"] for row in ask("recommend_from_ratings", ratings=ratings)}
    assert because <= {None, plain[0]["movie_id"]}


# The rules of Supabase's Security and Performance Advisor (splinter) that look at a schema, in queries of our own. Each
# gives the objects of schema public that it would name.
TABLES = "from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')"
DEFINER_FOR = """
select p.proname from pg_proc p where p.pronamespace = 'public'::regnamespace and p.prosecdef
  and p.prorettype <> 'trigger'::regtype and has_function_privilege('{}', p.oid, 'execute')
"""
READABLE_BY = """
select c.relname from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v', 'm', 'f')
  and has_any_column_privilege('{}', c.oid, 'select')
"""
RULES = {
    "0001_unindexed_foreign_keys": """
        select f.conrelid::regclass::text from pg_constraint f join pg_class c on c.oid = f.conrelid
        where f.contype = 'f' and c.relnamespace = 'public'::regnamespace and not exists (
          select from pg_index x where x.indrelid = f.conrelid
            and (x.indkey::int2[])[0:cardinality(f.conkey) - 1] = f.conkey)""",
    "0002_auth_users_exposed": """
        select c.relname from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('v', 'm')
          and pg_get_viewdef(c.oid) ~ 'auth\\.users' and has_any_column_privilege('anon', c.oid, 'select')""",
    "0003_auth_rls_initplan": """
        select p.tablename from pg_policies p where p.schemaname = 'public' and regexp_replace(
            coalesce(p.qual, '') || coalesce(p.with_check, ''), '\\( SELECT auth\\.\\w+\\(\\)', '', 'gi')
            ~ '(auth\\.\\w+|current_setting)\\('""",
    "0004_no_primary_key": f"select c.relname {TABLES} and c.relname like 'mf%' and not exists (select from pg_index x "
    "where x.indrelid = c.oid and x.indisprimary)",
    "0006_multiple_permissive_policies": """
        select p.tablename from pg_policies p, unnest(p.roles) role
        where p.schemaname = 'public' and p.permissive = 'PERMISSIVE' group by p.tablename, role, p.cmd
        having count(*) > 1""",
    "0007_policy_exists_rls_disabled": f"select c.relname {TABLES} and not c.relrowsecurity and exists (select from "
    "pg_policy p where p.polrelid = c.oid)",
    "0008_rls_enabled_no_policy": f"select c.relname {TABLES} and c.relrowsecurity and c.relname like 'mf%' and not "
    "exists (select from pg_policy p where p.polrelid = c.oid)",
    "0009_duplicate_index": """
        select x.indrelid::regclass::text from pg_index x join pg_class c on c.oid = x.indexrelid
        where c.relnamespace = 'public'::regnamespace
        group by x.indrelid, x.indkey, x.indclass, pg_get_expr(x.indexprs, x.indrelid),
          pg_get_expr(x.indpred, x.indrelid)
        having count(*) > 1""",
    "0010_security_definer_view": """
        select c.relname from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'v'
          and not coalesce(c.reloptions, '{}') && '{security_invoker=true,security_invoker=on}'""",
    "0011_function_search_path_mutable": """
        select p.proname from pg_proc p where p.pronamespace = 'public'::regnamespace
          and not exists (select from unnest(p.proconfig) s where s like 'search_path=%')""",
    "0012_auth_allow_anonymous_sign_ins": """
        select p.tablename from pg_policies p where p.schemaname = 'public' and p.tablename like 'mf%'
          and p.roles && '{public,authenticated}' and p.qual !~ 'is_anonymous'""",
    "0013_rls_disabled_in_public": f"select c.relname {TABLES} and not c.relrowsecurity",
    "0014_extension_in_public": "select extname from pg_extension where extnamespace = 'public'::regnamespace",
    "0015_rls_references_user_metadata": "select tablename from pg_policies where qual ~ 'user_metadata'",
    "0016_materialized_view_in_api": "select relname from pg_class where relkind = 'm' and relnamespace = "
    "'public'::regnamespace",
    "0018_unsupported_reg_types": f"select c.relname {TABLES} and exists (select from pg_attribute a where "
    "a.attrelid = c.oid and a.atttypid::regtype::text in ('regclass', 'regproc', 'regrole', 'regtype', 'regconfig'))",
    "0024_permissive_rls_policy": "select tablename from pg_policies where schemaname = 'public' and tablename like "
    "'mf%' and (coalesce(qual, 'true') = 'true' or with_check = 'true')",
    "0026_pg_graphql_anon_table_exposed": READABLE_BY.format("anon"),
    "0027_pg_graphql_authenticated_table_exposed": READABLE_BY.format("authenticated"),
    "0028_anon_security_definer_function_executable": DEFINER_FOR.format("anon"),
    "0029_authenticated_security_definer_function_executable": DEFINER_FOR.format("authenticated"),
}
PRIVATE = {"mf_priors", "mf_user_embeddings", "mf_movie_ranking", "mf_user_ranking", "mf_forgotten", "mf_withheld"}
POLICIES = {"mf_runs", "mf_movie_embeddings", "mf_movie_history", "mf_movie_counts"}
DEFINERS = {"0029_authenticated_security_definer_function_executable": {"recommend_for_me", "recommend_from_ratings"}}
READABLE = POLICIES | {"movies", "movie_embeddings", "mf_items"}
MEANT = {
    "none": {"0008_rls_enabled_no_policy": PRIVATE | POLICIES} | DEFINERS,
    "movies": {
        "0008_rls_enabled_no_policy": PRIVATE,
        "0012_auth_allow_anonymous_sign_ins": POLICIES,
        "0026_pg_graphql_anon_table_exposed": READABLE,
        "0027_pg_graphql_authenticated_table_exposed": READABLE,
    }
    | DEFINERS,
}


def test_the_security_advisor_says_nothing_but_what_the_docs_explain(fresh_stack, database) -> None:
    closed = fresh_stack()
    closed.migrate(migration(SchemaConfig(user_id_type="uuid")))
    page = DOCS.read_text()
    for stack, read in ((closed, "none"), (database, "movies")):
        with stack.connect() as connection:
            found = {rule: {name for (name,) in connection.execute(sql.encode())} for rule, sql in RULES.items()}
        assert {rule: names for rule, names in found.items() if names} == MEANT[read]
        for rule in MEANT[read]:
            assert rule in page
