"""A database with runs survives pg_dump and a restore."""

import subprocess

from faults import FaultySupabase
from planted import planted
from targets import api, rest

from mf.local.place import packaged_programs
from mf.supabase.client import call
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.recommend import recommend_from_ratings, recommend_movies, similar_movies
from mf.supabase.schema import migration

STATE = """
select indexname, indexdef from pg_indexes where schemaname = 'public'
union all select policyname, to_jsonb(p)::text from pg_policies p
union all select c.relname, concat_ws(' ', c.relrowsecurity, (select array_agg(acl::text order by acl::text)
    from unnest(c.relacl) acl))
    from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v')
union all select a.attrelid::regclass::text, concat_ws(' ', a.attname, (select array_agg(acl::text order by acl::text)
    from unnest(a.attacl) acl)) from pg_attribute a join pg_class c on c.oid = a.attrelid
    where c.relnamespace = 'public'::regnamespace and a.attacl is not null
union all select p.oid::regprocedure::text, concat_ws(' ', p.proconfig, p.prosecdef, p.prosrc,
    (select array_agg(acl::text order by acl::text) from unnest(p.proacl) acl))
    from pg_proc p where p.pronamespace = 'public'::regnamespace
order by 1, 2
"""


def program(name: str, *arguments: str, stdin: bytes = b"") -> bytes:
    command = [packaged_programs() / "bin" / name, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def state(database: FaultySupabase) -> list:
    with database.connect() as connection:
        connection.execute("set search_path = ''")  # so that all names are printed in full
        return connection.execute(STATE).fetchall()


def answers(database: FaultySupabase, model) -> list:
    with api(database) as client:
        return [
            *(recommend_movies(client, user, 20) for user in model.user_ids[:5]),
            *(similar_movies(client, movie) for movie in model.movie_ids[:5]),
            recommend_from_ratings(client, dict.fromkeys(model.movie_ids[:3], 4.0)),
        ]


def test_a_restored_database_has_its_runs_indexes_and_rights_and_takes_the_next_run(fresh_stack, stack, tmp_path):
    source = fresh_stack()
    with source.connect() as connection:
        connection.execute("create table public.ratings (user_id bigint, movie_id bigint, rating real)")
        connection.execute("insert into public.ratings values (1, 1, 4)")
    source.migrate(migration(SchemaConfig(ratings_table="ratings", public_read="movies")))
    model = planted("dumped", users=20, movies=60, factors=8, seed=1)
    rest(source).export(model.write(tmp_path / "model"), ExportConfig(hnsw_index=True))

    dump = program("pg_dump", f"--dbname={source.db_url}")
    # A setting that pg_dump 18 writes and that PostgreSQL before 17 does not have.
    dump = dump.replace(b"SET transaction_timeout = 0;\n", b"")
    name = f"{source.database}_restored"
    with stack.postgres.connect() as connection:
        connection.execute(f"create database {name} template template0")
    try:
        program("psql", "-q", "-v", "ON_ERROR_STOP=1", f"--dbname={stack.postgres.url(name)}", stdin=dump)
        with FaultySupabase(stack.home, name, postgres=stack.postgres) as restored:
            assert state(source) == state(restored)
            assert answers(source, model) == answers(restored, model)
            with api(restored) as client:
                rest(restored).export(
                    planted("next", users=5, movies=9, seed=2).write(tmp_path / "next"), ExportConfig()
                )
                assert {row["run_id"] for row in call(client.rpc("mf_list_runs", {}), "list")} == {"dumped", "next"}
                assert call(client.rpc("mf_prune", {"keep": 0}), "prune") == {"removed": ["dumped"]}
    finally:
        stack.postgres.drop(name)
