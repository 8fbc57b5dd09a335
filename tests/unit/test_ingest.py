import csv
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mf.errors import ConfigError, DataError
from mf.ingest import ingest
from mf.ratings.config import IngestConfig, SplitConfig
from mf.ratings.schema import USER, read_ratings


def test_a_csv_file_becomes_parquet_and_a_file_of_rejects(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("userId,movieId,rating\n" + "".join(f"{i},1,4\n" for i in range(99)) + "5,1,bad\n")
    provenance = ingest(IngestConfig.of(ratings_csv=str(source)), tmp_path / "out.parquet", tmp_path / "rejects.csv")
    table, kept = read_ratings(tmp_path / "out.parquet")
    assert kept == provenance
    assert (kept.source, kept.rows_read, kept.rows_rejected, kept.rows_kept) == (str(source), 100, 1, 99)
    assert table[USER].to_pylist() == list(range(99))
    with (tmp_path / "rejects.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == ["line 101", 'rating "bad" is not a number', "5,1,bad"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "found neither"),
        ({"ratings_csv": "a", "import_table": "b"}, "found both"),
        ({"import_table": "b"}, "no Supabase project: give --supabase_url or set SUPABASE_URL"),
        ({"import_table": "auth.users"}, "--import_table auth.users: expected a table of the schema public"),
    ],
)
def test_not_exactly_one_readable_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, str], message: str
) -> None:
    for name in ("SUPABASE_URL", "SUPABASE_DB_URL", "SUPABASE_DB_URL_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=message):
        ingest(IngestConfig.of(**config), tmp_path / "out.parquet", tmp_path / "rejects.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_source_leaves_earlier_results_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("userId,movieId,rating\n1,1,4\n")
    config = IngestConfig.of(ratings_csv=str(tmp_path / "in.csv"))
    before = ingest(config, tmp_path / "out.parquet", tmp_path / "rejects.csv")
    (tmp_path / "in.csv").write_text("userId,movieId,rating\n1,1,x\n")
    with pytest.raises(DataError):
        ingest(config, tmp_path / "out.parquet", tmp_path / "rejects.csv")
    assert read_ratings(tmp_path / "out.parquet")[1] == before


def test_an_import_that_is_killed_leaves_earlier_results_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("userId,movieId,rating\n1,1,4\n")
    config = IngestConfig.of(ratings_csv=str(tmp_path / "in.csv"))
    ingest(config, tmp_path / "out.parquet", tmp_path / "rejects.csv")
    before = [(tmp_path / name).read_bytes() for name in ("out.parquet", "rejects.csv")]
    (tmp_path / "in.csv").write_text("userId,movieId,rating\n" + "".join(f"{i},{i % 7},4\n" for i in range(500_000)))
    # The file is being written when it first has bytes.
    program = """if True:
        import os, signal, sys, threading, time
        from pathlib import Path
        from mf.ratings.config import IngestConfig
        from mf.ingest import ingest
        folder = Path(sys.argv[1])
        def kill():
            while not any(part.stat().st_size for part in folder.glob(".out.parquet.*.part")):
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=kill, daemon=True).start()
        ingest(IngestConfig.of(ratings_csv=str(folder / "in.csv")), folder / "out.parquet", folder / "rejects.csv")
        """
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, timeout=900)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert [(tmp_path / name).read_bytes() for name in ("out.parquet", "rejects.csv")] == before
    assert ingest(config, tmp_path / "out.parquet", tmp_path / "rejects.csv").rows_kept == 500_000


@pytest.mark.parametrize("address", ["gs://", "gs://bucket", "gs://bucket/", "gs:///object"])
def test_a_malformed_address_in_cloud_storage_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(DataError, match=f"{address}: expected gs://bucket/object"):
        ingest(IngestConfig.of(ratings_csv=address), tmp_path / "out.parquet", tmp_path / "rejects.csv")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"val_size": 0.5, "test_size": 0.5}, "their sum must be below 1"),
        ({"test_size": 1.0}, "test_size: .*less than 1"),
        ({"val_size": -0.1}, "val_size: .*greater than or equal to 0"),
        ({"split": "newest"}, "split: .*'random', 'hash', 'time' or 'leave_last'"),
    ],
)
def test_sizes_that_leave_nothing_and_unknown_splits_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SplitConfig.of(**values)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rated_since": "yesterday"}, "^rated_since: expected a time in ISO 8601.*given: 'yesterday'"),
        ({"rated_before": "0001-01-01T00:00:00+01:00"}, "^rated_before: expected a time in ISO 8601"),
        ({"rated_since": "2024-01-01", "rated_before": "2024-01-01T01:00+01:00"}, "is not before rated_before"),
        ({"import_table": "", "ratings_csv": "a.csv", "rated_since": "2024-01-01"}, "a file is read whole"),
    ],
)
def test_a_span_of_time_that_cannot_be_is_refused(config: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IngestConfig.of(**{"import_table": "ratings", **config})


def test_a_span_of_time_without_a_zone_is_utc() -> None:
    config = IngestConfig.of(import_table="ratings", rated_since="2024-02-29", rated_before="2024-02-29T12:30:00+02:00")
    assert config.since == datetime(2024, 2, 29, tzinfo=UTC)
    assert config.before == datetime(2024, 2, 29, 10, 30, tzinfo=UTC)
