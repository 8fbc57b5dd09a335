"""Whether a step's image is in its registry and holds this code: asked of the registry itself, over the API of the
OCI's distribution specification, which Artifact Registry speaks."""

import re
import subprocess

from pipelines.vertex.doctor.finding import Finding, missing, ok, unknown
from pipelines.vertex.doctor.google import Answer, Google
from pipelines.vertex.images import ROOT, SOURCES

LABEL = "org.opencontainers.image.revision"
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
)
MAKE = "make images"


def image(google: Google, name: str) -> Finding:
    """The image ``name`` is there, and was built from the code of this checkout."""
    parts = re.fullmatch(r"([\w.-]+\.pkg\.dev|(?:\w+\.)?gcr\.io)/(.+?)(?:@|:)([\w.:-]+)", name)
    if not parts:
        return missing(f"{name} is in no registry of Google's", "set image_repository in the settings (docs/vertex.md)")
    host, path, reference = parts.groups()
    config = _config(google, host, path, reference)
    if config.status == 404:
        return missing(f"there is no {name}", MAKE)
    if config.status != 200:
        return google.refused(config)
    revision = (config.body.get("config", {}).get("Labels") or {}).get(LABEL, "")
    if not revision:
        return unknown(f"{name} has no label that says from which commit it is", MAKE)
    if not _same(revision):
        return missing(f"{name} is of commit {revision}, and the code here differs", f"commit it, and {MAKE}")
    return ok(f"{name} holds this code")


def _config(google: Google, host: str, path: str, reference: str) -> Answer:
    """The configuration of an image for Linux on x86, which holds its labels."""
    found = google.ask("GET", host, f"/v2/{path}/manifests/{reference}", headers={"Accept": MANIFESTS})
    for one in found.body.get("manifests", []):
        if one.get("platform", {}).get("os") == "linux" and one["platform"].get("architecture") == "amd64":
            return _config(google, host, path, one["digest"])
    if found.status != 200:
        return found
    return google.ask("GET", host, f"/v2/{path}/blobs/{found.body.get('config', {}).get('digest')}")


def _same(revision: str) -> bool:
    """Whether what images are made from is here as it was in the commit."""
    command = ["git", "-C", str(ROOT), "diff", "--quiet", revision, "--", *SOURCES]
    return (
        re.fullmatch("[0-9a-f]+", revision) is not None and subprocess.run(command, capture_output=True).returncode == 0
    )
