"""What the fakes of Google's services have in common: an HTTP server on this machine that speaks JSON."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit


class Call(NamedTuple):
    """A request as it came; ``body`` is what its JSON says, None without any."""

    method: str
    url: SplitResult
    headers: Message
    body: Any


# The status, and what becomes JSON; bytes are sent as they are.
Answer = tuple[int, Any]


@contextmanager
def serving(answer: Callable[[Call], Answer]) -> Iterator[str]:
    """Serves on 127.0.0.1 while the block lasts, and gives the address. Where ``answer`` raises, the connection is
    closed without an answer."""

    class Handler(BaseHTTPRequestHandler):
        def serve(self) -> None:
            sent = self.rfile.read(int(self.headers.get("content-length") or 0))
            body = json.loads(sent) if sent and "json" in self.headers.get("content-type", "") else None
            code, said = answer(Call(self.command, urlsplit(self.path), self.headers, body))
            content = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = serve  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Nothing is printed."""

    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Nothing is printed of what ``answer`` raised."""
