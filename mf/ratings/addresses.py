"""Slips in addresses of files in buckets."""

import re

BROWSER = re.compile(
    r"https?://(?:storage\.(?:cloud\.google|googleapis)\.com|console\.cloud\.google\.com/storage/browser(?:/_details)?)/"
    r"([^?#;]+)"
)
SLIPS = (
    (r"\s*(?i:gs):/*|gcs://", "gs://"),  # gs:/bucket, GS://bucket, a blank before it
    (r"\s*(?i:s3):/*|s3[an]://|minio://", "s3://"),
)


def meant_address(address: str) -> str:
    """The address in a bucket that was probably meant by one that is none; empty where none was."""
    if browser := BROWSER.match(address):
        return f"gs://{browser[1]}"
    for pattern, scheme in SLIPS:
        if match := re.match(rf"({pattern})(?=[^/\s]+/.)", address):
            return scheme + address[match.end() :].strip()
    return ""
