"""Stand-in for Supabase Auth (GoTrue): sign-up, sign-in by password, anonymous users, refresh and sign-out.

It answers what supabase-js and supabase-py send, with users in ``auth.users`` as in a project. Every e-mail address
counts as confirmed, and no message is sent. There is no OAuth, one-time password, phone, MFA or rate limit.
"""

import datetime
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import psycopg
from psycopg.rows import dict_row

from mf.local.keys import jwt, jwt_claims

TOKEN_VALID_S = 3600
MIN_PASSWORD = 6
# Errors of this version have the code in `code`: https://supabase.com/docs/guides/auth/debugging/error-codes
API_VERSION = ("X-Supabase-Api-Version", "2024-01-01")
USER = "id, email, raw_app_meta_data, raw_user_meta_data, is_anonymous, created_at, updated_at, last_sign_in_at"

# The part of GoTrue's tables that is used here.
TABLES = """
create table if not exists auth.users (
  id uuid primary key default gen_random_uuid(),
  aud text default 'authenticated',
  role text default 'authenticated',
  email text unique,
  encrypted_password text,
  email_confirmed_at timestamptz,
  raw_app_meta_data jsonb not null default '{}',
  raw_user_meta_data jsonb not null default '{}',
  is_anonymous boolean not null default false,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  last_sign_in_at timestamptz
);
create table if not exists auth.sessions (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users on delete cascade,
  method text not null,
  created_at timestamptz not null default now()
);
create table if not exists auth.refresh_tokens (
  token text primary key,
  session_id uuid not null references auth.sessions on delete cascade,
  revoked boolean not null default false
);
alter table auth.users enable row level security;
alter table auth.sessions enable row level security;
alter table auth.refresh_tokens enable row level security;
"""

Answer = tuple[int, Any]  # status and the body, which becomes JSON


class AuthError(Exception):
    """An error response, with GoTrue's code and message."""

    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, {"code": code, "message": message, **more}


class Call(NamedTuple):
    """A request to the stand-in, inside a transaction."""

    connection: psycopg.Connection[dict[str, Any]]
    path: str
    query: Mapping[str, str]
    body: Mapping[str, Any]
    claims: Mapping[str, Any]  # of the bearer token; empty: it is invalid


class Auth:
    """Answers requests to ``/auth/v1/…``.

    Args:
        connect: opens a connection of the superuser to the project's database.
        jwt_secret: signs the users' tokens.
    """

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], jwt_secret: str) -> None:
        self._connect, self._secret = connect, jwt_secret

    def answer(self, method: str, path: str, body: bytes, bearer: str) -> Answer:
        """Status and body of the response; ``path`` is without ``/auth/v1``, with its query."""
        url = urlsplit(path)
        respond = self._route(method, url.path)
        if respond is None:
            return 404, {"code": "not_found", "message": f"{method} {url.path} is not a part of the embedded Supabase"}
        try:
            given = json.loads(body or b"{}")
        except ValueError:
            given = None
        if not isinstance(given, dict):
            return 400, {"code": "bad_json", "message": "Could not parse request body as JSON"}
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        try:
            with self._connect() as connection, connection.transaction():
                connection.row_factory = dict_row
                return respond(Call(connection, url.path, query, given, jwt_claims(self._secret, bearer)))
        except AuthError as error:
            return error.status, error.body
        except psycopg.Error as error:  # of a trigger on auth.users, for one
            message = f"Database error: {error.diag.message_primary or str(error)}"
            return 500, {"code": "unexpected_failure", "message": message}

    def _route(self, method: str, path: str) -> Callable[[Call], Answer] | None:
        if re.fullmatch("/admin/users/[^/]+", path):
            return {"GET": self._admin_get, "DELETE": self._admin_delete}.get(method)
        return {
            ("GET", "/health"): lambda _: (200, {"name": "mf.local"}),
            ("GET", "/settings"): lambda _: (200, {"external": {"email": True, "anonymous_users": True}}),
            ("GET", "/.well-known/jwks.json"): lambda _: (200, {"keys": []}),
            ("POST", "/signup"): self._sign_up,
            ("POST", "/token"): self._token,
            ("GET", "/user"): self._get_user,
            ("PUT", "/user"): self._update_user,
            ("POST", "/logout"): self._sign_out,
            ("GET", "/admin/users"): self._admin_list,
            ("POST", "/admin/users"): self._admin_create,
        }.get((method, path))

    def _sign_up(self, call: Call) -> Answer:
        anonymous = not call.body.get("email")
        user = _create_user(call, call.body.get("data") or {}, anonymous=anonymous)
        return 200, self._session(call, user, "anonymous" if anonymous else "password")

    def _token(self, call: Call) -> Answer:
        if call.query.get("grant_type") == "password":
            row = _one(
                call,
                f"select {USER}, encrypted_password from auth.users where email = lower(%s)",  # noqa: S608
                str(call.body.get("email")),
            )
            if row is None or not _matches(str(call.body.get("password")), row["encrypted_password"]):
                raise AuthError(400, "invalid_credentials", "Invalid login credentials")
            return 200, self._session(call, row, "password")
        if call.query.get("grant_type") == "refresh_token":
            return 200, self._refresh(call)
        raise AuthError(400, "unsupported_grant_type", "expected grant_type password or refresh_token")

    def _refresh(self, call: Call) -> dict[str, Any]:
        row = _one(
            call,
            "update auth.refresh_tokens t set revoked = true from auth.sessions s "
            "where t.token = %s and not t.revoked and s.id = t.session_id returning s.id, s.user_id, s.method",
            str(call.body.get("refresh_token")),
        )
        if row is None:
            raise AuthError(400, "refresh_token_not_found", "Invalid Refresh Token: Refresh Token Not Found")
        return self._session(call, _user(call, row["user_id"]), row["method"], row["id"])

    def _session(self, call: Call, user: dict[str, Any], method: str, session: Any = None) -> dict[str, Any]:
        """The response to a sign-in: an access token of an hour, and a refresh token."""
        connection = call.connection
        if session is None:
            new = _one(
                call, "insert into auth.sessions (user_id, method) values (%s, %s) returning id", user["id"], method
            )
            assert new
            session = new["id"]
            connection.execute("update auth.users set last_sign_in_at = now() where id = %s", [user["id"]])
        refresh_token = secrets.token_urlsafe(16)
        connection.execute(
            "insert into auth.refresh_tokens (token, session_id) values (%s, %s)", [refresh_token, session]
        )
        now, shown = int(time.time()), _shown(_user(call, user["id"]))
        claims = {key: shown[key] for key in ("email", "phone", "app_metadata", "user_metadata", "is_anonymous")}
        token = jwt(
            self._secret, "authenticated", valid_s=TOKEN_VALID_S, sub=shown["id"], aud="authenticated",
            session_id=str(session), aal="aal1", amr=[{"method": method, "timestamp": now}], **claims,
        )  # fmt: skip
        return {
            "access_token": token, "token_type": "bearer", "expires_in": TOKEN_VALID_S,
            "expires_at": now + TOKEN_VALID_S, "refresh_token": refresh_token, "user": shown,
        }  # fmt: skip

    def _get_user(self, call: Call) -> Answer:
        return 200, _shown(_signed_in(call))

    def _update_user(self, call: Call) -> Answer:
        user, given = _signed_in(call), call.body
        if email := given.get("email"):
            _check_email(call, email, user["id"])
            call.connection.execute(
                "update auth.users set email = lower(%s), email_confirmed_at = now(), is_anonymous = false, "
                "raw_app_meta_data = %s where id = %s",
                [email, json.dumps(_app_metadata(anonymous=False)), user["id"]],
            )
        if password := given.get("password"):
            call.connection.execute(
                "update auth.users set encrypted_password = %s where id = %s", [password_hash(password), user["id"]]
            )
        call.connection.execute(
            "update auth.users set raw_user_meta_data = raw_user_meta_data || %s, updated_at = now() where id = %s",
            [json.dumps(given.get("data") or {}), user["id"]],
        )
        return 200, _shown(_user(call, user["id"]))

    def _sign_out(self, call: Call) -> Answer:
        user, own = _signed_in(call), call.claims.get("session_id")
        which = {"local": "and id = %s", "others": "and id <> %s"}.get(call.query.get("scope", "global"), "")
        call.connection.execute(
            f"delete from auth.sessions where user_id = %s {which}",  # noqa: S608
            [user["id"], own] if which else [user["id"]],
        )
        return 204, None

    def _admin_list(self, call: Call) -> Answer:
        _check_admin(call)
        size = min(_number(call, "per_page", 50), 1000)
        rows = call.connection.execute(
            f"select {USER} from auth.users order by created_at desc, id limit %s offset %s",  # noqa: S608
            [size, size * (_number(call, "page", 1) - 1)],
        )
        return 200, {"users": [_shown(row) for row in rows.fetchall()], "aud": "authenticated"}

    def _admin_create(self, call: Call) -> Answer:
        _check_admin(call)
        return 200, _shown(_create_user(call, call.body.get("user_metadata") or {}, anonymous=False))

    def _admin_get(self, call: Call) -> Answer:
        _check_admin(call)
        return 200, _shown(_user(call, call.path.rpartition("/")[2]))

    def _admin_delete(self, call: Call) -> Answer:
        _check_admin(call)
        user = _user(call, call.path.rpartition("/")[2])
        call.connection.execute("delete from auth.users where id = %s", [user["id"]])
        return 200, {}


def password_hash(password: Any) -> str:
    """A salted scrypt hash of a password, as kept in ``auth.users.encrypted_password``."""
    if not isinstance(password, str) or len(password) < MIN_PASSWORD:
        raise AuthError(
            422,
            "weak_password",
            f"Password should be at least {MIN_PASSWORD} characters.",
            weak_password={"reasons": ["length"]},
        )
    salt = secrets.token_hex(8)
    return f"scrypt:{salt}:{_scrypt(password, salt)}"


def _scrypt(password: str, salt: str) -> str:
    return hashlib.scrypt(password.encode(), salt=salt.encode(), n=2**14, r=8, p=1).hex()


def _matches(password: str, stored: str | None) -> bool:
    kind, _, rest = (stored or "").partition(":")
    salt, _, digest = rest.partition(":")
    return kind == "scrypt" and hmac.compare_digest(_scrypt(password, salt), digest)


def _create_user(call: Call, metadata: Any, *, anonymous: bool) -> dict[str, Any]:
    email, password = None, None
    if not anonymous:
        email = call.body.get("email")
        _check_email(call, email)
        password = password_hash(call.body.get("password"))
    row = _one(
        call,
        "insert into auth.users (email, encrypted_password, email_confirmed_at, raw_app_meta_data, "
        "raw_user_meta_data, is_anonymous) values (lower(%s), %s, case when %s then null else now() end, %s, %s, %s) "
        "returning id",
        email, password, anonymous, json.dumps(_app_metadata(anonymous=anonymous)), json.dumps(metadata), anonymous,
    )  # fmt: skip
    assert row
    return _user(call, row["id"])


def _app_metadata(*, anonymous: bool) -> dict[str, Any]:
    return {} if anonymous else {"provider": "email", "providers": ["email"]}


def _check_email(call: Call, email: Any, owner: Any = None) -> None:
    if not isinstance(email, str) or not re.fullmatch(r"[^@\s]+@[^@\s]+", email):
        raise AuthError(400, "validation_failed", "Unable to validate email address: invalid format")
    if _one(call, "select id from auth.users where email = lower(%s) and id is distinct from %s::uuid", email, owner):
        raise AuthError(422, "user_already_exists", "User already registered")


def _check_admin(call: Call) -> None:
    if call.claims.get("role") != "service_role":
        raise AuthError(403, "not_admin", "User not allowed: the secret key is needed")


def _signed_in(call: Call) -> dict[str, Any]:
    """The user of the bearer token."""
    if call.claims.get("role") != "authenticated":
        raise AuthError(403, "bad_jwt", "invalid JWT: no user is signed in, or the token has expired")
    session = call.claims.get("session_id")
    if session and _one(call, "select id from auth.sessions where id = %s", session) is None:
        raise AuthError(403, "session_not_found", "Session from session_id claim in JWT does not exist")
    return _user(call, call.claims["sub"], status=403)


def _user(call: Call, user_id: Any, *, status: int = 404) -> dict[str, Any]:
    row = _one(call, f"select {USER} from auth.users where id::text = %s", str(user_id))  # noqa: S608
    if row is None:
        raise AuthError(status, "user_not_found", "User not found")
    return row


def _number(call: Call, name: str, default: int) -> int:
    text = call.query.get(name, "")
    return max(1, int(text)) if text.isdecimal() else default


def _one(call: Call, query: str, *values: Any) -> dict[str, Any] | None:
    return call.connection.execute(query.encode(), values).fetchone()


def _shown(user: Mapping[str, Any]) -> dict[str, Any]:
    """A user as the API returns it."""

    def when(value: datetime.datetime | None) -> str | None:
        return value.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z") if value else None

    confirmed = None if user["is_anonymous"] else when(user["created_at"])
    return {
        "id": str(user["id"]), "aud": "authenticated", "role": "authenticated", "email": user["email"] or "",
        "email_confirmed_at": confirmed, "phone": "", "confirmed_at": confirmed,
        "last_sign_in_at": when(user["last_sign_in_at"]), "app_metadata": user["raw_app_meta_data"],
        "user_metadata": user["raw_user_meta_data"], "identities": [], "is_anonymous": user["is_anonymous"],
        "created_at": when(user["created_at"]), "updated_at": when(user["updated_at"]),
    }  # fmt: skip
