"""The way to Supabase's REST API: one client, retries for what passes, one-line errors for what does not."""

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
LONGEST_PAUSE_S = 120.0  # that a server is obeyed in
# Passing faults that the database or PostgREST names, by SQLSTATE or code: cancelled by timeout, serialization,
# deadlock, lock, too many connections, database starting, stopping or gone, no connection from PostgREST.
TRANSIENT = {
    "57014", "40001", "40P01", "55P03", "53300", "57P01", "57P02", "57P03", "08000", "08003", "08006",
    "PGRST000", "PGRST001", "PGRST002", "PGRST003",
}  # fmt: skip
# What a proxy answers in the database's place passes too, but for what it does not know, and for a project that is
# paused (540).
LASTING_STATUS = (501, 505, 511, 540)
T = TypeVar("T")
_pause = threading.local()  # seconds that the last answer asked for


class _CutResponseError(Exception):
    """Status 200 and a body that is no JSON: a proxy's page, or an answer cut on the way, to nothing at worst."""


class _PassingStatusError(Exception):
    """A status that passes, from a proxy: too many requests, no answer from the server behind it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} {httpx.codes.get_reason_phrase(status)}".strip())


@contextmanager
def connect(credentials: Credentials) -> Iterator[Client]:
    """A supabase-py client, closed at the end of the block.

    It has its own ``httpx.Client`` (HTTP/1.1: uploads are faster, and supabase-py's own one warns), and retries are
    ``call``'s, not postgrest-py's, which knows only GET and two statuses.
    """
    # httpx logs every URL at INFO, and hpack every header, the key among them, at DEBUG.
    for name in ("httpx", "httpcore", "hpack"):
        logging.getLogger(name).setLevel(logging.WARNING)
    hooks = {"response": [_look]}
    with httpx.Client(
        timeout=TIMEOUT_S, http2=False, follow_redirects=False, event_hooks=hooks, verify=_certificates()
    ) as http:
        options = ClientOptions(httpx_client=http, auto_refresh_token=False, persist_session=False)
        yield create_client(credentials.url, credentials.key.get_secret_value(), options)


@functools.cache
def _certificates() -> ssl.SSLContext:
    # Read once: it takes longer than a request, and an export or an import makes several clients.
    return httpx.create_ssl_context()


def _look(response: httpx.Response) -> None:
    """Sees what postgrest-py keeps to itself."""
    _pause.seconds = _asked_for(response.headers.get("Retry-After", ""))
    # postgrest-py makes an empty list of it, and a reader would take that for the table's end.
    if response.request.method == "GET" and response.is_success and not response.read():
        raise _CutResponseError("")
    status = response.status_code
    if status in (408, 425, 429) or (status >= 500 and status not in LASTING_STATUS and not _is_named(response.read())):
        raise _PassingStatusError(status)


def _is_named(body: bytes) -> bool:
    """Whether the database or PostgREST says what is wrong."""
    return re.fullmatch(r"[0-9A-Z]{5}|PGRST\w+", str(_said(body).get("code"))) is not None


def _said(body: bytes) -> dict[str, Any]:
    """The error that the body of an answer describes; empty where it describes none."""
    with suppress(ValueError):
        said = orjson.loads(body)
        if isinstance(said, dict):
            return said
    return {}


def _asked_for(retry_after: str) -> float:
    """The seconds of a Retry-After header (RFC 9110, 10.2.3), which is a number or a date."""
    with suppress(ValueError):
        if not retry_after.isdigit():
            moment = parsedate_to_datetime(retry_after)
            retry_after = str(max(0, round(moment.timestamp() - time.time())))
        return min(float(retry_after), LONGEST_PAUSE_S)
    return 0.0


def _wait(state: tenacity.RetryCallState) -> float:
    """What the server asked for, and a growing random time beside it, lest all that wait come back at once."""
    asked, _pause.seconds = getattr(_pause, "seconds", 0.0), 0.0
    return asked + float(tenacity.wait_random_exponential(multiplier=0.25, max=30)(state))


def call(request: Any, doing: str, hints: Mapping[str, str] | None = None) -> Any:
    """Executes a supabase-py request builder (``table(…).select(…)``, ``rpc(…)``, …) and gives its ``data``.

    Every request of this library may be sent twice (reads, upserts, functions that change nothing the second time), so
    every passing fault is waited out: up to ``TRIES`` tries, with growing random pauses of half a minute at most beside
    what the server asks for.

    Args:
        request: what has ``execute()``.
        doing: what the caller does, for the error: ``read table ratings``.
        hints: what to do, by error code, where the caller knows better than ``explain``.

    Raises:
        SupabaseError: with the server's own message, and what to do where that is known.
    """
    return call_response(request, doing, hints).data


def call_response(request: Any, doing: str, hints: Mapping[str, str] | None = None) -> Any:
    """As ``call``, but gives the whole response (``data`` and ``count``)."""
    return _retried(_execute, request.retry(False) if hasattr(request, "retry") else request, doing, hints)


def call_read(request: Any, read: Callable[[bytes], T], doing: str, hints: Mapping[str, str] | None = None) -> T:
    """As ``call``, for a ``select`` of many rows: gives what ``read`` makes of the answer's JSON. A ValueError of its
    says that it is none."""
    return _retried(functools.partial(_read, read), request, doing, hints)


def _retried(execute: Callable[[Any], T], request: Any, doing: str, hints: Mapping[str, str] | None) -> T:
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(TRIES),
        wait=_wait,
        retry=tenacity.retry_if_exception(_passes),
        reraise=True,
    )
    try:
        return retrying(execute, request)
    except (APIError, httpx.HTTPError, _CutResponseError, _PassingStatusError) as error:
        message, code = explain(error, doing, hints), str(getattr(error, "code", None) or "")
    # Raised outside of the handler: the exception's frames and the request they hold carry the key.
    raise SupabaseError(message, code)


def _execute(request: Any) -> Any:
    response = request.execute()
    if isinstance(response.data, str) and response.data:
        raise _CutResponseError(response.data[:80])
    return response


def _read(read: Callable[[bytes], T], request: Any) -> T:
    response = request.request.send(httpx.Headers())
    if not response.is_success:
        raise APIError(_said(response.content) or generate_default_error_message(response))
    try:
        return read(response.content)
    except ValueError:
        raise _CutResponseError(response.text[:80]) from None


def _passes(error: BaseException) -> bool:
    if isinstance(error, APIError):
        return str(error.code) in TRANSIENT
    return isinstance(error, httpx.TransportError | _CutResponseError | _PassingStatusError) and not isinstance(
        error, httpx.UnsupportedProtocol | httpx.LocalProtocolError
    )


def explain(error: Exception, doing: str, hints: Mapping[str, str] | None = None) -> str:
    """One sentence of what went wrong and what to do; ``hints`` go before the library's own."""
    if isinstance(error, _CutResponseError):
        return f"cannot {doing}: the answer is not JSON ({str(error)!r}): is the URL a Supabase project's?"
    if isinstance(error, _PassingStatusError):
        return f"cannot {doing}: the server still answers {error}: try again later"
    if isinstance(error, httpx.LocalProtocolError):
        # Its text shows the header that cannot be sent: the key, as a rule.
        return f"cannot {doing}: the request cannot be sent: check SUPABASE_KEY and the URL"
    if not isinstance(error, APIError):
        reason = str(error) or type(error).__name__
        return f"cannot {doing}: no answer from Supabase ({reason}): check the URL and the network"
    said = " ".join(str(error.message or error.details or "no message").split())
    hint = (_HINTS | dict(hints or {})).get(str(error.code))
    if hint is None and "api key" in said.lower():
        hint = "check SUPABASE_KEY: it must be this project's secret key (sb_secret_… or the service_role JWT)"
    code = f" ({error.code})" if error.code else ""
    return f"cannot {doing}: {said}{code}" + (f": {hint}" if hint else "")


_GRANT = (
    "the key's role lacks a grant: use the secret (service_role) key, and grant it what it needs (see docs/supabase.md)"
)
_MIGRATE = "is it spelled right, and is the migration applied? `python -m mf schema` prints it"
_HINTS = {
    "42501": _GRANT,
    "42P01": _MIGRATE,
    "PGRST205": _MIGRATE,
    "PGRST202": _MIGRATE,
    "42883": _MIGRATE,
    "42703": "the table has no such column: name the right one",
    "PGRST204": "the table has no such column: name the right one",
    "PGRST301": "check SUPABASE_KEY: it is not a key of this project",
    "401": "check SUPABASE_KEY: it is not a key of this project",
    "57014": "the statement took longer than the server allows",
}
