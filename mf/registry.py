"""Vertex AI Model Registry client over REST; the SDK would add about 190 MB to a step's image."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.auth.exceptions import GoogleAuthError
from requests import RequestException, Session

from mf.errors import ConfigError, MfError

WAIT_S = 900.0  # for an upload to finish
POLL_S = 5.0
TIMEOUT_S = 60.0  # per request


@dataclass(frozen=True)
class Version:
    """One version of a registered model.

    Attributes:
        run_id: run id of the training; each is registered once (upload is idempotent).
        artifact_uri: gs:// folder of the model's files.
        image: container image recorded with the version.
        job: the pipeline run that trained it, ``projects/P/locations/L/pipelineJobs/J``.
        labels: labels to filter versions by; see ``label``.
    """

    run_id: str
    artifact_uri: str
    image: str
    job: str
    labels: Mapping[str, Any]


def label(value: Any) -> str:
    """``value`` as a label: at most 63 lower-case letters, digits, ``-`` and ``_``; 0.8731 becomes 0-8731."""
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:63]


class Registry:
    """The Model Registry of a pipeline run's project and region.

    Args:
        session: an authorised session.
        job: the pipeline run, ``projects/P/locations/L/pipelineJobs/J``.

    Raises:
        ConfigError: ``job`` is not the name of a pipeline run.
    """

    def __init__(self, session: Session, job: str) -> None:
        place = re.match(r"projects/[^/]+/locations/([^/]+)(?=/pipelineJobs/)", job)
        if not place:
            raise ConfigError(f"expected a pipeline run on Vertex AI, found {job!r}: set model_registry = false")
        self.session, self.place = session, place[0]
        self.api = f"https://{place[1]}-aiplatform.googleapis.com/v1"

    def upload(self, model_id: str, version: Version) -> str:
        """Register ``version`` as the default version of model ``model_id``, created if missing; idempotent.

        Returns:
            The version's name, ``projects/P/locations/L/models/ID@VERSION``.

        Raises:
            MfError: the registry refuses, cannot be reached or does not finish within ``WAIT_S``.
        """
        parent, alias = f"{self.place}/models/{model_id}", f"run-{version.run_id}"
        # A retried step may have registered it before.
        if existing := self._get(f"{parent}@{alias}"):
            return f"{parent}@{existing['versionId']}"
        is_new = not self._get(parent)
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
        response = self._wait_for(operation)
        return f"{response['model']}@{response['modelVersionId']}"

    def _wait_for(self, operation: dict[str, Any]) -> dict[str, Any]:
        """The response of a long-running operation."""
        deadline = time.monotonic() + WAIT_S
        while not operation.get("done"):
            if time.monotonic() > deadline:
                raise MfError(
                    f"the model registry did not register the model within {WAIT_S:g} s: {operation.get('name')}"
                )
            time.sleep(POLL_S)
            operation = self._send("GET", str(operation["name"]))
        if error := operation.get("error"):
            raise MfError(f"the model registry did not register the model: {error.get('message', error)}")
        return dict(operation["response"])

    def _get(self, model: str) -> dict[str, Any]:
        """The registered model or version, empty if there is none."""
        return self._send("GET", model, missing={})

    def _send(self, method: str, path: str, body: Any = None, missing: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self.session.request(method, f"{self.api}/{path}", json=body, timeout=TIMEOUT_S)
            if response.status_code == 404 and missing is not None:
                return missing
            if response.ok:
                return dict(response.json())
            reason = f"{response.status_code} {_message(response.text)}"
        except (RequestException, GoogleAuthError, ValueError) as error:
            reason = str(error)
        hint = ": give the account that runs the steps roles/aiplatform.user" if reason.startswith("403") else ""
        raise MfError(f"the model registry refused {path}: {' '.join(reason.split())[:500]}{hint}")


def session() -> Session:
    """An authorised session of the account that this process runs as.

    Raises:
        MfError: there is no account.
    """
    import google.auth
    from google.auth.transport.requests import AuthorizedSession

    try:
        credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    except GoogleAuthError as error:
        raise MfError(f"no account to register the model with: {error}") from None
    return AuthorizedSession(credentials)  # type: ignore[no-untyped-call]


def _message(text: str) -> str:
    """The message in the body of an error response."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return text
