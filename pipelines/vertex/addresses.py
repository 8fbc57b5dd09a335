"""Addresses of objects in Cloud Storage."""

import re

from mf.errors import ConfigError

BROWSER = re.compile(
    r"https?://(?:storage\.(?:cloud\.google|googleapis)\.com|console\.cloud\.google\.com/storage/browser(?:/_details)?)/"
    r"([^?#]+)"
)
SCHEMES = ("gs://", "s3://", "/gcs/")


def check_ratings_csv(address: str) -> None:
    """Refuses a ratings file that no step on another machine can read.

    Raises:
        ConfigError: it is not in a bucket; an address for browsers is named as it should be.
    """
    if not address or address.startswith(SCHEMES):
        return
    if browser := BROWSER.match(address):
        hint = f", an address for browsers: give gs://{browser[1]}"
    elif address.startswith("gs:"):
        hint = f": give gs://{address.removeprefix('gs:').lstrip('/')}"
    else:
        hint = ", which the steps cannot read: upload it to a bucket first, gcloud storage cp"
    raise ConfigError(f"ratings_csv: expected gs://bucket/object, found {address!r}{hint}")
