"""Addresses of ratings files that the steps can read."""

import re

from mf.errors import ConfigError
from mf.ratings.addresses import BROWSER, meant_address

# By target; /gcs/ is a mounted folder of Vertex AI.
FORMS = {
    "vertex": r"(gs|s3)://[^/\s]+/.+|/gcs/[^/]+/.+",
    "kubeflow": r"(gs|s3)://[^/\s]+/.+",
}
EXPECTED = {"vertex": "gs://bucket/object", "kubeflow": "s3://bucket/object or gs://bucket/object"}


def check_ratings_csv(address: str, target: str) -> None:
    """Refuses a ratings file that no step on another machine can read.

    Raises:
        ConfigError: it is not in a bucket; the address that was probably meant is named.
    """
    if not address or re.fullmatch(FORMS[target], address):
        return
    hint = ", which the steps cannot read: upload it to a bucket first, gcloud storage cp"
    if meant := meant_address(address):
        hint = f"{', an address for browsers' if BROWSER.match(address) else ''}: give {meant}"
    elif address.startswith("/gcs/"):
        hint = f": give gs://{address.removeprefix('/gcs/')}"
    elif re.match(r"(gs|s3)://", address):
        hint = ", which names no object in a bucket"
    raise ConfigError(f"ratings_csv: expected {EXPECTED[target]}, found {address!r}{hint}")
