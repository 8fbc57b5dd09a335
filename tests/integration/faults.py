"""An embedded Supabase whose gateway injects faults between client and server."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mf.local import LocalSupabase
from mf.local.gateway import Gateway, Request, Response


@dataclass(frozen=True)
class Fault:
    """A fault of one request.

    Args:
        delay_s: seconds to wait before anything else.
        status: the response's status, with ``body`` and ``headers``; the request does not reach PostgREST.
        drop: close the connection without a response, ``"before"`` the request reaches PostgREST, or ``"after"``
            PostgREST has executed it.
    """

    delay_s: float = 0.0
    status: int | None = None
    body: bytes = b"<html>upstream connect error</html>"
    content_type: str = "text/html"
    headers: tuple[tuple[str, str], ...] = ()
    drop: Literal["before", "after"] | None = None


class FaultyGateway(Gateway):
    """A gateway with faults.

    Attributes:
        faults: called in turn for every request, from several threads at a time; the first ``Fault`` returned happens.
    """

    def __init__(self, *args: Any) -> None:
        self.faults: list[Callable[[Request], Fault | None]] = []
        super().__init__(*args)

    def respond(self, request: Request) -> Response:
        fault = next((fault for ask in list(self.faults) if (fault := ask(request))), Fault())
        time.sleep(fault.delay_s)
        if fault.drop == "before":
            raise ConnectionAbortedError
        if fault.status is not None:
            return Response(fault.status, fault.body, [("Content-Type", fault.content_type), *fault.headers])
        response = super().respond(request)
        if fault.drop == "after":
            raise ConnectionAbortedError
        return response


class FaultySupabase(LocalSupabase):
    """An embedded Supabase with a faulty gateway."""

    gateway_class = FaultyGateway
    gateway: FaultyGateway
