import re
from pathlib import Path

import pytest

from mf.errors import ConfigError
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.schema import migration

MIGRATION = Path(__file__).parents[2] / "supabase" / "migrations" / "20261124000000_mf.sql"


def test_the_migration_in_the_repository_is_the_one_of_the_defaults():
    assert MIGRATION.read_bytes() == migration(SchemaConfig()).encode(), (
        f"write it anew: python -m mf schema > {MIGRATION.relative_to(MIGRATION.parents[2])}"
    )


def test_names_are_quoted_as_identifiers_and_as_literals():
    sql = migration(SchemaConfig(movie_export_table="My \"films'", ratings_table="Stars"))
    assert 'view public."My ""films\'" with' in sql
    assert "in ('My \"films''', 'user_embeddings')" in sql
    assert "to_regclass('public.\"Stars\"')" in sql
    assert 'from public."Stars" given' in sql


def test_functions_for_signed_in_users_and_public_policies_are_printed_only_on_request():
    plain, app = migration(SchemaConfig()), migration(SchemaConfig(user_id_type="uuid", public_read="movies"))
    for wanted in ("create or replace function public.recommend_for_me(", "create policy mf_public_read"):
        assert wanted not in plain
        assert wanted in app
    assert "to anon" not in plain.replace("revoke", "")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"movie_export_table": "m" * 64}, "movie_export_table: expected a name of 1 to 63 bytes"),
        ({"user_export_table": "é" * 32}, "user_export_table: expected a name of 1 to 63 bytes"),
        ({"user_export_table": ""}, "user_export_table: expected a name of 1 to 63 bytes"),
        ({"user_export_table": "mf_runs"}, "names that start with mf_ are reserved for the tables behind the views"),
        ({"ratings_table": "a$mf$b"}, "without control characters"),
        ({"user_column": "a\nb"}, "without control characters"),
        ({"movie_export_table": "user_embeddings"}, "are both 'user_embeddings'"),
        ({"ratings_table": "movie_embeddings"}, "ratings_table and an export table are both 'movie_embeddings'"),
        ({"user_id_type": "int"}, "user_id_type: Input should be 'bigint', 'text' or 'uuid' (given: 'int')"),
        ({"public_read": "all"}, "public_read: Input should be 'none' or 'movies' (given: 'all')"),
        ({"users_table": "x"}, "users_table: "),
        ({"items_table": "movies", "items_filter": "year,found"}, "the column 'found' has the name of an argument"),
    ],
)
def test_an_invalid_name_or_type_is_refused_in_one_line(values, said):
    with pytest.raises(ConfigError) as error:
        SchemaConfig.of(**values)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("in_stock; drop table x", 'without ";"'),
        ("in_stock -- and", 'without comments ("--")'),
        ("in_stock /* and */", 'without comments ("/*")'),
        ("title = $$x$$", 'without "$"'),
        ("true) or (true", "whose parentheses match"),
        ("(in_stock", "whose parentheses match"),
        ("title = 'x", "whose quotes are closed"),
        ('"title = 1', "whose quotes are closed"),
        (r"title = E'\') or (true --'", "without escape strings"),
        ("title = 'a;b--(' and \"odd; (\" = 'it''s'", ""),
    ],
)
def test_items_where_is_one_condition_and_stays_within_its_parentheses(where, said):
    if said:
        with pytest.raises(ConfigError, match=re.escape(said)):
            SchemaConfig.of(items_table="movies", items_where=where)
    else:
        assert SchemaConfig.of(items_table="movies", items_where=where).items_where == where


def test_an_export_takes_the_same_view_names_and_no_empty_batches():
    assert ExportConfig().movie_export_table == SchemaConfig().movie_export_table
    with pytest.raises(ConfigError, match=r"rows_per_request: .* greater than or equal to 1 \(given: 0\)"):
        ExportConfig.of(rows_per_request=0)
