from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mf.ratings.schema import Provenance, content_hash, ratings_schema, read_ratings, write_parts, write_ratings

MOMENT = datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)
ROWS = [("a", 1, 2.5, MOMENT), ("ab", 1, 2.5, None), ("b", 2, 0.5, MOMENT)]
FROM = Provenance("r.csv", 4, 0, 1, 3)


def table(rows: list[tuple[object, ...]], user: pa.DataType = pa.string()) -> pa.Table:  # noqa: B008
    schema = ratings_schema(user, pa.int64(), timestamps=True)
    columns = zip(*rows, strict=True) if rows else [[]] * 4
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema)


def test_the_hash_is_of_the_rows_however_their_memory_is_cut() -> None:
    whole = table(ROWS)
    for cut in (pa.concat_tables([whole[:1], whole[1:1], whole[1:]]), table([("x", 9, 9.0, None), *ROWS])[1:]):
        assert content_hash(cut) == content_hash(whole)
    assert len(content_hash(table([]))) == 16


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:2],
        [ROWS[1], ROWS[0], ROWS[2]],
        [("aa", 1, 2.5, MOMENT), ("b", 1, 2.5, None), ROWS[2]],  # the same letters, divided elsewhere
        [("a", 1, 2.0, MOMENT), *ROWS[1:]],
        [("a", 1, 2.5, None), *ROWS[1:]],
        [("a", 1, 2.5, MOMENT.replace(microsecond=1)), *ROWS[1:]],
    ],
)
def test_other_rows_have_another_hash(rows: list[tuple[object, ...]]) -> None:
    assert content_hash(table(rows)) != content_hash(table(ROWS))


def test_a_number_has_another_hash_than_its_text() -> None:
    numbers, texts = table([(7, 1, 1.0, None)], pa.int64()), table([("7", 1, 1.0, None)])
    assert content_hash(numbers) != content_hash(texts)


@pytest.mark.parametrize("rows", [ROWS, []])
def test_a_table_comes_back_with_its_provenance_which_stands_in_the_schema(
    tmp_path: Path, rows: list[tuple[object, ...]]
) -> None:
    written = write_ratings(table(rows), tmp_path / "a.parquet", FROM)
    back, provenance = read_ratings(tmp_path / "a.parquet")
    assert back == table(rows)
    assert back.schema == table(rows).schema
    assert provenance == written
    assert set(pq.read_schema(tmp_path / "a.parquet").metadata) == {b"mf"}
    assert set(pq.read_table(tmp_path / "a.parquet").schema.metadata) == {b"mf"}


def test_a_table_in_parts_is_the_same_file_but_for_its_row_groups(tmp_path: Path) -> None:
    whole = table(ROWS)
    in_one = write_ratings(whole, tmp_path / "a.parquet", FROM)
    in_parts = write_parts([whole[:1], whole[1:]], whole.schema, tmp_path / "b.parquet", lambda rows: FROM)
    assert in_parts == in_one
    assert read_ratings(tmp_path / "b.parquet")[0] == whole


def test_parts_that_break_off_leave_no_file(tmp_path: Path) -> None:
    def parts() -> object:
        yield table(ROWS)
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_parts(parts(), table(ROWS).schema, tmp_path / "a.parquet", lambda rows: FROM)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
