"""Fake of the REST API of Kubeflow Pipelines, for the real kfp.Client, and of what the doctor asks Kubernetes."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from serving import Answer, Call, serving

API = "/apis/v2beta1"
NOW = "2026-11-24T00:00:00Z"


@dataclass
class FakeKubeflow:
    """State of the fake, and the requests that change something.

    Attributes:
        url: of the API.
        states: of a run, one entry for each time that it is fetched; the last one stays.
        refused: status and message of the next requests, in place of an answer.
        health: answer to the question whether the API is there; bytes: a page of something else.
        objects: of Kubernetes, by path; a number is the status of a refusal.
        outages: status of the answer to the request for a run with this number, counted down to 0.
    """

    url: str = ""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: list[dict[str, Any]] = field(default_factory=lambda: [{"state": "SUCCEEDED"}])
    changes: list[tuple[str, str, Any]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    outages: list[tuple[int, int]] = field(default_factory=list)
    health: Answer = (200, {"multi_user": False})
    objects: dict[str, Any] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def reply(self, call: Call) -> Answer:
        path, query = call.url.path.removeprefix(API), dict(parse_qsl(call.url.query))
        if call.method != "GET":
            self.changes.append((call.method, path, call.body))
        if path.startswith("/api/v1/"):
            found = self.objects.get(path.removeprefix("/api/v1/"), 404)
            return (found, {"message": "no"}) if isinstance(found, int) else (200, found)
        if path == "/healthz":
            return self.health
        if isinstance(self.health[1], bytes):
            return self.health
        if self.refused:
            code, message = self.refused.pop(0)
            return code, {"error": message, "code": 7, "message": message}
        kind, _, rest = path.strip("/").partition("/")
        return getattr(self, f"_{kind}")(call.method, rest, query, call.body)

    def _key(self) -> str:
        return f"0000000{next(self._numbers)}-aaaa-bbbb-cccc-dddddddddddd"

    def _experiments(self, method: str, rest: str, query: dict[str, str], body: Any) -> Answer:
        if method == "POST":
            one = {**body, "experiment_id": self._key(), "created_at": NOW}
            self.experiments[one["experiment_id"]] = one
            return 200, one
        if rest:
            return 200, self.experiments[rest]
        named = re.findall(r'"string_?[vV]alue": ?"([^"]*)"', query.get("filter", ""))
        found = [one for one in self.experiments.values() if not named or one["display_name"] in named]
        return 200, {"experiments": found, "total_size": len(found)}

    def _runs(self, method: str, rest: str, query: dict[str, str], body: Any) -> Answer:
        if method == "POST":
            one = {**body, "run_id": self._key(), "created_at": NOW, "state": "PENDING"}
            self.runs[one["run_id"]] = one
            return 200, one
        self.outages = [(left - 1, code) for left, code in self.outages if left]
        if lost := [code for left, code in self.outages if not left]:
            return lost[0], {"error": "no answer", "code": 14, "message": "no answer"}
        if rest not in self.runs:
            return 404, {"error": "Run not found", "code": 5, "message": "Run not found"}
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return 200, {**self.runs[rest], **state}

    def _recurringruns(self, method: str, rest: str, query: dict[str, str], body: Any) -> Answer:
        key, _, verb = rest.partition(":")
        if method == "POST" and not rest:
            one = {**body, "recurring_run_id": self._key(), "created_at": NOW, "status": "ENABLED"}
            self.recurring[one["recurring_run_id"]] = one
            return 200, one
        if not rest:
            # A page at a time, so that the client has to ask again.
            start = int(query.get("page_token") or 0)
            page = [*self.recurring.values()][start : start + 1]
            more = {"next_page_token": str(start + 1)} if start + 1 < len(self.recurring) else {}
            return 200, {"recurringRuns": page, "total_size": len(self.recurring), **more}
        if key not in self.recurring:
            return 404, {"error": "not found", "code": 5, "message": "not found"}
        if method == "DELETE":
            del self.recurring[key]
        elif verb:
            self.recurring[key]["status"] = {"enable": "ENABLED", "disable": "DISABLED"}[verb]
        return 200, {}


@contextmanager
def fake_kubeflow() -> Iterator[FakeKubeflow]:
    """Serves on 127.0.0.1 within the block."""
    fake = FakeKubeflow()
    with serving(fake.reply) as fake.url:
        yield fake
