"""As much of Vertex AI's and of Cloud Storage's REST APIs as submitting a pipeline asks for."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

BUCKET = re.compile(r"/storage/v1/b/([^/?]+)")
JOBS = re.compile(r"/v1/(projects/[^/]+/locations/[^/]+/pipelineJobs)")
STATUS = {403: "PERMISSION_DENIED", 404: "NOT_FOUND"}


class Request(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    body: Any


@dataclass
class FakeVertex:
    """What was asked of the fake, and what it has.

    Attributes:
        url: of both APIs.
        buckets: those that there are.
        requests: what was asked, in its order.
        denied: what is said, with status 403, to whoever starts a run; empty: runs start.
    """

    url: str
    buckets: set[str] = field(default_factory=lambda: {"mf-bucket"})
    requests: list[Request] = field(default_factory=list)
    denied: str = ""

    def answer(self, request: Request) -> tuple[int, Any]:
        self.requests.append(request)
        if bucket := BUCKET.fullmatch(request.path):
            return (200, {"name": bucket[1]}) if bucket[1] in self.buckets else _refusal(404, "no such bucket")
        if request.method == "POST" and (jobs := JOBS.fullmatch(request.path)):
            if self.denied:
                return _refusal(403, self.denied)
            name = f"{jobs[1]}/{request.query['pipelineJobId']}"
            return 200, {**request.body, "name": name, "state": "PIPELINE_STATE_PENDING"}
        return _refusal(404, f"the fake knows no {request.method} {request.path}")


@contextmanager
def fake_vertex() -> Iterator[FakeVertex]:
    """Serves on 127.0.0.1 while the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    fake = FakeVertex(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass = type("Handler", (_Handler,), {"fake": fake})
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()


def _refusal(code: int, message: str) -> tuple[int, Any]:
    return code, {"error": {"code": code, "message": message, "status": STATUS[code]}}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeVertex

    def _serve(self) -> None:
        url = urlsplit(self.path)
        sent = self.rfile.read(int(self.headers.get("content-length") or 0))
        request = Request(self.command, url.path, dict(parse_qsl(url.query)), json.loads(sent) if sent else None)
        code, answer = self.fake.answer(request)
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _serve  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass
