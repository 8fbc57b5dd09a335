import csv
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from mf.errors import DataError
from mf.ratings import collect, rejects, spill
from mf.ratings.collect import Collector
from mf.ratings.schema import MOVIE, RATED_AT, RATING, TIMESTAMP, USER, Provenance, read_ratings


def batch(
    users: list[object], movies: list[object], ratings: list[float], seconds: list[int] | None = None
) -> pa.Table:
    columns = {USER: pa.array(users), MOVIE: pa.array(movies), RATING: pa.array(ratings, pa.float32())}
    if seconds is not None:
        columns[RATED_AT] = pa.array([s * 1_000_000 for s in seconds]).cast(TIMESTAMP)
    return pa.table(columns)


def finish(collector: Collector, folder: Path) -> tuple[list[tuple[object, ...]], Provenance]:
    """The written rows and their provenance."""
    returned = collector.finish(folder / "ratings.parquet", folder / "rejects.csv", {USER: "uid"})
    table, provenance = read_ratings(folder / "ratings.parquet")
    assert returned == provenance
    return [tuple(row.values()) for row in table.to_pylist()], provenance


def test_rows_are_sorted_by_user_and_movie_and_accounted_for(tmp_path: Path) -> None:
    collector = Collector("r.csv", 0.5)
    collector.add(batch([10, 9], [1, 2], [1, 2]))
    collector.reject("line 4", "empty user id", ",1,3")
    collector.add(batch([9], [1], [3]))
    rows, provenance = finish(collector, tmp_path)
    assert rows == [(9, 1, 3.0), (9, 2, 2.0), (10, 1, 1.0)]
    assert replace(provenance, values="") == Provenance("r.csv", 4, 1, 0, 3, provenance.content_hash, {USER: "uid"})


def test_integers_become_strings_as_soon_as_one_batch_has_strings(tmp_path: Path) -> None:
    collector = Collector("r.csv", 0)
    collector.add(batch([10, 9007199254740993], [1, 2], [1, 2]))
    collector.add(batch(["9", "10"], [1, 1], [3, 4]))
    rows, provenance = finish(collector, tmp_path)
    assert rows == [("10", 1, 4.0), ("9", 1, 3.0), ("9007199254740993", 2, 2.0)]
    assert provenance.rows_replaced == 1


def test_the_last_rating_of_a_pair_is_kept_when_there_are_no_timestamps(tmp_path: Path) -> None:
    collector = Collector("r.csv", 0)
    collector.add(batch([1, 1, 2], [5, 5, 5], [1, 2, 9]))
    collector.add(batch([1], [5], [3]))
    rows, provenance = finish(collector, tmp_path)
    assert rows == [(1, 5, 3.0), (2, 5, 9.0)]
    assert (provenance.rows_read, provenance.rows_replaced, provenance.rows_kept) == (4, 2, 2)


def test_the_newest_rating_of_a_pair_is_kept_and_of_equally_old_ones_the_last(tmp_path: Path) -> None:
    collector = Collector("r.csv", 0)
    collector.add(batch([1, 1, 2, 2], [5, 5, 5, 5], [1, 2, 3, 4], [20, 10, 7, 7]))
    rows, _ = finish(collector, tmp_path)
    assert rows == [
        (1, 5, 1.0, datetime(1970, 1, 1, 0, 0, 20, tzinfo=UTC)),
        (2, 5, 4.0, datetime(1970, 1, 1, 0, 0, 7, tzinfo=UTC)),
    ]


def test_rejects_are_written_as_csv_and_are_a_header_when_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejects, "IN_MEMORY", 20)
    bad = [("line 2", 'rating "a" is not a number', '1,"é",a'), ("line 3", "holds two\nlines", "x\udcff")]
    for rejected in (bad, []):
        collector = Collector("r.csv", 1)
        collector.add(batch([1], [1], [1]))
        for row in rejected:
            collector.reject(*row)
        finish(collector, tmp_path)
        with (tmp_path / "rejects.csv").open(newline="", encoding="utf-8") as file:
            written = [tuple(row) for row in csv.reader(file)]
        assert written == [
            ("where", "reason", "row"),
            *((a, b, c.replace("\udcff", r"\udcff")) for a, b, c in rejected),
        ]


def test_more_bad_rows_than_allowed_are_an_error_that_shows_the_first_three(tmp_path: Path) -> None:
    collector = Collector("r.csv", 0.03)
    collector.add(batch(list(range(96)), [1] * 96, [1] * 96))
    for line in (5, 7, 9, 11):
        collector.reject(f"line {line}", "empty user id", ",1,3")
    with pytest.raises(DataError) as caught:
        finish(collector, tmp_path)
    assert str(caught.value) == (
        "r.csv: 4 of 100 rows are bad (4.00%, at most 3.00% may be): line 5: empty user id; line 7: empty user id; "
        "line 9: empty user id … - correct them, or allow more with --max_reject_fraction"
    )
    assert list(tmp_path.iterdir()) == []


def test_exactly_as_many_bad_rows_as_allowed_pass(tmp_path: Path) -> None:
    collector = Collector("r.csv", 0.01)
    collector.add(batch(list(range(99)), [1] * 99, [1] * 99))
    collector.reject("line 5", "empty user id", ",1,3")
    assert finish(collector, tmp_path)[1].rows_rejected == 1


@pytest.mark.parametrize(("rejected", "message"), [(0, "no ratings found"), (2, r"2 of 2 rows are bad \(100.00%")])
def test_a_source_without_one_good_row_is_an_error_whatever_is_allowed(
    tmp_path: Path, rejected: int, message: str
) -> None:
    collector = Collector("r.csv", 1)
    collector.add(batch([], [], []))
    for line in range(rejected):
        collector.reject(f"line {line}", "empty user id", "")
    with pytest.raises(DataError, match=message):
        finish(collector, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_neither_file(tmp_path: Path) -> None:
    collector = Collector("r.csv", 1)
    collector.add(batch([1], [1], [1]))
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        collector.finish(tmp_path / "file" / "ratings.parquet", tmp_path / "rejects.csv", {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("user_of", [str, lambda i: i - 25, lambda i: i * 10**15])  # text, near, far apart
@pytest.mark.parametrize("timed", [True, False])
def test_the_result_does_not_depend_on_how_the_source_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_of: Callable[[int], int | str], timed: bool
) -> None:
    monkeypatch.setattr(collect, "CHUNK", 7)
    monkeypatch.setattr(collect, "BATCH", 30)
    monkeypatch.setattr(spill, "PART", 40)
    users, movies = [user_of(i * 37 % 50) for i in range(400)], [i * 11 % 30 for i in range(400)]
    seconds = [i * 7 % 300 for i in range(400)]
    kept: dict[object, tuple[object, ...]] = {}
    for i in sorted(range(400), key=lambda i: seconds[i] if timed else 0):
        kept[users[i], movies[i]] = (users[i], movies[i], float(i))
    hashes = set()
    for size in (400, 64, 1):
        collector = Collector("r.csv", 0)
        for i in range(0, 400, size):
            cut = slice(i, min(i + size, 400))
            ratings = [float(j) for j in range(400)[cut]]
            collector.add(batch(users[cut], movies[cut], ratings, seconds[cut] if timed else None))
        rows, provenance = finish(collector, tmp_path)
        assert [row[:3] for row in rows] == sorted(kept.values())
        assert provenance.rows_replaced == 400 - len(kept) > 0
        hashes.add(provenance.content_hash)
    assert len(hashes) == 1


def test_more_different_text_than_an_array_holds_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def collected(ids: list[str]) -> None:
        sink = Collector("source", 0.0)
        for _ in range(2):  # ids that are known take no more room
            sink.add(
                pa.table({"user_id": ids, "movie_id": [1] * len(ids), "rating": pa.array([3.0] * len(ids), "float")})
            )
            sink._flush()
        sink.finish(tmp_path / "ratings", tmp_path / "rejects", {})

    monkeypatch.setattr("mf.ratings.collect.MOST_TEXT", 1000)
    collected([f"{i:04}" for i in range(100)])
    with pytest.raises(DataError, match="found more than 1,000 bytes of different text ids"):
        collected([f"{i:04}" for i in range(200)])
