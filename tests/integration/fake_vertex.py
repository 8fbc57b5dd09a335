"""Fake of the REST APIs of Vertex AI and Cloud Storage that submitting and scheduling a pipeline calls."""

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from google.cloud.aiplatform.utils import resource_manager_utils
from serving import Answer, Call, serving

BUCKET = re.compile(r"/storage/v1/b/([^/?]+)(/o)?")
RESOURCES = re.compile(r"/v1/(projects/[^/]+/locations/[^/]+/(pipelineJobs|schedules))(?:/([^/:]+))?(?::(\w+))?")
STATUS = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 499: "CANCELLED",
    503: "UNAVAILABLE",
}  # fmt: skip
METADATA = re.compile(
    r"/v1/(projects/[^/]+/locations/[^/]+)/metadataStores/default(?:/(contexts)(?:/([^/:]+))?)?(?::(\w+))?"
)
NOW = "2026-11-24T00:00:00Z"
NUMBER = "123"  # of the project


class Request(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    body: Any

    @property
    def changes(self) -> bool:
        return self.method != "GET"


@dataclass
class Fault:
    """Makes the next ``times`` requests of ``method`` with ``path`` in their path fail with ``code``.

    With ``late`` the request takes effect and only its response is an error.
    """

    method: str
    path: str
    code: int = 503
    late: bool = False
    times: int = 1


@dataclass
class FakeVertex:
    """State of the fake, and the requests that it got.

    Attributes:
        url: of both APIs.
        buckets: existing buckets.
        closed_buckets: buckets that the user may not read.
        requests: all requests so far.
        denied: message of the 403 error for starting a run; empty: runs start.
        states: fields of a PipelineJob, one entry for each time that a run is fetched; the last one stays.
        contexts: experiments and runs of the metadata store, by name.
        schedules: existing schedules by name.
        faults: of the next requests.
        on_request: called with each request before the response.
    """

    url: str = ""
    buckets: set[str] = field(default_factory=lambda: {"mf-bucket"})
    closed_buckets: set[str] = field(default_factory=set)
    requests: list[Request] = field(default_factory=list)
    denied: str = ""
    states: list[dict[str, Any]] = field(default_factory=lambda: [{"state": "PIPELINE_STATE_PENDING"}])
    contexts: dict[str, dict[str, Any]] = field(default_factory=dict)
    schedules: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    on_request: Callable[[Request], None] = lambda request: None
    _jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1001))

    @property
    def changes(self) -> list[Request]:
        """The requests that change something."""
        return [request for request in self.requests if request.changes]

    def reply(self, call: Call) -> Answer:
        request = Request(call.method, unquote(call.url.path), dict(parse_qsl(call.url.query)), call.body)
        self.requests.append(request)
        self.on_request(request)
        for fault in self.faults:
            if fault.times and fault.method == request.method and fault.path in request.path:
                fault.times -= 1
                if fault.late:
                    self._serve(request)
                return _refusal(fault.code, "a fault of the test")
        return self._serve(request)

    def _serve(self, request: Request) -> Answer:
        if bucket := BUCKET.fullmatch(request.path):
            return self._bucket(*bucket.groups())
        if store := METADATA.fullmatch(request.path):
            return self._metadata(request, f"{store[1]}/metadataStores/default", *store.groups()[1:])
        if not (match := RESOURCES.fullmatch(request.path)):
            return _refusal(404, f"the fake knows no {request.method} {request.path}")
        parent, kind, number, verb = match.groups()
        if kind == "pipelineJobs":
            return self._job(request, parent, number)
        return self._schedule(request, parent, f"{parent}/{number}" if number else "", verb)

    def _bucket(self, name: str, objects: str | None) -> Answer:
        if name in self.closed_buckets:
            return _refusal(403, "steps@p1 does not have storage.buckets.get access")
        if name not in self.buckets:
            return _refusal(404, "no such bucket")
        return 200, {"items": []} if objects else {"name": name, "projectNumber": NUMBER}

    def _job(self, request: Request, parent: str, number: str | None) -> Answer:
        if request.method == "POST" and not number:
            if self.denied:
                return _refusal(403, self.denied)
            name = f"{parent}/{request.query['pipelineJobId']}"
            self._jobs[name] = {**request.body, "name": name, "state": "PIPELINE_STATE_PENDING"}
            run = {"name": f"{parent.rpartition('/')[0]}/metadataStores/default/contexts/{name.rpartition('/')[2]}"}
            self.contexts[name.rpartition("/")[2]] = {**run, "schemaTitle": "system.PipelineRun"}
            self._jobs[name]["jobDetail"] = {"pipelineRunContext": run}
            return 200, self._jobs[name]
        if request.method == "GET" and (job := self._jobs.get(f"{parent}/{number}")):
            state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            job.update(state)
            return 200, job
        return _refusal(404, "no such run")

    def _metadata(self, request: Request, store: str, kind: str | None, name: str | None, verb: str | None) -> Answer:
        if not kind:
            return 200, {"name": store}
        if request.method == "POST" and not name:
            name = request.query["contextId"]
            self.contexts[name] = {**request.body, "name": f"{store}/contexts/{name}"}
        if name not in self.contexts:
            return _refusal(404, "no such context")
        if verb:
            self.contexts[name].setdefault("children", []).extend(request.body["childContexts"])
            return 200, {}
        return 200, {key: value for key, value in self.contexts[name].items() if key != "children"}

    def _schedule(self, request: Request, parent: str, name: str, verb: str | None) -> Answer:
        if request.method == "POST" and not name:
            return self._new_schedule(request.body, parent)
        if not name:
            return 200, {"schedules": [_short(one) for one in self._filtered(request.query.get("filter"))]}
        if name not in self.schedules:
            return _refusal(404, f"there is no {name}")
        if request.method == "DELETE":
            del self.schedules[name]
            done = {"@type": "type.googleapis.com/google.protobuf.Empty"}
            return 200, {"name": f"{parent.removesuffix('/schedules')}/operations/1", "done": True, "response": done}
        if verb in ("pause", "resume"):
            self.schedules[name]["state"] = {"pause": "PAUSED", "resume": "ACTIVE"}[verb]
            return 200, {}
        return 200, self.schedules[name]

    def _new_schedule(self, sent: dict[str, Any], parent: str) -> Answer:
        # JSON holds an int64 as text.
        if not sent.get("displayName") or not sent.get("cron") or int(sent.get("maxConcurrentRunCount", 0)) < 1:
            return _refusal(400, "display_name, cron and max_concurrent_run_count are required")
        name = f"{parent}/{next(self._numbers)}"
        self.schedules[name] = {**sent, "name": name, "state": "ACTIVE", "createTime": NOW, "nextRunTime": NOW}
        return 200, self.schedules[name]

    def _filtered(self, condition: str | None) -> list[dict[str, Any]]:
        if not condition:
            return [*self.schedules.values()]
        match = re.fullmatch(r'display_name="([^"]*)"', condition)
        assert match, f"the fake does not know the filter {condition}"
        # A filter may ignore case.
        return [one for one in self.schedules.values() if one["displayName"].lower() == match[1].lower()]


@contextmanager
def fake_vertex() -> Iterator[FakeVertex]:
    """Serves on 127.0.0.1 within the block."""
    fake = FakeVertex()
    with serving(fake.reply) as fake.url:
        yield fake


def send_sdk_to(fake: FakeVertex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directs the real SDKs of this process to ``fake``, without credentials."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
    here = {"api_endpoint": fake.url, "api_transport": "rest", "credentials": AnonymousCredentials()}
    monkeypatch.setattr(aiplatform, "init", functools.partial(aiplatform.init, **here))
    # The SDK asks Cloud Resource Manager for the number over gRPC, at a fixed address: without a network that takes a
    # minute.
    monkeypatch.setattr(resource_manager_utils, "get_project_number", lambda *_, **__: NUMBER)


def _short(schedule: dict[str, Any]) -> dict[str, Any]:
    """A schedule as an entry of a list: without its pipeline."""
    return {name: value for name, value in schedule.items() if name != "createPipelineJobRequest"}


def _refusal(code: int, message: str) -> Answer:
    return code, {"error": {"code": code, "message": message, "status": STATUS.get(code, "UNKNOWN")}}
