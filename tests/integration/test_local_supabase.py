"""The embedded Supabase behaves as Supabase does, keeps its data, and leaves nothing running."""

import httpx
import pytest
from supabase import ClientOptions, create_client

from mf.local import LocalSupabase


@pytest.fixture(scope="module")
def sb(fresh_stack) -> LocalSupabase:
    """A project of today (no default grants), with three movies that only the service role may read."""
    supabase = fresh_stack(legacy_grants=False, max_rows=2)
    supabase.migrate(
        "create table movies (movie_id int primary key, v extensions.vector);"
        "grant all on movies to service_role; insert into movies values (1, '[1,2]'), (2, '[3,4]'), (3, '[5,6]')"
    )
    return supabase


def get(sb: LocalSupabase, path: str, key: str, bearer: str | None = None) -> httpx.Response:
    headers = {"apikey": key, "Authorization": f"Bearer {bearer or key}"}
    return httpx.get(f"{sb.url}/rest/v1/{path}", headers=headers, timeout=10)


def test_supabase_py_reads_and_writes_with_the_secret_key(sb):
    with httpx.Client() as http:
        client = create_client(sb.url, sb.secret_key, ClientOptions(httpx_client=http))
        client.table("movies").upsert({"movie_id": 3, "v": "[7,8]"}).execute()
        assert client.table("movies").select("*").eq("movie_id", 3).execute().data == [{"movie_id": 3, "v": "[7,8]"}]


def test_an_answer_holds_no_more_than_max_rows(sb):
    assert len(get(sb, "movies", sb.service_role_key).json()) == 2
