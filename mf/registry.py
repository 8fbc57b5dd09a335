"""Vertex AI's Model Registry over its REST API: the client library would add some 190 MB to a step's image."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.auth.exceptions import GoogleAuthError
from requests import RequestException, Session

from mf.errors import ConfigError, MfError

WAIT_S = 900.0  # for the registry to take a model in
POLL_S = 5.0
TIMEOUT_S = 60.0  # of one request


@dataclass(frozen=True)
class Version:
    """What is registered as one version of a model.

    Attributes:
        run_id: of the training; registered once, however often it is asked for.
        artifact_uri: gs:// folder of the model's files.
        image: that the registry notes as the model's own.
        job: the pipeline run that made it, ``projects/P/locations/L/pipelineJobs/J``.
        labels: by which versions are told apart and found; see ``label``.
    """

    run_id: str
    artifact_uri: str
    image: str
    job: str
    labels: Mapping[str, Any]


def label(value: Any) -> str:
    """``value`` as the registry takes it: 63 lower-case letters, digits, ``-`` and ``_`` at most; 0.8731 is 0-8731."""
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:63]


class Registry:
    """The models of the project and region that a pipeline runs in.

    Args:
        session: sends requests with the account's token.
        job: the pipeline run, ``projects/P/locations/L/pipelineJobs/J``.

    Raises:
        ConfigError: ``job`` is no pipeline run.
    """

    def __init__(self, session: Session, job: str) -> None:
        place = re.match(r"projects/[^/]+/locations/([^/]+)(?=/pipelineJobs/)", job)
        if not place:
            raise ConfigError(f"a model is registered by a run on Vertex AI, found {job!r}: set model_registry = false")
        self.session, self.place = session, place[0]
        self.api = f"https://{place[1]}-aiplatform.googleapis.com/v1"

    def upload(self, model_id: str, version: Version) -> str:
        """Makes ``version`` the default version of the model ``model_id``, which is made when it is not there; gives
        its name, ``projects/P/locations/L/models/ID@VERSION``. What is registered already stays as it is.

        Raises:
            MfError: the registry refuses, cannot be reached or does not come to an end within ``WAIT_S``.
        """
        parent, alias = f"{self.place}/models/{model_id}", f"run-{version.run_id}"
        # A step that is run again may find its own work.
        if there := self._found(f"{parent}@{alias}"):
            return f"{parent}@{there['versionId']}"
        is_new = not self._found(parent)
        operation = self._send(
            "POST",
            f"{self.place}/models:upload",
            {
                **({"modelId": model_id} if is_new else {"parentModel": parent}),
                "model": {
                    "displayName": model_id,
                    "artifactUri": version.artifact_uri,
                    "containerSpec": {"imageUri": version.image},
                    "pipelineJob": version.job,
                    "versionAliases": ["default", alias],
                    "versionDescription": f"published as {version.run_id}",
                    "labels": {name: label(value) for name, value in version.labels.items()},
                },
            },
        )
        done = self._finished(operation)
        return f"{done['model']}@{done['modelVersionId']}"

    def _finished(self, operation: dict[str, Any]) -> dict[str, Any]:
        """The response of an operation when it has come to its end."""
        ends = time.monotonic() + WAIT_S
        while not operation.get("done"):
            if time.monotonic() > ends:
                raise MfError(
                    f"the model registry has not taken the model within {WAIT_S:g} s: {operation.get('name')}"
                )
            time.sleep(POLL_S)
            operation = self._send("GET", str(operation["name"]))
        if error := operation.get("error"):
            raise MfError(f"the model registry did not take the model: {error.get('message', error)}")
        return dict(operation["response"])

    def _found(self, model: str) -> dict[str, Any]:
        """What the registry has of a model, nothing when it has none."""
        return self._send("GET", model, missing={})

    def _send(self, method: str, path: str, body: Any = None, missing: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = self.session.request(method, f"{self.api}/{path}", json=body, timeout=TIMEOUT_S)
            if answer.status_code == 404 and missing is not None:
                return missing
            if answer.ok:
                return dict(answer.json())
            reason = f"{answer.status_code} {_message(answer.text)}"
        except (RequestException, GoogleAuthError, ValueError) as error:
            reason = str(error)
        hint = ": give the account that runs the steps roles/aiplatform.user" if reason.startswith("403") else ""
        raise MfError(f"the model registry refused {path}: {' '.join(reason.split())[:500]}{hint}")


def session() -> Session:
    """Sends requests as the account that this runs as.

    Raises:
        MfError: there is none.
    """
    import google.auth
    from google.auth.transport.requests import AuthorizedSession

    try:
        credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    except GoogleAuthError as error:
        raise MfError(f"no account to register the model with: {error}") from None
    return AuthorizedSession(credentials)  # type: ignore[no-untyped-call]


def _message(text: str) -> str:
    """Google's own words out of an error's body."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return text
