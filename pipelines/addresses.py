"""Addresses of ratings files in buckets."""

import re

from mf.errors import ConfigError

BROWSER = re.compile(
    r"https?://(?:storage\.(?:cloud\.google|googleapis)\.com|console\.cloud\.google\.com/storage/browser(?:/_details)?)/"
    r"([^?#;]+)"
)
# Buckets that the steps can read, by target; /gcs/ is a mounted folder of Vertex AI.
FORMS = {
    "vertex": r"(gs|s3)://[^/]+/.+|/gcs/[^/]+/.+",
    "kubeflow": r"(gs|s3)://[^/]+/.+",
}
EXPECTED = {"vertex": "gs://bucket/object", "kubeflow": "s3://bucket/object or gs://bucket/object"}


def check_ratings_csv(address: str, target: str) -> None:
    """Refuses a ratings file that no step on another machine can read.

    Raises:
        ConfigError: it is not in a bucket; an address for browsers is named as it should be.
    """
    if not address or re.fullmatch(FORMS[target], address):
        return
    hint = ", which the steps cannot read: upload it to a bucket first, gcloud storage cp"
    if browser := BROWSER.match(address):
        hint = f", an address for browsers: give gs://{browser[1]}"
    elif scheme := re.match(r"(?i)(gs|s3):/*(?=[^/]+/.)", address):
        hint = f": give {scheme[1].lower()}://{address[scheme.end() :]}"
    elif scheme := re.match(r"(?i)(gcs|s3a|s3n|minio)://(?=.)", address):
        its = "gs" if scheme[1].lower() == "gcs" else "s3"
        hint = f": give {its}://{address[scheme.end() :]}"
        hint += " and AWS_ENDPOINT_URL (docs/kubeflow.md)" if scheme[1].lower() == "minio" else ""
    elif address.startswith("/gcs/"):
        hint = f": give gs://{address.removeprefix('/gcs/')}"
    elif re.match(r"(gs|s3)://", address):
        hint = ", which names no object in a bucket"
    raise ConfigError(f"ratings_csv: expected {EXPECTED[target]}, found {address!r}{hint}")
