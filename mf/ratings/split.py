"""Train, validation and test split."""

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.model_selection import train_test_split

from mf.errors import DataError
from mf.ratings.collect import ranked
from mf.ratings.config import SplitConfig
from mf.ratings.schema import MOVIE, RATED_AT, USER, times
from mf.ratings.vocabulary import Vocabulary

Indices = npt.NDArray[np.int64]


class Parts(NamedTuple):
    """The disjoint parts of a table of ratings, each sorted by user and movie."""

    train: pa.Table
    validation: pa.Table
    test: pa.Table


def split(ratings: pa.Table, config: SplitConfig) -> Parts:
    """Split ``ratings`` (a ``ratings_schema`` table with each (user, movie) once, in any order).

    - ``random``: random rows, by ``config.seed``.
    - ``hash``: by a hash of ``config.seed``, user and movie: a rating is in the same part whatever other ratings there
      are, so the sizes are met on average.
    - ``time``: the newest ``test_size`` of all rows are the test part, the next newest ``val_size`` validation.
    - ``leave_last``: each user's newest rating is a test row and the next newest a validation row. Of the sizes only
      counts whether they are above 0. A user always keeps the oldest rating for training; with too few ratings the
      validation row is left out first.

    Ratings of the same time are ordered by user and movie; an unknown time is older than any. The result does not
    depend on the order of the rows, and only with ``random`` and ``hash`` on the seed. A part of size 0 is empty.

    Raises:
        DataError: the split needs timestamps and there are none, or a part would be empty.
    """
    if config.split in ("time", "leave_last") and RATED_AT not in ratings.column_names:
        raise DataError(f"split {config.split}: the ratings have no times; use split random, or name a column of times")
    if not len(ratings):
        raise DataError(f"split {config.split}: there are no ratings, expected at least one row")
    users, movies = ranked(ratings[USER]), ranked(ratings[MOVIE])
    # A stable sort by one number is free for rows in order, as ingest writes them; a sort by two numbers is not.
    order = np.argsort(users * (movies.max() + np.int64(1)) + movies, kind="stable")
    ratings, users = ratings.take(pa.array(order)), users[order]
    if config.split == "random":
        held = _random(len(ratings), config)
    elif config.split == "hash":
        held = _by_hash(ratings, config)
    elif config.split == "time":
        held = _newest(ratings, config)
    else:
        held = _last_of_each(ratings, users, config)
    return _parts(ratings, *held, config)


def _sizes(rows: int, config: SplitConfig) -> tuple[int, int]:
    """Numbers of rows of the validation and the test part."""
    return round(rows * config.val_size), round(rows * config.test_size)


def _random(rows: int, config: SplitConfig) -> tuple[Indices, Indices]:
    rest = np.arange(rows, dtype=np.int64)
    held = []
    for size in reversed(_sizes(rows, config)):
        # scikit-learn refuses to hold out no row, or all.
        out = rest[:0]
        if 0 < size < len(rest):
            rest, out = train_test_split(rest, test_size=size, random_state=config.seed)
        held.append(out)
    test, validation = held
    return validation, test


def _by_hash(ratings: pa.Table, config: SplitConfig) -> tuple[Indices, Indices]:
    digests = hash_ids(ratings[USER], config.seed) ^ mixed(hash_ids(ratings[MOVIE], config.seed + 1))
    place = mixed(digests) / 2.0**64  # in 0 to 1
    held_out = config.test_size + config.val_size
    return np.flatnonzero((place >= config.test_size) & (place < held_out)), np.flatnonzero(place < config.test_size)


def hash_ids(ids: pa.ChunkedArray, seed: int) -> npt.NDArray[np.uint64]:
    """uint64[len(ids)], a hash of each id and the seed, the same on every machine; 5 and "5" have the same."""
    distinct, rows = Vocabulary.encode(ids)
    of_distinct = [
        int.from_bytes(hashlib.blake2b(f"{seed}:{one}".encode(), digest_size=8).digest(), "little")
        for one in distinct.ids.to_pylist()
    ]
    return np.array(of_distinct, np.uint64)[rows]


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijection of 64 bits in which every bit of the input changes half of the output (SplitMix64's finaliser)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values


def _newest(ratings: pa.Table, config: SplitConfig) -> tuple[Indices, Indices]:
    order = np.argsort(times(ratings), kind="stable")
    validation, test = _sizes(len(ratings), config)
    end = len(order) - test
    return order[end - validation : end], order[end:]


def _last_of_each(ratings: pa.Table, users: npt.NDArray[np.int32], config: SplitConfig) -> tuple[Indices, Indices]:
    order = np.lexsort((times(ratings), users))
    counts = np.bincount(users)
    # The number of newer ratings of the same user, and whether an older one remains.
    newer = np.repeat(np.cumsum(counts), counts) - 1 - np.arange(len(users))
    older_remains = newer < np.repeat(counts, counts) - 1
    test_ratings = int(config.test_size > 0)
    test = order[older_remains & (newer < test_ratings)]
    validation = order[older_remains & (newer == test_ratings)] if config.val_size else order[:0]
    return validation, test


def _parts(ratings: pa.Table, validation: Indices, test: Indices, config: SplitConfig) -> Parts:
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
                f"split {config.split}: {len(ratings):,} ratings leave none for the {part} part with {sizes}; use "
                "more ratings or other sizes"
            )
    return Parts(*(ratings.take(pa.array(indices)) for indices in rows.values()))
