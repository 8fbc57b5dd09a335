"""Checks of the steps' images in their registry.

The registry is asked over the API of the OCI distribution specification, which Artifact Registry implements.
"""

import re
import subprocess

from pipelines.doctor.finding import Finding, missing, ok, unknown
from pipelines.vertex.doctor.google import Google, Response
from pipelines.vertex.images import ROOT, SOURCES

LABEL = "org.opencontainers.image.revision"
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
)
MAKE = "make images"


def image(google: Google, name: str) -> Finding:
    """The image ``name`` exists and was built from the code of this checkout."""
    parts = re.fullmatch(r"([\w.-]+\.pkg\.dev|(?:\w+\.)?gcr\.io)/(.+?)(?:@|:)([\w.:-]+)", name)
    if not parts:
        return missing(
            f"{name} is not in a registry of Google's", "set image_repository in the settings (docs/vertex.md)"
        )
    host, path, reference = parts.groups()
    config = _config(google, host, path, reference)
    if config.status == 404:
        return missing(f"there is no {name}", MAKE)
    if config.status != 200:
        return google.error(config)
    revision = (config.body.get("config", {}).get("Labels") or {}).get(LABEL, "")
    if not revision:
        return unknown(f"{name} has no label with its commit", MAKE)
    if not _is_same_code(revision):
        return missing(f"{name} was built from commit {revision}, and the code here differs", f"commit it, and {MAKE}")
    return ok(f"{name} was built from this code")


def _config(google: Google, host: str, path: str, reference: str) -> Response:
    """The image's configuration for linux/amd64, which holds its labels."""
    manifest = google.request("GET", host, f"/v2/{path}/manifests/{reference}", headers={"Accept": MANIFESTS})
    for one in manifest.body.get("manifests", []):
        if one.get("platform", {}).get("os") == "linux" and one["platform"].get("architecture") == "amd64":
            return _config(google, host, path, one["digest"])
    if manifest.status != 200:
        return manifest
    return google.request("GET", host, f"/v2/{path}/blobs/{manifest.body.get('config', {}).get('digest')}")


def _is_same_code(revision: str) -> bool:
    """Whether the images' source files are the same here as in the commit."""
    command = ["git", "-C", str(ROOT), "diff", "--quiet", revision, "--", *SOURCES]
    return (
        re.fullmatch("[0-9a-f]+", revision) is not None and subprocess.run(command, capture_output=True).returncode == 0
    )
