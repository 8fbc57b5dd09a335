"""Download from Google Cloud Storage: a gs:// address as a local path."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mf.errors import DataError, needs_extra

# Retry limit for looking up the object while the server has transient errors. A broken transfer is resumed with the
# library's own limit.
RETRY_S = 20.0


@contextmanager
def local_copy(address: str) -> Iterator[Path]:
    """The path to read ``address`` from: a local path unchanged, ``gs://bucket/object`` as a temporary copy, deleted
    when the block ends.

    Credentials are Google's application default; the server of ``STORAGE_EMULATOR_HOST`` is used without any.

    Raises:
        DataError: the address is malformed, or the bucket or object is missing or not readable.
    """
    if re.match("https?://", address):
        raise DataError(
            f"{address.split('?')[0]}: a web address, expected a path or gs://bucket/object: download the file first "
            "(curl -LO) and name it"
        )
    if not address.startswith("gs://"):
        yield Path(address)
        return
    match = re.fullmatch(r"gs://([^/]+)/(.*[^/])", address)
    if not match:
        raise DataError(f"{address}: expected gs://bucket/object with the name of one object")
    with tempfile.TemporaryDirectory(prefix="mf-") as folder:
        path = Path(folder) / "object"
        _download(match[1], match[2], path, address)
        yield path


def _download(bucket: str, name: str, path: Path, address: str) -> None:
    # Imported here: it takes a second, which reading local files should not.
    with needs_extra("gcp", f"reading {address}"):
        from google.api_core import exceptions
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError
        from google.cloud import storage  # type: ignore[attr-defined]
        from google.cloud.storage.retry import DEFAULT_RETRY
        from requests import RequestException

    try:
        # Reading an object needs no project; without this argument the library refuses credentials without one.
        blob = storage.Client(project=None).bucket(bucket).blob(name)
        blob.reload(retry=DEFAULT_RETRY.with_timeout(RETRY_S))
        blob.download_to_filename(str(path))
    except exceptions.NotFound:
        raise DataError(f"{address}: no such object, or no such bucket; check the address") from None
    except (exceptions.Forbidden, exceptions.Unauthorized):
        raise DataError(f"{address}: not allowed; grant this account the role Storage Object Viewer") from None
    except (DefaultCredentialsError, RefreshError):
        raise DataError(
            f"{address}: Google credentials are missing or have expired; run: gcloud auth application-default login"
        ) from None
    except ValueError as error:
        raise DataError(f"{address}: {error}") from None
    except (exceptions.GoogleAPIError, GoogleAuthError, RequestException) as error:
        raise DataError(f"{address}: cannot be fetched ({type(error).__name__}); check the network and retry") from None
