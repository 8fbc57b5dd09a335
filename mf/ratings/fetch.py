"""A file that may lie in Google Cloud Storage, as a local path."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mf.errors import DataError

# How long a server that answers with passing faults is asked for an object that is still to be found; a transfer that
# breaks off is taken up again for as long as the library thinks right.
RETRY_S = 20.0


@contextmanager
def local_copy(address: str) -> Iterator[Path]:
    """A path to read ``address`` from: a local path as it is, ``gs://bucket/object`` as a temporary copy that goes when
    the block ends.

    Credentials are Google's application default; with ``STORAGE_EMULATOR_HOST`` set, that server is asked without any.

    Raises:
        DataError: the address is malformed, the bucket or the object is not there, or may not be read.
    """
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
    # Imported here: who reads local files only does not pay the second it takes.
    from google.api_core import exceptions
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError
    from google.cloud import storage  # type: ignore[attr-defined]
    from google.cloud.storage.retry import DEFAULT_RETRY
    from requests import RequestException

    try:
        # Reading an object needs no project; left out, the library refuses credentials that name none.
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
