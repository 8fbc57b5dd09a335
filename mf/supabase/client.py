"""Supabase REST client: retries of transient errors, one-line error messages."""

import functools
import logging
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
import orjson
import tenacity
from postgrest.exceptions import APIError, generate_default_error_message
from supabase import Client, ClientOptions, create_client

from mf.errors import SupabaseError
from mf.supabase.credentials import Credentials

TIMEOUT_S = 60.0
TRIES = 8
MAX_RETRY_AFTER_S = 120.0  # longest Retry-After that is honoured
# Transient errors by SQLSTATE or PostgREST code: cancelled by timeout, serialization failure, deadlock, lock timeout,
# too many connections, database starting, stopping or gone, PostgREST without a connection.
TRANSIENT = {
    "57014", "40001", "40P01", "55P03", "53300", "57P01", "57P02", "57P03", "08000", "08003", "08006",
    "PGRST000", "PGRST001", "PGRST002", "PGRST003",
}  # fmt: skip
# A proxy's 5xx is transient too, except for features it lacks.
PERMANENT_STATUS = (501, 505, 511)
PAUSED = 540  # Supabase's status of a paused project
NO_RESPONSE = "no response"  # in place of a code in ``hints``: the time limit of the client or of a proxy
T = TypeVar("T")
_server = threading.local()  # .retry_after_s: seconds, from this thread's last response


class _NotJSONError(Exception):
    """Status 200 with a body that is not JSON: a proxy's page, or a truncated or empty response."""


class _PausedError(Exception):
    """The project is paused."""


class _TransientStatusError(Exception):
    """A transient status of a proxy: too many requests, no response from the server behind it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} {httpx.codes.get_reason_phrase(status)}".strip())


@contextmanager
def connect(credentials: Credentials) -> Iterator[Client]:
    """A supabase-py client, closed at the end of the block.

    It uses its own ``httpx.Client`` (HTTP/1.1: uploads are faster, and supabase-py's own client warns). ``call``
    retries, not postgrest-py, which retries only GET and two statuses.
    """
    # httpx logs every URL at INFO, and hpack every header, the key among them, at DEBUG.
    for name in ("httpx", "httpcore", "hpack"):
        logging.getLogger(name).setLevel(logging.WARNING)
    hooks = {"response": [_check_response]}
    with httpx.Client(
        timeout=TIMEOUT_S, http2=False, follow_redirects=False, event_hooks=hooks, verify=_certificates()
    ) as http:
        options = ClientOptions(httpx_client=http, auto_refresh_token=False, persist_session=False)
        yield create_client(credentials.url, credentials.key.get_secret_value(), options)


@functools.cache
def _certificates() -> ssl.SSLContext:
    # Loaded once: it takes longer than a request, and an export or an import opens several clients.
    return httpx.create_ssl_context()


def _check_response(response: httpx.Response) -> None:
    """Response hook: keep Retry-After, raise for an empty body or a transient status, which postgrest-py hides."""
    _server.retry_after_s = _retry_after(response.headers.get("Retry-After", ""))
    # postgrest-py turns an empty body into an empty list, which a reader would take for the end of the table.
    if response.request.method == "GET" and response.is_success and not response.read():
        raise _NotJSONError("")
    status = response.status_code
    if status == PAUSED:
        raise _PausedError
    if status in (408, 425, 429) or (
        status >= 500 and status not in PERMANENT_STATUS and not _has_error_code(response.read())
    ):
        raise _TransientStatusError(status)


def _has_error_code(body: bytes) -> bool:
    """Whether the error comes from the database or PostgREST, not from a proxy."""
    return re.fullmatch(r"[0-9A-Z]{5}|PGRST\w+", str(_error_fields(body).get("code"))) is not None


def _error_fields(body: bytes) -> dict[str, Any]:
    """The JSON object of an error response, empty if the body is not one."""
    with suppress(ValueError):
        fields = orjson.loads(body)
        if isinstance(fields, dict):
            return fields
    return {}


def _retry_after(retry_after: str) -> float:
    """Seconds in a Retry-After header (RFC 9110, 10.2.3), which is a number or a date; 0 if malformed."""
    with suppress(ValueError):
        if not retry_after.isdigit():
            moment = parsedate_to_datetime(retry_after)
            retry_after = str(max(0, round(moment.timestamp() - time.time())))
        return min(float(retry_after), MAX_RETRY_AFTER_S)
    return 0.0


def _wait(state: tenacity.RetryCallState) -> float:
    """Retry-After plus exponential backoff with jitter, so that waiting clients do not return all at once."""
    retry_after_s, _server.retry_after_s = getattr(_server, "retry_after_s", 0.0), 0.0
    return retry_after_s + float(tenacity.wait_random_exponential(multiplier=0.25, max=30)(state))


def call(request: Any, doing: str, hints: Mapping[str, str] | None = None) -> Any:
    """Execute a supabase-py request (``table(…).select(…)``, ``rpc(…)``, …) with retries and return its ``data``.

    Every request of this library is idempotent, so every transient error is retried: up to ``TRIES`` attempts, with
    exponential backoff of at most half a minute beyond the server's Retry-After.

    Args:
        request: a request builder with ``execute()``.
        doing: what the caller is doing, for the error message: ``read table ratings``.
        hints: advice by error code, which takes precedence over the advice of ``explain``.

    Raises:
        SupabaseError: with the server's message, and advice where there is any.
    """
    return call_response(request, doing, hints).data


def call_response(request: Any, doing: str, hints: Mapping[str, str] | None = None) -> Any:
    """As ``call``, but return the whole response (``data`` and ``count``)."""
    return _retried(_execute, request.retry(False) if hasattr(request, "retry") else request, doing, hints)


def call_read(request: Any, read: Callable[[bytes], T], doing: str, hints: Mapping[str, str] | None = None) -> T:
    """As ``call``, for a ``select`` of many rows: return ``read(body)``, the body being JSON. A ValueError of ``read``
    means that it is not."""
    return _retried(functools.partial(_read, read), request, doing, hints)


def _retried(execute: Callable[[Any], T], request: Any, doing: str, hints: Mapping[str, str] | None) -> T:
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(TRIES),
        wait=_wait,
        retry=tenacity.retry_if_exception(_is_transient),
        reraise=True,
    )
    try:
        return retrying(execute, request)
    except (APIError, httpx.HTTPError, _NotJSONError, _PausedError, _TransientStatusError) as error:
        message, code = explain(error, doing, hints), str(getattr(error, "code", None) or "")
    # Raised outside of the handler: the exception's frames hold the request, which carries the key.
    raise SupabaseError(message, code)


def _execute(request: Any) -> Any:
    response = request.execute()
    if isinstance(response.data, str) and response.data:
        raise _NotJSONError(response.data[:80])
    return response


def _read(read: Callable[[bytes], T], request: Any) -> T:
    response = request.request.send(httpx.Headers())
    if not response.is_success:
        raise APIError(_error_fields(response.content) or generate_default_error_message(response))
    try:
        return read(response.content)
    except ValueError:
        raise _NotJSONError(response.text[:80]) from None


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, APIError):
        # The clocks of the server that signs and the one that checks differ by a moment.
        return _is_early(error) or str(error.code) in TRANSIENT
    return isinstance(error, httpx.TransportError | _NotJSONError | _TransientStatusError) and not isinstance(
        error, httpx.UnsupportedProtocol | httpx.LocalProtocolError
    )


def _is_early(error: APIError) -> bool:
    """Whether the API takes the key for one of the future."""
    message = str(error.message)
    return str(error.code) in ("PGRST301", "PGRST303") and ("future" in message or "not yet valid" in message)


def explain(error: Exception, doing: str, hints: Mapping[str, str] | None = None) -> str:
    """One sentence: what failed, why, and what to do; ``hints`` take precedence over the built-in advice."""
    if isinstance(error, _NotJSONError):
        return f"cannot {doing}: the response is not JSON ({str(error)!r}): is this the URL of a Supabase project?"
    if isinstance(error, _PausedError):
        return f"cannot {doing}: the project is paused: restore it in the dashboard, and run this again"
    if isinstance(error, _TransientStatusError):
        advice = dict(hints or {}).get(NO_RESPONSE, "try again later")
        return f"cannot {doing}: the server still responds {error}: {advice}"
    if isinstance(error, httpx.LocalProtocolError):
        # Its text shows the header that cannot be sent, usually the key.
        return f"cannot {doing}: the request cannot be sent: check SUPABASE_KEY and the URL"
    if not isinstance(error, APIError):
        reason = str(error) or type(error).__name__
        advice = "check the URL and the network"
        if isinstance(error, httpx.ReadTimeout):
            advice = dict(hints or {}).get(NO_RESPONSE, advice)
        return f"cannot {doing}: no response from Supabase ({reason}): {advice}"
    message = " ".join(str(error.message or error.details or "no message").split())
    hint = (_HINTS | dict(hints or {})).get(str(error.code))
    if "expired" in message and str(error.code) in ("PGRST301", "PGRST303"):
        hint = "the key has expired: copy the project's secret key again"
    elif _is_early(error):
        hint = "the clocks of the servers differ: try again later"
    if hint is None and "api key" in message.lower():
        hint = "check SUPABASE_KEY: it must be the secret key of this project (sb_secret_… or the service_role JWT)"
    code = f" ({error.code})" if error.code else ""
    return f"cannot {doing}: {message}{code}" + (f": {hint}" if hint else "")


_GRANT = (
    "the key's role lacks a grant: use the secret (service_role) key, and grant it what it needs (see docs/supabase.md)"
)
_MIGRATE = "is the name right, and is the migration applied? `python -m mf schema` prints it"
_ELSEWHERE = "is this the URL of a Supabase project? It is the project's own, https://PROJECT.supabase.co"
_FULL = "the project's disk is full, or it is over its quota: see its usage in the dashboard"
_NO_DATABASE = "the API has no connection to its database: look at the project's state in the dashboard, and try again"
_HINTS = {
    **dict.fromkeys(("PGRST000", "PGRST001", "PGRST002", "PGRST003"), _NO_DATABASE),
    **dict.fromkeys(("301", "302", "303", "307", "308", "404", "PGRST125"), _ELSEWHERE),
    "402": "the project is over the quota of its plan: see its usage in the dashboard",
    "403": "a firewall or proxy refused the request: look at the project's network restrictions, and at a proxy here",
    "25006": _FULL,
    "53100": _FULL,
    "42501": _GRANT,
    "42P01": _MIGRATE,
    "PGRST205": _MIGRATE,
    "PGRST202": _MIGRATE,
    "42883": _MIGRATE,
    "42703": "the table has no such column: check the name",
    "PGRST204": "the table has no such column: check the name",
    "PGRST301": "check SUPABASE_KEY: it is not a key of this project",
    "PGRST303": "check SUPABASE_KEY: the API does not accept what the key says",
    "PGRST302": "the API was given no key that it accepts: check SUPABASE_KEY, and that no proxy takes the header off",
    "PGRST106": "add the schema public to the exposed schemas (Project Settings → Data API)",
    "401": "check SUPABASE_KEY: it is not a key of this project",
    "57014": "the statement took longer than the server allows",
}
