"""Fake of Vertex AI's Model Registry for uploading a version; requests are checked against the API's own types."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
from google.cloud.aiplatform_v1.types import UploadModelRequest
from google.protobuf import json_format
from requests.adapters import HTTPAdapter
from serving import Answer, Call, serving

UPLOAD = re.compile(r"/v1/(projects/[^/]+/locations/[^/]+)/models:upload")
MODEL = re.compile(r"/v1/(projects/[^/]+/locations/[^/]+/models/[^/@]+)(?:@(.+))?")
OPERATION = re.compile(r"/v1/(projects/.+/operations/\d+)")
LABEL = re.compile(r"[a-z0-9_-]{0,63}")


@dataclass
class FakeRegistry:
    """State of the fake: models with their versions, and the requests that it got.

    Attributes:
        polls: how many times an upload is reported as not done.
        denied: message of the 403 error for every request; empty: no error.
        failure: error at the end of an upload; empty: it succeeds.
        broken: responses are not JSON.
    """

    url: str = ""
    models: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    operations: list[dict[str, Any]] = field(default_factory=list)
    polls: int = 1
    denied: str = ""
    failure: str = ""
    broken: bool = False

    def reply(self, call: Call) -> Answer:
        code, said = self.answer(call.method, call.url.path, call.body)
        return code, b"<html>" if self.broken else said

    def answer(self, method: str, path: str, body: Any) -> Answer:
        self.asked.append((method, path))
        if self.denied:
            return _refusal(403, self.denied)
        if method == "POST" and (place := UPLOAD.fullmatch(path)):
            return self._upload(place[1], body)
        if operation := OPERATION.fullmatch(path):
            return self._operation(operation[1])
        if model := MODEL.fullmatch(path):
            versions = self.models.get(model[1], [])
            found = [v for v in versions if model[2] is None or model[2] in v["versionAliases"]]
            return (200, found[-1]) if found else _refusal(404, "The Model does not exist.")
        return _refusal(404, f"the fake knows no {method} {path}")

    def _upload(self, place: str, body: Any) -> Answer:
        asked = UploadModelRequest.pb()(parent=place)
        try:
            json_format.ParseDict(body, asked)
        except json_format.ParseError as error:
            return _refusal(400, str(error))
        labels = dict(asked.model.labels)
        if not asked.model.container_spec.image_uri or not all(map(LABEL.fullmatch, labels.values())):
            return _refusal(400, f"no image, or an invalid label: {labels}")
        name = asked.parent_model or f"{place}/models/{asked.model_id}"
        if (name in self.models) != bool(asked.parent_model):
            return _refusal(409, f"{name} exists already, or does not exist")
        result: dict[str, Any] = {"error": {"code": 9, "message": self.failure}}
        if not self.failure:
            versions = self.models.setdefault(name, [])
            versions.append({**body["model"], "name": name, "versionId": str(len(versions) + 1)})
            result = {"response": {"model": name, "modelVersionId": str(len(versions))}}
        self.operations.append(result)
        return 200, {"name": f"{name}/operations/{len(self.operations)}"}

    def _operation(self, name: str) -> Answer:
        if self.polls:
            self.polls -= 1
            return 200, {"name": name}
        return 200, {"name": name, "done": True, **self.operations[int(name.rpartition("/")[2]) - 1]}

    def session(self) -> requests.Session:
        """A session that sends requests for Vertex AI in any region to this fake."""
        fake, session = self, requests.Session()

        class Here(HTTPAdapter):
            def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
                host = urlsplit(str(request.url)).hostname or ""
                assert re.fullmatch(r"[a-z0-9-]+-aiplatform\.googleapis\.com", host)
                request.url = str(request.url).replace(f"https://{host}", fake.url)
                return super().send(request, *args, **options)

        session.mount("https://", Here())
        return session


@contextmanager
def fake_registry() -> Iterator[FakeRegistry]:
    """Serves on 127.0.0.1 within the block."""
    fake = FakeRegistry()
    with serving(fake.reply) as fake.url:
        yield fake


def _refusal(code: int, message: str) -> Answer:
    return code, {"error": {"code": code, "message": message}}
