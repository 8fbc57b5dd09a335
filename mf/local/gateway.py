"""The API gateway in front of PostgREST and Auth: checks the API key and replaces it with a JWT, as Supabase's does."""

import http.client
import json
import re
import threading
from collections.abc import Callable
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from mf.local.auth import API_VERSION, Auth

PREFIX = "/rest/v1"
AUTH_PREFIX = "/auth/v1"
UPSTREAM_TIMEOUT_S = 180
KEPT_REQUESTS = 10_000
MOST_BYTES = 1 << 28  # per request
# Headers of one connection only (RFC 9110, 7.6.1), those that the gateway writes itself, and its key.
NOT_FORWARDED = frozenset({"host", "connection", "keep-alive", "transfer-encoding", "content-length", "apikey"})
NOT_RETURNED = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"})


class Request(NamedTuple):
    """A request of a client."""

    method: str
    path: str  # with its query
    headers: "Message[str, str]"  # case-insensitive
    body: bytes


class Response(NamedTuple):
    """The response to a request."""

    status: int
    body: bytes
    headers: list[tuple[str, str]]


class LogEntry(NamedTuple):
    """A line of the request log; headers carry keys and are never kept."""

    method: str
    path: str
    status: int | None  # None: the connection was closed without a response


class Page(NamedTuple):
    """A static page, served without a key."""

    content_type: str
    read: Callable[[], bytes]


class Gateway:
    """Serves ``http://127.0.0.1:<port>/rest/v1/…`` for a PostgREST on ``upstream_port``, and ``/auth/v1/…``.

    Args:
        upstream_port: of PostgREST.
        tokens: the JWT for each API key.
        auth: answers the requests to ``/auth/v1/…``.
        port: 0: chosen by the system.

    Attributes:
        port: of the gateway.
        pages: static pages served beside the API, by path (a product's pages are on a server of their own).
        requests: log of the latest requests, in the order of their responses.
    """

    def __init__(self, upstream_port: int, tokens: dict[str, str], auth: Auth, port: int = 0) -> None:
        self.upstream_port = upstream_port
        self.requests: list[LogEntry] = []
        self.pages: dict[str, Page] = {}
        self._tokens, self._auth = tokens, auth
        self._server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"gateway": self}))
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="gateway", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def respond(self, request: Request) -> Response:
        """The response to ``request``; called from several threads at a time.

        Raises:
            ConnectionError: close the connection without a response.
        """
        page = self.pages.get(request.path.partition("?")[0])
        if page and request.method in ("GET", "HEAD"):
            return Response(200, page.read(), [("Content-Type", page.content_type), ("Cache-Control", "no-store")])
        if request.path.startswith(f"{AUTH_PREFIX}/"):
            return self._authenticate(request)
        if not request.path.startswith(f"{PREFIX}/"):
            return _refusal(404, "no Route matched with those values")
        key = request.headers.get("apikey")
        authorization = self._authorization(key, request.headers.get("Authorization", ""))
        if request.method == "OPTIONS":
            authorization = ""  # CORS preflight: a browser sends it without the key
        if authorization is None:
            return _refusal(401, "Invalid API key" if key else "No API key found in request")
        try:
            return self._forward(request, authorization)
        except (http.client.HTTPException, OSError):
            return _refusal(502, "An invalid response was received from the upstream server")

    def log(self, request: Request, status: int | None) -> None:
        self.requests.append(LogEntry(request.method, request.path, status))
        del self.requests[:-KEPT_REQUESTS]

    def _authorization(self, key: str | None, authorization: str) -> str | None:
        """The Authorization header for PostgREST, ``None`` for an unknown key. A client without a signed-in user sends
        its key as the bearer token too; a user's own token is passed on."""
        if key not in self._tokens:
            return None
        return authorization if authorization not in ("", f"Bearer {key}") else f"Bearer {self._tokens[key]}"

    def _authenticate(self, request: Request) -> Response:
        cors = [("Access-Control-Allow-Origin", "*"), ("Access-Control-Expose-Headers", API_VERSION[0]), API_VERSION]
        if request.method == "OPTIONS":
            asked = request.headers.get("Access-Control-Request-Headers", "*")
            allowed = [
                ("Access-Control-Allow-Headers", asked),
                ("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE"),
            ]
            return Response(204, b"", cors + allowed)
        key = request.headers.get("apikey")
        authorization = self._authorization(key, request.headers.get("Authorization", ""))
        if authorization is None:
            refused = _refusal(401, "Invalid API key" if key else "No API key found in request")
            return refused._replace(headers=refused.headers + cors)
        path = request.path.removeprefix(AUTH_PREFIX)
        status, body = self._auth.answer(request.method, path, request.body, authorization.removeprefix("Bearer "))
        content = b"" if body is None else json.dumps(body).encode()
        return Response(status, content, [("Content-Type", "application/json"), *cors])

    def _forward(self, request: Request, authorization: str) -> Response:
        # One connection per request: a kept-alive one may die under a POST, which must not be sent twice.
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream_port, timeout=UPSTREAM_TIMEOUT_S)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in NOT_FORWARDED}
        if authorization:
            headers["Authorization"] = authorization
        try:
            path = request.path.removeprefix(PREFIX)
            connection.request(request.method, path, body=request.body or None, headers=headers)
            response = connection.getresponse()
            kept = [(k, v) for k, v in response.getheaders() if k.lower() not in NOT_RETURNED]
            return Response(response.status, response.read(), kept)
        finally:
            connection.close()


def _refusal(status: int, message: str) -> Response:
    return Response(status, json.dumps({"message": message}).encode(), [("Content-Type", "application/json")])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing when a client has gone away."""


class _Handler(BaseHTTPRequestHandler):
    gateway: Gateway
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the log is ``Gateway.requests``."""

    def _handle(self) -> None:
        if refusal := self._refused():
            self.close_connection = True
            self._send(Request(self.command, self.path, self.headers, b""), refusal)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, self.headers, body)
        try:
            response = self.gateway.respond(request)
        except ConnectionError:
            self.close_connection = True
            self.gateway.log(request, None)
        else:
            self._send(request, response)

    def _refused(self) -> Response | None:
        """The response to a request that is not to be read."""
        # Another name for 127.0.0.1 is a page of the web that reads this one (DNS rebinding).
        own = {f"127.0.0.1:{self.gateway.port}", f"localhost:{self.gateway.port}"}
        if [host.lower() for host in self.headers.get_all("Host") or [""]] not in [[host] for host in own]:
            return _refusal(403, "this server answers on 127.0.0.1 only")
        if "Transfer-Encoding" in self.headers:
            return _refusal(411, "Length Required")
        lengths = self.headers.get_all("Content-Length") or ["0"]
        if len(lengths) > 1 or not re.fullmatch("[0-9]{1,12}", lengths[0]):
            return _refusal(400, "malformed Content-Length")
        if int(lengths[0]) > MOST_BYTES:
            return _refusal(413, f"a request of more than {MOST_BYTES:,} bytes")
        return None

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = do_OPTIONS = _handle  # noqa: N815

    def _send(self, request: Request, response: Response) -> None:
        status, body, headers = response
        self.gateway.log(request, status)
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()
