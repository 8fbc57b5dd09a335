from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mf.errors import DataError
from mf.ratings.config import SplitConfig
from mf.ratings.quantiles import cuts
from mf.ratings.schema import (
    MOVIE,
    RATED_AT,
    RATING,
    TIMESTAMP,
    USER,
    Provenance,
    content_hash,
    read_ratings,
    write_ratings,
)
from mf.ratings.split import split, split_file

SPLITS = ["random", "hash", "time", "leave_last"]


def table(rows: list[tuple[object, object, int]]) -> pa.Table:
    """Ratings of (user, movie, seconds), in this order; the rating is the row's number."""
    users, movies, seconds = zip(*rows, strict=True)
    return pa.table(
        {
            USER: pa.array(users),
            MOVIE: pa.array(movies),
            RATING: pa.array(range(len(rows)), pa.float32()),
            RATED_AT: pa.array([datetime.fromtimestamp(s, UTC) for s in seconds], TIMESTAMP),
        }
    )


def planted(text_ids: bool = False) -> pa.Table:
    rng = np.random.default_rng(0)
    pairs = sorted({(int(u), int(m)) for u, m in rng.integers(0, [40, 60], (1000, 2))})
    rows = [(f"u{u}" if text_ids else u, m, int(rng.integers(50))) for u, m in pairs]
    return table(rows)


def keys(part: pa.Table) -> list[tuple[object, object]]:
    return list(zip(part[USER].to_pylist(), part[MOVIE].to_pylist(), strict=True))


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("text_ids", [False, True])
def test_parts_are_disjoint_sorted_and_together_the_whole_whatever_the_order_of_the_source(
    kind: str, text_ids: bool
) -> None:
    ratings, config = planted(text_ids), SplitConfig.of(split=kind, val_size=0.1, test_size=0.2, seed=3)
    parts = split(ratings, config)
    assert all(len(part) and keys(part) == sorted(keys(part)) for part in parts)
    assert sorted(key for part in parts for key in keys(part)) == sorted(keys(ratings))
    assert Counter(v for part in parts for v in part[RATING].to_pylist()) == Counter(ratings[RATING].to_pylist())
    shuffled = ratings.take(pa.array(np.random.default_rng(1).permutation(len(ratings))))
    chunked = pa.concat_tables([shuffled.slice(0, 7), shuffled.slice(7)])
    assert split(chunked, config) == parts


@pytest.mark.parametrize("kind", ["random", "time"])
def test_sizes_are_shares_of_all_rows(kind: str) -> None:
    ratings = table([(u, m, u * m) for u in range(10) for m in range(20)])
    parts = split(ratings, SplitConfig.of(split=kind, val_size=0.1, test_size=0.25))
    assert [len(part) for part in parts] == [130, 20, 50]


def test_another_seed_gives_another_random_split_and_the_same_seed_the_same() -> None:
    def test_keys(seed: int) -> list[tuple[object, object]]:
        return keys(split(planted(), SplitConfig.of(seed=seed)).test)

    assert test_keys(0) == test_keys(0)
    assert test_keys(0) != test_keys(1)


def test_time_holds_out_the_newest_and_orders_ties_by_user_and_movie() -> None:
    ratings = table([(2, 1, 5), (1, 1, 9), (1, 2, 5), (3, 1, 5), (1, 3, 1)])
    parts = split(ratings, SplitConfig.of(split="time", val_size=0.2, test_size=0.4))
    assert [keys(part) for part in parts] == [[(1, 2), (1, 3)], [(2, 1)], [(1, 1), (3, 1)]]


def test_ratings_of_one_moment_are_held_out_from_the_end_of_the_order_by_user_and_movie() -> None:
    parts = split(table([(u, 1, u % 2) for u in range(100)]), SplitConfig.of(split="time"))
    assert [user for user, _ in keys(parts.validation)] == list(range(61, 81, 2))
    assert [user for user, _ in keys(parts.test)] == list(range(81, 101, 2))


def test_leave_last_takes_the_newest_of_each_user_and_keeps_one_to_train_on() -> None:
    ratings = table([(1, 7, 30), (1, 8, 20), (1, 9, 10), (2, 7, 5), (2, 8, 5), (3, 1, 99), (4, 5, 1), (4, 6, 2)])
    parts = split(ratings, SplitConfig.of(split="leave_last"))
    assert [keys(part) for part in parts] == [[(1, 9), (2, 7), (3, 1), (4, 5)], [(1, 8)], [(1, 7), (2, 8), (4, 6)]]
    only_validation = split(ratings, SplitConfig.of(split="leave_last", test_size=0))
    assert keys(only_validation.validation) == keys(parts.test)
    assert len(only_validation.test) == 0


@pytest.mark.parametrize("kind", SPLITS)
def test_a_part_of_size_0_is_empty_and_has_the_same_columns(kind: str) -> None:
    ratings = planted()
    parts = split(ratings, SplitConfig.of(split=kind, val_size=0, test_size=0))
    assert parts.train == ratings
    assert parts.validation == parts.test == ratings.slice(0, 0)


@pytest.mark.parametrize("kind", ["time", "leave_last"])
def test_a_split_by_time_without_timestamps_is_an_error(kind: str) -> None:
    with pytest.raises(
        DataError, match=f"^split {kind}: the ratings have no times; use split random, or name a column of times$"
    ):
        split(planted().drop_columns([RATED_AT]), SplitConfig.of(split=kind))


def test_random_needs_no_timestamps() -> None:
    assert len(split(planted().drop_columns([RATED_AT]), SplitConfig.of()).train)


@pytest.mark.parametrize("kind", SPLITS)
def test_too_few_ratings_for_every_part_are_an_error(kind: str) -> None:
    for rows in ([(1, 1, 1)], [(1, 1, 1), (2, 1, 1)], [(1, 1, 1), (1, 2, 1)]):
        with pytest.raises(DataError, match=f"^split {kind}: {len(rows)} ratings leave none for the validation part"):
            split(table(rows), SplitConfig.of(split=kind))
    with pytest.raises(DataError, match=r"3 ratings leave none for the (training|validation) part"):
        split(table([(u, 1, u) for u in range(3)]), SplitConfig.of(split=kind, val_size=0.49, test_size=0.5))
    with pytest.raises(DataError, match="there are no ratings"):
        split(table([(1, 1, 1)]).slice(0, 0), SplitConfig.of(split=kind))


def test_a_rating_of_unknown_time_is_older_than_any() -> None:
    known = [datetime(2024, 1, day, tzinfo=UTC) for day in range(1, 10)]
    ratings = pa.table(
        {
            "user_id": pa.array([1] * 10),
            "movie_id": pa.array(range(10)),
            "rating": pa.array([3.0] * 10, pa.float32()),
            "rated_at": pa.array([*known[:5], None, *known[5:]], pa.timestamp("us", tz="UTC")),
        }
    )
    for kind in ("time", "leave_last"):
        parts = split(ratings, SplitConfig(split=kind, val_size=0.1, test_size=0.1))
        assert (parts.test["movie_id"].to_pylist(), parts.validation["movie_id"].to_pylist()) == ([9], [8])
        assert 5 in parts.train["movie_id"].to_pylist()


@pytest.mark.parametrize("text_ids", [False, True])
def test_a_hash_split_keeps_a_rating_on_its_side_when_the_source_grows(text_ids: bool) -> None:
    everything = planted(text_ids)
    config = SplitConfig.of(split="hash", val_size=0.1, test_size=0.2, seed=3)
    some = everything.filter(pa.array(np.random.default_rng(2).random(len(everything)) < 0.5))
    small, large = split(some, config), split(everything, config)
    for before, after in zip(small, large, strict=True):
        assert set(keys(before)) == set(keys(after)) & set(keys(some))
    assert [len(part) / len(everything) for part in large] == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
    other = split(everything, config.model_copy(update={"seed": 4}))
    assert set(keys(other.test)) != set(keys(large.test))
    # The larger test part holds the smaller one.
    less = split(everything, config.model_copy(update={"test_size": 0.1}))
    assert set(keys(less.test)) < set(keys(large.test))


def test_text_ids_that_are_numbers_are_split_as_the_numbers() -> None:
    numbers = planted()
    texts = numbers.set_column(0, USER, numbers[USER].cast(pa.string()))
    config = SplitConfig.of(split="hash")
    test = split(texts, config).test
    assert {(int(str(u)), m) for u, m in keys(test)} == set(keys(split(numbers, config).test))


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("text_ids", [False, True])
def test_a_file_is_split_in_batches_as_a_table_is_at_once(
    kind: str, text_ids: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratings, config = planted(text_ids), SplitConfig.of(split=kind, val_size=0.1, test_size=0.2, seed=3)
    ratings = ratings.sort_by([(USER, "ascending"), (MOVIE, "ascending")])
    whole = split(ratings, config)
    write_ratings(ratings, tmp_path / "ratings", Provenance("planted", len(ratings), 0, 0, len(ratings)))
    monkeypatch.setattr("mf.ratings.batches.ROWS", 7)
    files = [tmp_path / name for name in whole._fields]
    written = split_file(tmp_path / "ratings", files, config)
    assert written.rows == tuple(len(part) for part in whole)
    for part, file, provenance in zip(whole, files, written.files, strict=True):
        assert read_ratings(file) == (part, provenance)
        assert provenance.content_hash == content_hash(part)


def test_a_file_that_is_not_sorted_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = table([(1, 1, 1), (2, 1, 1), (1, 2, 1), (3, 1, 1)])
    write_ratings(rows, tmp_path / "ratings", Provenance("planted", 4, 0, 0, 4))
    monkeypatch.setattr("mf.ratings.batches.ROWS", 2)
    with pytest.raises(DataError, match=r"rows 2 to 4: expected ratings sorted by user and movie"):
        split_file(tmp_path / "ratings", [tmp_path / "a", tmp_path / "b", tmp_path / "c"], SplitConfig.of(split="hash"))
    assert [path.name for path in tmp_path.iterdir()] == ["ratings"]


def test_a_random_split_of_too_many_ratings_names_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mf.ratings.split.MOST_RANDOM", 500)
    rows = len(planted())
    with pytest.raises(DataError, match=f"^split random: found {rows} ratings, expected at most 500, .*use split hash"):
        split(planted(), SplitConfig.of(split="random"))


@pytest.mark.parametrize("spread", [1, 3, 1 << 40, 1 << 62])
def test_cuts_are_those_of_a_stable_sort(spread: int) -> None:
    times = np.random.default_rng(spread).integers(-spread, spread, 200)
    times[:20] = np.iinfo(np.int64).min
    order = np.argsort(times, kind="stable")
    positions = [0, 7, 7, 100, 199]
    for position, cut in zip(positions, cuts(lambda: np.array_split(times, 8), positions), strict=True):
        row = order[position]
        assert cut == (times[row], np.count_nonzero(times[:row] == times[row]))
