"""Download from an S3 service: s3://bucket/object."""

import os
import re
import shutil
from pathlib import Path

from mf.errors import DataError

CHUNK = 16 * 2**20
CONNECT_S, REQUEST_S = 10.0, 120.0


def download(address: str, path: Path) -> None:
    """Writes the object at ``s3://bucket/object`` to ``path``.

    Credentials are AWS's own: ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY``, ``~/.aws``, or the machine's role.
    ``AWS_ENDPOINT_URL`` names another service, such as MinIO.

    Raises:
        DataError: the address is malformed, or the bucket or object is missing or not readable.
    """
    # Imported here: it takes a while, which reading local files should not.
    from pyarrow.fs import FileType, S3FileSystem

    match = re.fullmatch(r"s3://([^/]+)/(.*[^/])", address)
    if not match:
        raise DataError(f"{address}: expected s3://bucket/object with the name of one object")
    has_key = "AWS_ACCESS_KEY_ID" in os.environ
    options = {
        "region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        "endpoint_override": os.environ.get("AWS_ENDPOINT_URL") or None,
        "connect_timeout": CONNECT_S,
        "request_timeout": REQUEST_S,
    }
    name = f"{match[1]}/{match[2]}"
    # Without a key in the environment: the machine's own role, then as for a public bucket.
    for anonymous in (False,) if has_key else (False, True):
        try:
            service = S3FileSystem(**options, anonymous=anonymous)
            if service.get_file_info(name).type != FileType.File:
                raise DataError(f"{address}: no such object, or no such bucket; check the address")
            with service.open_input_stream(name) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK)
            return
        except OSError as error:
            reason = " ".join(str(error).split())
    if re.search(r"ACCESS_DENIED|HTTP status 40[13]|InvalidAccessKeyId|SignatureDoesNotMatch", reason):
        raise DataError(f"{address}: not allowed; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of a reader")
    raise DataError(f"{address}: cannot be fetched ({reason[:200]}); check the network and retry")
