import gzip
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fake_gcs import fake_gcs
from google.cloud import storage

from mf.errors import DataError
from mf.ingest import ingest
from mf.ratings import fetch
from mf.ratings.config import IngestConfig
from mf.ratings.fetch import local_copy
from mf.ratings.schema import USER, read_ratings
from mf.ratings.titles import titles_beside

CONTENT = b"userId,movieId,rating\n1,10,4.5\n2,10,3\n"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with fake_gcs() as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[storage.Bucket]:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    bucket = storage.Client(project="test").create_bucket(tmp_path.name.replace("_", "-")[:60].strip("-"))
    yield bucket
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("content", [CONTENT, gzip.compress(CONTENT)], ids=["plain", "gzip"])
def test_ratings_are_read_from_cloud_storage(bucket: storage.Bucket, tmp_path: Path, content: bytes) -> None:
    bucket.blob("folder/ratings é.csv").upload_from_string(content)
    address = f"gs://{bucket.name}/folder/ratings é.csv"
    provenance = ingest(IngestConfig.of(ratings_csv=address), tmp_path / "out.parquet", tmp_path / "rejects.csv")
    assert (provenance.source, provenance.rows_kept) == (address, 2)
    assert read_ratings(tmp_path / "out.parquet")[0][USER].to_pylist() == [1, 2]


@pytest.mark.parametrize("address", ["set/", "set/*/*.csv", "set/**.csv", "set/part-?/[rs]*.csv"])
def test_the_objects_of_a_folder_or_a_glob_are_one_source(bucket: storage.Bucket, tmp_path: Path, address: str) -> None:
    for name, content in {
        "part-1/r.csv": CONTENT,
        "part-2/s.csv": CONTENT.replace(b"10", b"20"),
        "_SUCCESS": b"",
    }.items():
        bucket.blob(f"set/{name}").upload_from_string(content)
    bucket.blob("settings/r.csv").upload_from_string(b"nothing")
    config = IngestConfig.of(ratings_csv=f"gs://{bucket.name}/{address}")
    assert ingest(config, tmp_path / "out.parquet", tmp_path / "rejects.csv").rows_kept == 4


def test_a_folder_and_a_glob_without_objects_are_named(bucket: storage.Bucket) -> None:
    for address, message in (("none/", "no such folder"), ("*.csv", "no object matches")):
        with pytest.raises(DataError, match=message), local_copy(f"gs://{bucket.name}/{address}"):
            pass


def test_titles_are_found_beside_ratings_in_cloud_storage(bucket: storage.Bucket) -> None:
    address = f"gs://{bucket.name}/folder/ratings.csv"
    assert titles_beside(address) == {}
    bucket.blob("folder/movies.csv").upload_from_string("movieId,title\n10,Léon\n")
    assert titles_beside(address) == {"10": "Léon"}


def test_a_bad_file_in_cloud_storage_is_named_by_its_address(bucket: storage.Bucket, tmp_path: Path) -> None:
    bucket.blob("r.csv").upload_from_string(b"userId,movieId,rating\n1,10,x\n")
    config = IngestConfig.of(ratings_csv=f"gs://{bucket.name}/r.csv")
    with pytest.raises(DataError, match=f"^gs://{bucket.name}/r.csv: 1 of 1 rows are bad"):
        ingest(config, tmp_path / "out.parquet", tmp_path / "rejects.csv")


@pytest.mark.parametrize("there", [True, False])
def test_a_missing_object_and_a_missing_bucket_are_one_line(bucket: storage.Bucket, there: bool) -> None:
    address = f"gs://{bucket.name if there else 'no-such-bucket'}/none.csv"
    with pytest.raises(DataError, match=f"^{address}: no such object, or no such bucket"), local_copy(address):
        pass


def test_missing_credentials_are_one_line_that_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    with (
        pytest.raises(DataError, match=r"^gs://b/o: Google credentials are missing.*gcloud auth"),
        local_copy("gs://b/o"),
    ):
        pass


def test_credentials_that_name_no_project_are_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They get as far as asking for a token, of a server that is not there."""
    key = (
        rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    )
    account = {"type": "service_account", "client_email": "a@b", "private_key": key}
    (tmp_path / "account.json").write_text(json.dumps(account | {"token_uri": "http://127.0.0.1:1/token"}))
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    for project in ("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"):
        monkeypatch.delenv(project, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setattr(fetch, "RETRY_S", 0.5)
    with pytest.raises(DataError, match=r"^gs://bucket/o: cannot be fetched"), local_copy("gs://bucket/o"):
        pass


def test_a_name_that_no_bucket_can_have_is_one_line(bucket: storage.Bucket) -> None:
    with pytest.raises(DataError, match=r"^gs://-b/o: Bucket names must start"), local_copy("gs://-b/o"):
        pass


def test_a_server_that_is_not_there_is_one_line_after_a_bounded_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gcs() as url:
        pass
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    monkeypatch.setattr(fetch, "RETRY_S", 0.5)
    with pytest.raises(DataError, match=r"^gs://bucket/o: cannot be fetched"), local_copy("gs://bucket/o"):
        pass
