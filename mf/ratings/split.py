"""Ratings to learn from, to steer by and to score once."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.model_selection import train_test_split

from mf.errors import DataError
from mf.ratings.collect import ranked
from mf.ratings.config import SplitConfig
from mf.ratings.schema import MOVIE, RATED_AT, USER, times

Rows = npt.NDArray[np.int64]


class Parts(NamedTuple):
    """Disjoint parts of one table, each sorted by user and movie; together they are the table."""

    train: pa.Table
    validation: pa.Table
    test: pa.Table


def split(ratings: pa.Table, config: SplitConfig) -> Parts:
    """Divides ``ratings`` (a ``ratings_schema`` table with each (user, movie) once, in any order).

    - ``random``: any rows, by ``config.seed``.
    - ``time``: the newest ``test_size`` of all rows are the test part, the next newest ``val_size`` validation.
    - ``leave_last``: each user's newest rating is a test row and the next newest a validation row. A size only says
      whether its part is wanted (above 0) or not; a user with too few ratings keeps the oldest one for training and
      goes without a validation row first.

    Ratings of the same time are ordered by user and movie; an unknown time is older than any. Neither the order of the
    rows nor, but for ``random``, the seed matters. A part of size 0 is empty.

    Raises:
        DataError: there are no timestamps and the split needs them, or too few rows for every part to get one.
    """
    if config.split != "random" and RATED_AT not in ratings.column_names:
        raise DataError(f"split {config.split}: the ratings have no timestamps, expected some; split at random")
    if not len(ratings):
        raise DataError(f"split {config.split}: there are no ratings to divide, expected at least one row")
    users, movies = ranked(ratings[USER]), ranked(ratings[MOVIE])
    # A stable sort by one number takes no time on rows in order already, which ingest's are; by two it takes its full.
    order = np.argsort(users * (movies.max() + np.int64(1)) + movies, kind="stable")
    ratings, users = ratings.take(pa.array(order)), users[order]
    if config.split == "random":
        held = _random(len(ratings), config)
    elif config.split == "time":
        held = _newest(ratings, config)
    else:
        held = _last_of_each(ratings, users, config)
    return _parts(ratings, *held, config)


def _sizes(rows: int, config: SplitConfig) -> tuple[int, int]:
    """Rows of the validation and the test part."""
    return round(rows * config.val_size), round(rows * config.test_size)


def _random(rows: int, config: SplitConfig) -> tuple[Rows, Rows]:
    rest = np.arange(rows, dtype=np.int64)
    held = []
    for size in reversed(_sizes(rows, config)):
        # scikit-learn refuses to hold out nothing, or everything.
        out = rest[:0]
        if 0 < size < len(rest):
            rest, out = train_test_split(rest, test_size=size, random_state=config.seed)
        held.append(out)
    test, validation = held
    return validation, test


def _newest(ratings: pa.Table, config: SplitConfig) -> tuple[Rows, Rows]:
    order = np.argsort(times(ratings), kind="stable")
    validation, test = _sizes(len(ratings), config)
    end = len(order) - test
    return order[end - validation : end], order[end:]


def _last_of_each(ratings: pa.Table, users: npt.NDArray[np.int32], config: SplitConfig) -> tuple[Rows, Rows]:
    order = np.lexsort((times(ratings), users))
    counts = np.bincount(users)
    # How many ratings of the same user are newer, and whether an older one remains.
    newer = np.repeat(np.cumsum(counts), counts) - 1 - np.arange(len(users))
    older_remains = newer < np.repeat(counts, counts) - 1
    test_ratings = int(config.test_size > 0)
    test = order[older_remains & (newer < test_ratings)]
    validation = order[older_remains & (newer == test_ratings)] if config.val_size else order[:0]
    return validation, test


def _parts(ratings: pa.Table, validation: Rows, test: Rows, config: SplitConfig) -> Parts:
    in_train = np.ones(len(ratings), bool)
    in_train[validation] = in_train[test] = False
    rows = {"training": np.flatnonzero(in_train), "validation": np.sort(validation), "test": np.sort(test)}
    wanted = {"training": 1.0, "validation": config.val_size, "test": config.test_size}
    sizes = " and ".join(
        f"{name} {getattr(config, name):g}" for name in ("val_size", "test_size") if getattr(config, name)
    )
    for part, indices in rows.items():
        if wanted[part] and not len(indices):
            raise DataError(
                f"split {config.split}: {len(ratings):,} ratings leave none for the {part} part with {sizes}; give "
                "more ratings or other sizes"
            )
    return Parts(*(ratings.take(pa.array(indices)) for indices in rows.values()))
