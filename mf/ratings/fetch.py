"""The files of an address: a path, a folder, a glob, or the same in Google Cloud Storage (downloaded)."""

import glob
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mf.errors import DataError, needs_extra
from mf.ratings import s3

# Retry limit for looking up the object while the server has transient errors. A broken transfer is resumed with the
# library's own limit.
RETRY_S = 20.0
TABLE = re.compile(
    r"(?i)\.(csv|tsv|dat|txt|data|jsonl|ndjson|json|parquet|pq)(\.(gz|bz2|xz|zst))?$|(^|/)part-[^/]*$|^[^.]+$"
)
BESIDE = re.compile(r"(?i)(^|/)(__MACOSX/|[._]|readme|license)")  # files beside ratings: hidden ones, Spark's _SUCCESS


class SourceFile(NamedTuple):
    """One file of an address."""

    name: str  # as errors show it
    path: Path


@contextmanager
def local_files(address: str) -> Iterator[list[SourceFile]]:
    """The files of ratings at ``address``, by name: one file, those of a folder and the folders in it, or those that a
    glob matches; ``gs://bucket/…`` and ``s3://bucket/object`` as temporary copies, deleted when the block ends. Of a
    folder with other tables, as MovieLens', the one that is called ratings.

    Credentials are Google's application default; the server of ``STORAGE_EMULATOR_HOST`` is used without any.

    Raises:
        DataError: the address is malformed, there is no such file, or it may not be read.
    """
    address = address.removeprefix("file://")
    scheme = re.match(r"([a-zA-Z][\w+.-]*)://", address)
    path = Path(address)
    if scheme and scheme[1] == "gs":
        with _downloaded(address) as files:
            yield files
    elif scheme and scheme[1] == "s3":
        with tempfile.TemporaryDirectory(prefix="mf-") as folder:
            s3.download(address, Path(folder) / "object")
            yield [SourceFile(address, Path(folder) / "object")]
    elif scheme:
        # The address may hold a password or a token.
        raise DataError(
            f"found an address of {scheme[1]}://, expected a path, gs://bucket/object or s3://bucket/object: download "
            "the file first (curl -LO) and name it"
        )
    elif path.is_dir():
        names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        names = _named(ratings_among(names), f"{address}: a folder")
        yield [SourceFile(str(path / name), path / name) for name in names]
    elif not path.exists() and glob.has_magic(address):
        found = sorted(name for name in glob.glob(address, recursive=True) if Path(name).is_file())
        yield [SourceFile(name, Path(name)) for name in _named(found, f"{address}: no file matches")]
    else:
        yield [SourceFile(address, path)]


@contextmanager
def local_copy(address: str) -> Iterator[Path]:
    """The path of the one file at ``address``, as ``local_files``."""
    with local_files(address) as files:
        if len(files) > 1:
            raise DataError(f"{address}: {len(files)} files, expected one")
        yield files[0].path


def ratings_among(names: Sequence[str]) -> list[str]:
    """The names of tables, sorted; the one that is called ratings, where there is exactly one."""
    tables = sorted(name for name in names if TABLE.search(name) and not BESIDE.search(name))
    ratings = [name for name in tables if re.search(r"(?i)(^|/)ratings\.[^/]*$", name)]
    return ratings if len(ratings) == 1 else tables


def _named(names: list[str], what: str) -> list[str]:
    if not names:
        raise DataError(f"{what}, expected files of ratings (CSV, JSON lines or Parquet) in it")
    return names


@contextmanager
def _downloaded(address: str) -> Iterator[list[SourceFile]]:
    match = re.fullmatch(r"gs://([^/]+)/(.+)", address)
    if not match:
        raise DataError(f"{address}: expected gs://bucket/object, gs://bucket/folder/ or gs://bucket/*.csv")
    with tempfile.TemporaryDirectory(prefix="mf-") as folder:
        yield _download(match[1], match[2], Path(folder), address)


def _download(bucket_name: str, name: str, folder: Path, address: str) -> list[SourceFile]:
    # Imported here: it takes a second, which reading local files should not.
    with needs_extra("gcp", f"reading {address}"):
        from google.api_core import exceptions
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError
        from google.cloud import storage
        from google.cloud.storage.retry import DEFAULT_RETRY
        from requests import RequestException

    retry = DEFAULT_RETRY.with_timeout(RETRY_S)
    try:
        # Reading an object needs no project; without this argument the library refuses credentials without one.
        bucket = storage.Client(project=None).bucket(bucket_name)
        is_glob = glob.has_magic(name)
        if is_glob or name.endswith("/"):
            prefix = re.split(r"[*?\[]", name)[0] if is_glob else name
            listed = [blob.name for blob in bucket.list_blobs(prefix=prefix, retry=retry) if blob.name[-1] != "/"]
            if is_glob:
                names = _named(sorted(filter(_pattern(name).fullmatch, listed)), f"{address}: no object matches")
            else:
                within = ratings_among([one.removeprefix(name) for one in listed])
                names = [name + one for one in _named(within, f"{address}: no such folder, or a folder without tables")]
        else:
            names = [name]
        files = []
        for number, one in enumerate(names):
            blob = bucket.blob(one)
            blob.reload(retry=retry)
            blob.download_to_filename(str(folder / f"object-{number}"))
            files.append(SourceFile(f"gs://{bucket_name}/{one}", folder / f"object-{number}"))
        return files
    except exceptions.NotFound:
        raise DataError(
            f"{address}: no such object, or no such bucket; check the address (a folder's ends with /)"
        ) from None
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


def _pattern(name: str) -> re.Pattern[str]:
    """A glob as a regular expression: ``*`` and ``?`` stay within a folder, ``**`` does not."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    words = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", name)
    texts = (parts.get(word, word if re.fullmatch(r"\[.+\]", word) else re.escape(word)) for word in words)
    return re.compile("".join(texts))
