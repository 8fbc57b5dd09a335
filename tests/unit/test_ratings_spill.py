from itertools import pairwise

import numpy as np
import pytest

from mf.ratings import spill
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER
from mf.ratings.spill import ROW, TIMED_ROW, RowArray, Spill, sorted_once


def random_rows(n: int, users: int, movies: int, seed: int = 0) -> RowArray:
    rng = np.random.default_rng(seed)
    rows = np.empty(n, TIMED_ROW)
    rows[USER], rows[MOVIE] = rng.integers(users, size=n), rng.integers(movies, size=n)
    rows[RATING], rows[RATED_AT] = np.arange(n), rng.integers(-3, 3, n)
    return rows


@pytest.mark.parametrize("in_memory", [64, 1 << 20])  # in a file, or not yet
@pytest.mark.parametrize("most_parts", [2, 256])
def test_rows_come_back_by_user_in_parts_and_else_in_their_order(
    monkeypatch: pytest.MonkeyPatch, in_memory: int, most_parts: int
) -> None:
    monkeypatch.setattr(spill, "PART", 50)
    monkeypatch.setattr(spill, "MOST_PARTS", most_parts)
    monkeypatch.setattr(spill, "IN_MEMORY", in_memory)
    rows = random_rows(1000, 40, 9)
    rows[USER][rows[USER] > 30] = 5  # one user has many times a part
    rng = np.random.default_rng(1)
    user_rank, movie_rank = (rng.permutation(n).astype(np.int32) for n in (31, 9))
    waiting = Spill(TIMED_ROW)
    for start in range(0, 1000, 130):
        waiting.append(rows[start : start + 130])
    parts = list(waiting.by_user(user_rank, movie_rank))

    expected = rows.copy()
    expected[USER], expected[MOVIE] = user_rank[rows[USER]], movie_rank[rows[MOVIE]]
    found = np.concatenate(parts)
    assert (
        found[found[USER].argsort(kind="stable")].tolist() == expected[expected[USER].argsort(kind="stable")].tolist()
    )
    bounds = [(part[USER].min(), part[USER].max()) for part in parts]
    assert all(high < low for (_, high), (low, _) in pairwise(bounds))
    assert 1 < len(parts) <= most_parts


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("movies", [30, 2**62])  # 2**62: the number of a row no longer fits beside its pair
def test_of_a_pair_the_latest_is_kept_and_among_equals_the_last(timed: bool, movies: int) -> None:
    rows = random_rows(3000, 30 if movies == 30 else 2, 30)
    if not timed:
        rows = rows[[USER, MOVIE, RATING]].astype(ROW)
    kept = {}
    for row in rows.tolist():
        pair = row[:2]
        if pair not in kept or not timed or row[3] >= kept[pair][3]:
            kept[pair] = row
    assert sorted_once(rows, movies).tolist() == sorted(kept.values())
