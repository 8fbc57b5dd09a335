"""Fake of the Google Cloud REST APIs that the doctor calls, under one address: http://127.0.0.1:PORT/HOST/path.

Its project passes all checks until a test changes it.
"""

import base64
import functools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from serving import Call, serving

TOKEN = "ya29.planted-token"
ACCOUNT = "steps@p1.iam.gserviceaccount.com"
Reply = tuple[int, Any]


class Request(NamedTuple):
    method: str
    host: str
    path: str
    query: dict[str, list[str]]
    body: Any
    quota_project: str | None = None


def refusal(code: int, message: str, **info: Any) -> Reply:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", **info}] if info else []
    return code, {"error": {"code": code, "message": message, "details": details}}


def not_enabled(api: str) -> Reply:
    return refusal(403, f"{api} has not been used", reason="SERVICE_DISABLED", metadata={"service": api})


def _bindings(role: str) -> list[dict[str, Any]]:
    return [{"role": role, "members": ["user:me@example.com", f"serviceAccount:{ACCOUNT}"]}]


@dataclass
class FakeGoogle:
    """A project that passes all checks.

    Attributes:
        url: of all APIs; the host's name is the first part of a path.
        parent: the folder or organisation above the project, as the API returns it.
        faults: called in turn with every request; the first reply that one returns is the response.
        requests: all requests so far.
    """

    url: str = ""
    permissions: set[str] = field(
        default_factory=lambda: {
            "aiplatform.pipelineJobs.create",
            "aiplatform.pipelineJobs.get",
            "aiplatform.schedules.create",
            "iam.serviceAccounts.actAs",
        }
    )
    disabled: set[str] = field(default_factory=set)
    parent: dict[str, str] | None = None
    bucket: dict[str, Any] | None = field(default_factory=lambda: {"location": "EUROPE-WEST4"})
    accounts: set[str] = field(default_factory=lambda: {ACCOUNT})
    policies: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {
            "projects/p1": _bindings("roles/aiplatform.user"),
            ACCOUNT: _bindings("roles/iam.serviceAccountUser"),
            "b/mf-bucket": _bindings("roles/storage.objectUser"),
            "projects/p1/secrets/supabase-key": _bindings("roles/secretmanager.secretAccessor"),
            "projects/p1/secrets/supabase-db-url": _bindings("roles/secretmanager.secretAccessor"),
        }
    )
    secrets: dict[str, bytes] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)  # name:tag or name@digest, to the commit of its label
    limits: dict[str, dict[str, str]] = field(default_factory=dict)  # quota metric, to region and limit
    faults: list[Callable[[Request], Reply | None]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def reply(self, call: Call) -> Reply:
        _, host, path = call.url.path.split("/", 2)
        quota_project = call.headers.get("x-goog-user-project")
        code, body = self.answer(
            Request(call.method, host, f"/{path}", parse_qs(call.url.query), call.body, quota_project)
        )
        if host != "oauth2" and call.headers.get("authorization") != f"Bearer {TOKEN}":
            return refusal(401, "Request had invalid authentication credentials.")
        return code, body

    def answer(self, request: Request) -> Reply:
        self.requests.append(request)
        for fault in self.faults:
            if reply := fault(request):
                return reply
        for pattern, reply_to in ROUTES:
            if found := re.fullmatch(pattern, f"{request.host}{request.path}"):
                return reply_to(self, request, *found.groups())
        return refusal(404, f"the fake knows no {request.method} {request.host}{request.path}")


def _token(fake: FakeGoogle, request: Request) -> Reply:
    return 200, {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}


def _permissions(fake: FakeGoogle, request: Request, *_: str) -> Reply:
    return 200, {"permissions": [name for name in request.body["permissions"] if name in fake.permissions]}


def _project(fake: FakeGoogle, request: Request) -> Reply:
    return 200, {"projectId": "p1", **({"parent": fake.parent} if fake.parent else {})}


def _services(fake: FakeGoogle, request: Request) -> Reply:
    states = [(name, name.rsplit("/", 1)[1].removesuffix(".googleapis.com") in fake.disabled)
              for name in request.query["names"]]  # fmt: skip
    return 200, {"services": [{"name": name, "state": "DISABLED" if off else "ENABLED"} for name, off in states]}


def _bucket(fake: FakeGoogle, request: Request, name: str) -> Reply:
    return (200, {"name": name, **fake.bucket}) if fake.bucket else refusal(404, "The specified bucket does not exist.")


def _account(fake: FakeGoogle, request: Request, email: str) -> Reply:
    return (200, {"email": email}) if email in fake.accounts else refusal(404, "Unknown service account")


def _policy(fake: FakeGoogle, request: Request, resource: str) -> Reply:
    return 200, {"version": 1, "bindings": fake.policies.get(resource, [])}


def _secret(fake: FakeGoogle, request: Request, name: str) -> Reply:
    if name not in fake.secrets:
        return refusal(404, f"Secret [{name}] not found or has no versions.")
    return 200, {"payload": {"data": base64.b64encode(fake.secrets[name]).decode()}}


def _manifest(fake: FakeGoogle, request: Request, host: str, path: str, reference: str) -> Reply:
    if reference.startswith("sha256:of-"):
        return 200, {"schemaVersion": 2, "config": {"digest": reference.removeprefix("sha256:of-")}}
    revision = next((r for name, r in fake.images.items() if re.fullmatch(f"{host}/{path}[:@]{reference}", name)), None)
    if revision is None:
        return 404, {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no such manifest"}]}
    # Builders of several platforms push an index, with an entry that is not an image.
    of = [("unknown", "unknown", "sha256:attestation"), ("linux", "amd64", f"sha256:of-sha256:{revision}")]
    return 200, {"manifests": [{"digest": d, "platform": {"os": o, "architecture": a}} for o, a, d in of]}


def _config(fake: FakeGoogle, request: Request, revision: str) -> Reply:
    return 200, {"config": {"Labels": {"org.opencontainers.image.revision": revision} if revision != "none" else None}}


def _quota(fake: FakeGoogle, request: Request, metric: str) -> Reply:
    limits = fake.limits.get(unquote(metric).removeprefix("aiplatform.googleapis.com/"))
    if limits is None:
        return refusal(404, "no such metric")
    buckets = [{"effectiveLimit": limit, **({"dimensions": {"region": region}} if region else {})}
               for region, limit in limits.items()]  # fmt: skip
    return 200, {"metric": metric, "consumerQuotaLimits": [{"quotaBuckets": buckets}]}


ROUTES: list[tuple[str, Callable[..., Reply]]] = [
    ("oauth2/token", _token),
    (r"cloudresourcemanager\.googleapis\.com/v1/projects/p1", _project),
    (r"cloudresourcemanager\.googleapis\.com/v1/(projects/p1):testIamPermissions", _permissions),
    (r"cloudresourcemanager\.googleapis\.com/v1/(projects/p1):getIamPolicy", _policy),
    (r"serviceusage\.googleapis\.com/v1/projects/p1/services:batchGet", _services),
    (r"serviceusage\.googleapis\.com/v1beta1/projects/p1/services/aiplatform\.googleapis\.com/consumerQuotaMetrics/(.+)",
     _quota),
    (r"storage\.googleapis\.com/storage/v1/b/([^/]+)", _bucket),
    (r"storage\.googleapis\.com/storage/v1/(b/[^/]+)/iam", _policy),
    (r"iam\.googleapis\.com/v1/projects/-/serviceAccounts/([^:]+):testIamPermissions", _permissions),
    (r"iam\.googleapis\.com/v1/projects/-/serviceAccounts/([^:]+):getIamPolicy", _policy),
    (r"iam\.googleapis\.com/v1/projects/-/serviceAccounts/([^:]+)", _account),
    (r"secretmanager\.googleapis\.com/v1/(projects/p1/secrets/[^/]+):getIamPolicy", _policy),
    (r"secretmanager\.googleapis\.com/v1/(projects/p1/secrets/[^/]+)/versions/[^/]+:access", _secret),
    (r"([\w-]+\.pkg\.dev)/v2/(.+)/manifests/(.+)", _manifest),
    (r"[\w-]+\.pkg\.dev/v2/.+/blobs/sha256:(.+)", _config),
]  # fmt: skip


@contextmanager
def fake_google() -> Iterator[FakeGoogle]:
    """Serves on 127.0.0.1 within the block."""
    fake = FakeGoogle()
    with serving(fake.reply) as fake.url:
        yield fake


@functools.cache
def _private_key() -> str:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def key_file(folder: Path, url: str) -> Path:
    """A service account's key file; ``google.auth`` gets a token for it from the fake."""
    file = folder / "key.json"
    file.write_text(json.dumps({
        "type": "service_account", "project_id": "p1", "private_key_id": "1", "private_key": _private_key(),
        "client_email": "me@p1.iam.gserviceaccount.com", "client_id": "1", "token_uri": f"{url}/oauth2/token",
    }))  # fmt: skip
    return file
