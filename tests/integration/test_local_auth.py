"""Sign-in of the embedded Supabase, with supabase-js and supabase-py as they are."""

import json
from collections.abc import Iterator

import httpx
import pytest
from browser import watch
from playwright.sync_api import Browser, Page
from supabase import AuthApiError, Client, ClientOptions, create_client

from mf.local import LocalSupabase
from mf.local.gateway import Page as Served
from mf.local.tools import default_cache, supabase_js

PROJECT = """
create table notes (id int primary key, owner uuid references auth.users on delete cascade default auth.uid());
alter table notes enable row level security;
create policy own on notes for all to authenticated using (owner = auth.uid()) with check (owner = auth.uid());
grant select, insert on notes to authenticated;
grant select on notes to service_role;
"""


@pytest.fixture(scope="module")
def project(fresh_stack) -> LocalSupabase:
    database = fresh_stack(legacy_grants=False)
    database.migrate(PROJECT)
    return database


@pytest.fixture
def page(project, browser: Browser) -> Iterator[Page]:
    """A page of another origin than the API, with a client of supabase-js in ``sb``."""
    project.gateway.pages["/supabase.js"] = Served("text/javascript", supabase_js(default_cache()).read_bytes)
    html = b'<link rel="icon" href="data:,"><script src="/supabase.js"></script>'
    project.gateway.pages["/"] = Served("text/html", lambda: html)
    page = browser.new_page()
    page.goto(project.url.replace("127.0.0.1", "localhost"))
    key = json.dumps([project.url, project.publishable_key])
    page.evaluate(f"window.sb = supabase.createClient(...{key}); window.other = supabase.createClient(...{key}, "
                  "{auth: {persistSession: false, storageKey: 'other'}}); null")  # fmt: skip
    yield page
    page.close()


def client(project: LocalSupabase, key: str = "") -> Client:
    http = httpx.Client(trust_env=False)
    return create_client(project.url, key or project.publishable_key, ClientOptions(httpx_client=http))


def test_supabase_js_signs_up_out_and_in_refreshes_and_the_database_knows_the_user(project, page):
    seen = watch(page)
    result = page.evaluate("""async () => {
        const ok = answer => { if (answer.error) throw answer.error; return answer.data }
        const told = []
        sb.auth.onAuthStateChange(event => told.push(event))
        const { user, session } = ok(await sb.auth.signUp(
            { email: 'Ada@example.com', password: 'secret-1', options: { data: { name: 'Ada' } } }))
        ok(await sb.from('notes').insert({ id: 1 }))
        await sb.auth.signOut()
        const signedOut = ok(await sb.auth.getSession()).session
        const again = ok(await sb.auth.signInWithPassword({ email: 'ada@example.com', password: 'secret-1' }))
        const got = ok(await sb.auth.getUser()).user
        const refreshed = ok(await sb.auth.refreshSession()).session
        const claims = ok(await sb.auth.getClaims()).claims
        const notes = ok(await sb.from('notes').select('id, owner'))
        await sb.auth.signOut({ scope: 'local' })
        return { user, expires: session.expires_in, signedOut, again: again.user.id, got, claims, notes, told,
            renewed: refreshed.refresh_token !== again.session.refresh_token }
    }""")
    user = result["user"]["id"]
    assert result["user"]["email"] == "ada@example.com"
    assert result["user"]["user_metadata"] == {"name": "Ada"}
    assert (result["again"], result["got"]["id"], result["claims"]["sub"]) == (user, user, user)
    assert (result["claims"]["role"], result["claims"]["aud"]) == ("authenticated", "authenticated")
    assert (result["expires"], result["signedOut"], result["renewed"]) == (3600, None, True)
    assert result["notes"] == [{"id": 1, "owner": user}]
    assert {"SIGNED_IN", "SIGNED_OUT", "TOKEN_REFRESHED"} <= set(result["told"])
    assert (seen.errors, seen.failed) == ([], [])


def test_an_anonymous_user_of_supabase_js_stays_the_same_when_given_an_address(project, page):
    result = page.evaluate("""async () => {
        const ok = answer => { if (answer.error) throw answer.error; return answer.data }
        const { user } = ok(await sb.auth.signInAnonymously())
        ok(await sb.from('notes').insert({ id: 2 }))
        ok(await sb.auth.updateUser({ email: 'bob@example.com', password: 'secret-2' }))
        await sb.auth.signOut()
        const later = ok(await sb.auth.signInWithPassword({ email: 'bob@example.com', password: 'secret-2' })).user
        const notes = ok(await sb.from('notes').select('id'))
        return { first: user.is_anonymous, later: later.is_anonymous, same: user.id === later.id, notes }
    }""")
    assert result == {"first": True, "later": False, "same": True, "notes": [{"id": 2}]}


def test_supabase_js_is_told_the_codes_of_supabases_errors(project, page):
    codes = page.evaluate("""async () => {
        const code = async asked => (await asked).error?.code
        await other.auth.signUp({ email: 'eve@example.com', password: 'secret-3' })
        return [
            await code(sb.auth.signInWithPassword({ email: 'eve@example.com', password: 'wrong' })),
            await code(sb.auth.signInWithPassword({ email: 'nobody@example.com', password: 'secret-3' })),
            await code(sb.auth.signUp({ email: 'EVE@example.com', password: 'secret-3' })),
            await code(sb.auth.signUp({ email: 'short@example.com', password: 'abc' })),
            await code(sb.auth.signUp({ email: 'no address', password: 'secret-3' })),
            await code(sb.auth.refreshSession({ refresh_token: 'none' })),
            await code(other.auth.admin.listUsers()),
        ]
    }""")
    assert codes == [
        "invalid_credentials", "invalid_credentials", "user_already_exists", "weak_password", "validation_failed",
        "refresh_token_not_found", "not_admin",
    ]  # fmt: skip


def test_a_signed_out_session_neither_refreshes_nor_has_a_user(project):
    one = client(project)
    session = one.auth.sign_up({"email": "kim@example.com", "password": "secret-4"}).session
    other = client(project)
    other.auth.sign_in_with_password({"email": "kim@example.com", "password": "secret-4"})
    other.auth.sign_out()  # everywhere
    with pytest.raises(AuthApiError, match="Refresh Token Not Found"):
        one.auth.refresh_session(session.refresh_token)
    headers = {"apikey": project.publishable_key, "Authorization": f"Bearer {session.access_token}"}
    answer = httpx.get(f"{project.url}/auth/v1/user", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "session_not_found")


def test_the_secret_key_lists_creates_and_deletes_users_with_their_rows(project):
    admin = client(project, project.secret_key)
    user = admin.auth.admin.create_user({"email": "lee@example.com", "password": "secret-5"}).user
    signed_in = client(project)
    signed_in.auth.sign_in_with_password({"email": "lee@example.com", "password": "secret-5"})
    signed_in.table("notes").insert({"id": 3}).execute()
    assert user.id in [each.id for each in admin.auth.admin.list_users()]
    admin.auth.admin.delete_user(user.id)
    assert admin.table("notes").select("id").eq("id", 3).execute().data == []
    with pytest.raises(AuthApiError, match="User not found"):
        admin.auth.admin.get_user_by_id(user.id)
    with pytest.raises(AuthApiError, match="not allowed"):
        client(project).auth.admin.delete_user(user.id)


def test_requests_that_the_stand_in_does_not_know_are_refused_by_name(project):
    headers = {"apikey": project.publishable_key}
    answer = httpx.post(f"{project.url}/auth/v1/otp", headers=headers, json={})
    assert (answer.status_code, answer.json()["message"]) == (
        404, "POST /otp is not a part of the embedded Supabase"
    )  # fmt: skip
    assert httpx.post(f"{project.url}/auth/v1/signup", headers=headers, content="[]").json()["code"] == "bad_json"
    assert httpx.post(f"{project.url}/auth/v1/signup", json={}).status_code == 401
