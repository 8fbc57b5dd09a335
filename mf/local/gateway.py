"""The gateway that stands before PostgREST, as Kong does at Supabase: it checks the API key, puts the JWT in its place,
and lets a test put faults between client and server."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple

PREFIX = "/rest/v1"
UPSTREAM_TIMEOUT_S = 180
KEPT_REQUESTS = 10_000
# Headers of one connection only (RFC 9110, 7.6.1), those that the gateway writes itself, and its key.
NOT_FORWARDED = frozenset({"host", "connection", "keep-alive", "transfer-encoding", "content-length", "apikey"})
NOT_RETURNED = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"})


class Request(NamedTuple):
    """What a fault sees of a request."""

    method: str
    path: str  # with its query
    body: bytes


class Served(NamedTuple):
    """A line of the log; headers carry keys and are never kept."""

    method: str
    path: str
    status: int | None  # None: the connection was dropped


@dataclass(frozen=True)
class Fault:
    """What happens to a request.

    Args:
        delay_s: it waits this many seconds first.
        status: it is answered with this status, ``body`` and ``headers``, and does not reach PostgREST.
        drop: the connection is closed without an answer, ``"before"`` the request reaches PostgREST, or ``"after"``
            PostgREST has done what was asked.
    """

    delay_s: float = 0.0
    status: int | None = None
    body: bytes = b"<html>upstream connect error</html>"
    content_type: str = "text/html"
    headers: tuple[tuple[str, str], ...] = ()
    drop: Literal["before", "after"] | None = None


class Page(NamedTuple):
    """A file that a browser gets without a key."""

    content_type: str
    read: Callable[[], bytes]


class Gateway:
    """Serves ``http://127.0.0.1:<port>/rest/v1/…`` for a PostgREST on ``upstream_port``.

    Attributes:
        port: chosen by the system.
        pages: what is served beside the API, by its path; a product's page lies on a server of its own.
        faults: callables that are asked in turn for every request, from several threads at a time; the first ``Fault``
            that one returns happens.
        requests: what was served last, in the order of the answers.
    """

    def __init__(self, upstream_port: int, tokens: dict[str, str]) -> None:
        self.upstream_port = upstream_port
        self.faults: list[Callable[[Request], Fault | None]] = []
        self.requests: list[Served] = []
        self.pages: dict[str, Page] = {}
        self._tokens = tokens
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"gateway": self}))
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="gateway", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self, request: Request) -> Fault:
        return next((found for ask in list(self.faults) if (found := ask(request))), Fault())

    def authorization(self, key: str | None, authorization: str) -> str | None:
        """The Authorization header for PostgREST, ``None`` for an unknown key. A client without a signed-in user sends
        its key as the bearer token too; a user's own token goes through."""
        if key not in self._tokens:
            return None
        return authorization if authorization not in ("", f"Bearer {key}") else f"Bearer {self._tokens[key]}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event: nothing is printed."""


class _Handler(BaseHTTPRequestHandler):
    gateway: Gateway
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed: the log is ``Gateway.requests``."""

    def _handle(self) -> None:
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            return self._refuse(411, "Length Required")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.gateway.fault(Request(self.command, self.path, body))
        time.sleep(fault.delay_s)
        if fault.drop == "before":
            return self._drop()
        if fault.status is not None:
            return self._answer(fault.status, fault.body, [("Content-Type", fault.content_type), *fault.headers])
        page = self.gateway.pages.get(self.path.partition("?")[0])
        if page and self.command in ("GET", "HEAD"):
            return self._answer(200, page.read(), [("Content-Type", page.content_type), ("Cache-Control", "no-store")])
        if not self.path.startswith(f"{PREFIX}/"):
            return self._refuse(404, "no Route matched with those values")
        key = self.headers.get("apikey")
        authorization = self.gateway.authorization(key, self.headers.get("Authorization", ""))
        if self.command == "OPTIONS":
            authorization = ""  # a browser asks without a key whether a page of another origin may send one
        if authorization is None:
            return self._refuse(401, "Invalid API key" if key else "No API key found in request")
        try:
            answer = self._ask_upstream(body, authorization)
        except (http.client.HTTPException, OSError):
            return self._refuse(502, "An invalid response was received from the upstream server")
        return self._drop() if fault.drop == "after" else self._answer(*answer)

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = do_OPTIONS = _handle  # noqa: N815

    def _ask_upstream(self, body: bytes, authorization: str) -> tuple[int, bytes, list[tuple[str, str]]]:
        # A connection a request: a kept one may die under a POST, which must not be sent twice.
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.upstream_port, timeout=UPSTREAM_TIMEOUT_S)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in NOT_FORWARDED}
        if authorization:
            headers["Authorization"] = authorization
        try:
            connection.request(self.command, self.path.removeprefix(PREFIX), body=body or None, headers=headers)
            answer = connection.getresponse()
            kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in NOT_RETURNED]
            return answer.status, answer.read(), kept
        finally:
            connection.close()

    def _refuse(self, status: int, message: str) -> None:
        self._answer(status, json.dumps({"message": message}).encode(), [("Content-Type", "application/json")])

    def _answer(self, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
        self._served(status)
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _served(self, status: int | None) -> None:
        log = self.gateway.requests
        log.append(Served(self.command, self.path, status))
        del log[:-KEPT_REQUESTS]

    def _drop(self) -> None:
        self._served(None)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
