"""Ratings files in an S3 service, moto's server."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from mf.errors import DataError
from mf.ingest import ingest
from mf.ratings.config import IngestConfig
from mf.ratings.fetch import local_copy

CONTENT = b"userId,movieId,rating\n1,10,4.5\n2,10,3\n"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "planted-key",
        "AWS_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="ratings")
    client.put_object(Bucket="ratings", Key="folder/ratings é.csv", Body=CONTENT)
    client.put_object(Bucket="ratings", Key="ratings.csv.gz", Body=gzip.compress(CONTENT))
    return "s3://ratings"


@pytest.mark.parametrize("name", ["folder/ratings é.csv", "ratings.csv.gz"])
def test_ratings_are_read_from_s3(bucket: str, tmp_path: Path, name: str) -> None:
    config = IngestConfig.of(ratings_csv=f"{bucket}/{name}")
    provenance = ingest(config, tmp_path / "out.parquet", tmp_path / "rejects.csv")
    assert (provenance.source, provenance.rows_kept) == (f"{bucket}/{name}", 2)


@pytest.mark.parametrize("address", ["s3://ratings/none.csv", "s3://no-such-bucket/r.csv"])
def test_a_missing_object_and_a_missing_bucket_are_one_line(bucket: str, address: str) -> None:
    with pytest.raises(DataError) as error, local_copy(address):
        pass
    assert str(error.value).startswith(f"{address}: no")
    assert "planted-key" not in str(error.value)


def test_an_address_without_an_object_is_refused(bucket: str) -> None:
    with pytest.raises(DataError, match=r"^s3://ratings: expected s3://bucket/object"), local_copy("s3://ratings"):
        pass


def test_a_service_that_does_not_answer_is_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(DataError, match=r"^s3://ratings/r.csv: cannot be fetched \("), local_copy("s3://ratings/r.csv"):
        pass
