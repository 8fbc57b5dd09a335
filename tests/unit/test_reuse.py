"""Reuse of the checked ratings of an unchanged file."""

from pathlib import Path
from typing import Any

import pytest

from mf.errors import DataError
from mf.ratings.config import IngestConfig, SplitConfig
from mf.ratings.schema import read_ratings
from mf.ratings.split import PARTS, split_file
from mf.reuse import FOLDER, KEPT, ingest_once, split_once


def rows(n: int) -> str:
    return "userId,movieId,rating\n" + "".join(f"{i},{i % 7},{i % 5 + 1}\n" for i in range(n))


def test_an_unchanged_file_is_read_once_and_a_changed_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "kept"))
    file = tmp_path / "r.csv"
    config = IngestConfig(ratings_csv=str(file))

    def ingested(config: IngestConfig = config) -> tuple[int, bool]:
        provenance, reused = ingest_once(config, tmp_path / "out.parquet", tmp_path / "rejects.csv")
        table, written = read_ratings(tmp_path / "out.parquet")
        assert written == provenance
        return len(table), reused

    file.write_text(rows(50))
    assert [ingested(), ingested()] == [(50, False), (50, True)]
    assert ingested(IngestConfig(ratings_csv=str(file), max_reject_fraction=0.5)) == (50, False)
    for n in range(60, 60 + KEPT + 1):
        file.write_text(rows(n))
        assert [ingested(), ingested()] == [(n, False), (n, True)]
    assert len(list((tmp_path / "kept").iterdir())) == KEPT
    monkeypatch.delenv(FOLDER)
    assert [ingested(), ingested()] == [(60 + KEPT, False)] * 2


def test_a_file_that_is_refused_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "kept"))
    (tmp_path / "r.csv").write_text("userId,movieId,rating\n1,1,five\n")
    for _ in range(2):
        with pytest.raises(DataError, match="five"):
            ingest_once(IngestConfig(ratings_csv=str(tmp_path / "r.csv")), tmp_path / "o", tmp_path / "rejects.csv")
    assert list((tmp_path / "kept").iterdir()) == []


def test_unchanged_ratings_are_split_once_and_again_with_other_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "kept"))
    (tmp_path / "r.csv").write_text(rows(50))
    ingest_once(IngestConfig(ratings_csv=str(tmp_path / "r.csv")), tmp_path / "all.parquet", tmp_path / "rejects.csv")
    files, fresh = ([tmp_path / kind / part for part in PARTS] for kind in ("reused", "fresh"))
    (tmp_path / "fresh").mkdir()

    def divided(**options: Any) -> bool:
        config = SplitConfig(**options)
        written, reused = split_once(tmp_path / "all.parquet", files, config)
        assert written == split_file(tmp_path / "all.parquet", fresh, config)
        assert [path.read_bytes() for path in files] == [path.read_bytes() for path in fresh]
        return reused

    assert [divided(), divided(), divided(seed=1), divided(val_size=0.2), divided()] == [
        False,
        True,
        False,
        False,
        True,
    ]
    # The ingested file and two more splits than are kept.
    assert [divided(seed=2), divided(seed=1)] == [False, False]
    assert len(list((tmp_path / "kept").iterdir())) == 1 + KEPT
    for file in files:
        file.unlink()
    assert divided(seed=1)
