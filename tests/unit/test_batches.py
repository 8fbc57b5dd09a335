"""Reading ratings in batches of bounded memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mf.ratings import batches, schema
from mf.ratings.batches import Batches
from mf.ratings.schema import MOVIE, RATING, USER, Provenance, write_ratings


def test_a_file_is_read_without_holding_more_than_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, group = 640_000, 20_000
    monkeypatch.setattr(schema, "ROW_GROUP", group)
    monkeypatch.setattr(batches, "ROWS", group)
    rng = np.random.default_rng(0)
    users = pa.array(np.sort(rng.integers(0, 1 << 40, rows)))
    movies = pa.array(rng.integers(0, 1 << 60, rows))  # which do not compress
    ratings = pa.table({USER: users, MOVIE: movies, RATING: pa.array(np.ones(rows, np.float32))})
    write_ratings(ratings, tmp_path / "r.parquet", Provenance("memory", rows, 0, 0, rows))
    assert (tmp_path / "r.parquet").stat().st_size > 10 * rows
    before, most, read = pa.total_allocated_bytes(), 0, 0
    for batch in Batches(tmp_path / "r.parquet").read():
        most, read = max(most, pa.total_allocated_bytes() - before), read + len(batch)
        assert batch.equals(ratings.slice(read - len(batch), len(batch)))
    assert read == rows
    assert most < 100 * group
