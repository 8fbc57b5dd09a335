"""Train, validation and test split, by batches of rows."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mf.errors import DataError
from mf.progress import Progress
from mf.ratings.batches import Batches, is_sorted, whole_users
from mf.ratings.collect import by_pair, ranked
from mf.ratings.config import SplitConfig
from mf.ratings.hashing import id_hashes, mixed
from mf.ratings.quantiles import Cut, cuts
from mf.ratings.schema import MOVIE, USER, Provenance, RatingsWriter, read_provenance, times

# The part of each row, uint8[rows]: its position in ``Parts``.
Labels = npt.NDArray[np.uint8]
VALIDATION, TEST = 1, 2
PARTS = ("training", "validation", "test")

# Ratings of a random split, at most: scikit-learn shuffles all row numbers in memory, 20 bytes per rating.
MOST_RANDOM = 250_000_000


class Parts(NamedTuple):
    """The disjoint parts of a table of ratings, each sorted by user and movie."""

    train: pa.Table
    validation: pa.Table
    test: pa.Table


class SplitRows(NamedTuple):
    """Rows of the parts that ``split_file`` wrote, and the provenance of each file."""

    rows: tuple[int, ...]
    files: tuple[Provenance, ...]


def split(ratings: pa.Table, config: SplitConfig) -> Parts:
    """Split ``ratings`` (a ``ratings_schema`` table with each (user, movie) once, in any order).

    - ``random``: random rows, by ``config.seed``; at most ``MOST_RANDOM``.
    - ``hash``: by a hash of ``config.seed``, user and movie: a rating is in the same part whatever other ratings there
      are, so the sizes are met on average.
    - ``time``: the newest ``test_size`` of all rows are the test part, the next newest ``val_size`` validation.
    - ``leave_last``: each user's newest rating is a test row and the next newest a validation row. Of the sizes only
      counts whether they are above 0. A user always keeps the oldest rating for training; with too few ratings the
      validation row is left out first.

    Ratings of the same time are ordered by user and movie; an unknown time is older than any. The result does not
    depend on the order of the rows, and only with ``random`` and ``hash`` on the seed. A part of size 0 is empty.

    Raises:
        DataError: the split needs timestamps and there are none, a part would be empty, or there are too many ratings
            for a random split.
    """
    ordered = ratings if is_sorted(ratings) else by_pair(ratings)
    parts: list[list[pa.Table]] = [[ratings.schema.empty_table()] for _ in PARTS]
    for batch, labels in _labelled(Batches(ordered), config):
        for part, tables in enumerate(parts):
            tables.append(_rows_of(batch, labels, part))
    divided = Parts(*map(pa.concat_tables, parts))
    _check_sizes([len(part) for part in divided], config)
    return divided


def split_file(ratings: Path, outputs: Sequence[Path], config: SplitConfig) -> SplitRows:
    """As ``split``, from a file of ``write_ratings`` to a file per part, with a few batches in memory.

    Args:
        ratings: sorted by user and movie, as ingest writes it.
        outputs: the training, the validation and the test part.

    Raises:
        DataError: as ``split``, or the file is not sorted. Nothing is written then.
    """
    source, provenance = Batches(ratings), read_provenance(ratings)
    if config.split == "hash":
        provenance = replace(provenance, split={"seed": config.seed, "test_size": config.test_size})
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(f"{config.split} split", len(source)))
        writers = [stack.enter_context(RatingsWriter(path, source.schema)) for path in outputs]
        for batch, labels in _labelled(source, config):
            for part, writer in enumerate(writers):
                writer.write(_rows_of(batch, labels, part))
            progress.advance(len(batch))
        rows = tuple(writer.rows for writer in writers)
        _check_sizes(rows, config)
        return SplitRows(rows, tuple(writer.finish(provenance) for writer in writers))


def _rows_of(batch: pa.Table, labels: Labels, part: int) -> pa.Table:
    # A mask: ``take`` fails on more than 2 GiB of text, whose offsets have 32 bits.
    return batch.filter(pa.array(labels == part))


def _labelled(source: Batches, config: SplitConfig) -> Iterator[tuple[pa.Table, Labels]]:
    """The batches of ``source``, sorted by user and movie, and the part of each row."""
    if config.split in ("time", "leave_last") and not source.has_times:
        raise DataError(f"split {config.split}: the ratings have no times; use split random, or name a column of times")
    if not len(source):
        raise DataError(f"split {config.split}: there are no ratings, expected at least one row")
    if config.split == "random":
        return _random(source, config)
    if config.split == "hash":
        return _by_hash(source, config)
    if config.split == "time":
        return _newest(source, config)
    return _last_of_each(source, config)


def _sizes(rows: int, config: SplitConfig) -> tuple[int, int]:
    """Numbers of rows of the validation and the test part."""
    return round(rows * config.val_size), round(rows * config.test_size)


def _random(source: Batches, config: SplitConfig) -> Iterator[tuple[pa.Table, Labels]]:
    from sklearn.model_selection import train_test_split

    rows = len(source)
    if rows > MOST_RANDOM:
        raise DataError(
            f"split random: found {rows:,} ratings, expected at most {MOST_RANDOM:,}, since it shuffles all in "
            "memory; use split hash, which holds out at random too and needs no more memory for more ratings"
        )
    labels = np.zeros(rows, np.uint8)
    rest = np.arange(rows, dtype=np.int32)
    for part, size in zip((TEST, VALIDATION), reversed(_sizes(rows, config)), strict=True):
        # scikit-learn refuses to hold out no row, or all.
        if 0 < size < len(rest):
            rest, out = train_test_split(rest, test_size=size, random_state=config.seed)
            labels[out] = part
    del rest
    start = 0
    for batch in source.checked():
        yield batch, labels[start : start + len(batch)]
        start += len(batch)


def _by_hash(source: Batches, config: SplitConfig) -> Iterator[tuple[pa.Table, Labels]]:
    held_out = config.test_size + config.val_size
    user, movie = id_hashes(config.seed), id_hashes(config.seed + 1)
    for batch in source.checked():
        place = mixed(user(batch[USER]) ^ mixed(movie(batch[MOVIE]))) / 2.0**64  # in 0 to 1
        labels = np.where(place < config.test_size, TEST, np.where(place < held_out, VALIDATION, 0))
        yield batch, labels.astype(np.uint8)


def _newest(source: Batches, config: SplitConfig) -> Iterator[tuple[pa.Table, Labels]]:
    validation, test = _sizes(len(source), config)
    end = len(source) - test
    # Nothing is held out from the end of all rows on.
    begins = [position for position in (end - validation, end) if position < len(source)]
    found = [_HeldOut(cut) for cut in cuts(source.times, begins)]
    for batch in source.checked():
        rated_at = times(batch)
        labels = np.zeros(len(batch), np.uint8)
        for held_out in found:
            labels += held_out(rated_at)
        yield batch, labels


class _HeldOut:
    """Which rows are at or after a position of the order by time, in batches of rows in their order."""

    def __init__(self, cut: Cut) -> None:
        self.cut, self._equal = cut, 0

    def __call__(self, rated_at: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        equal = rated_at == self.cut.time
        place = self._equal + np.cumsum(equal)
        self._equal = int(place[-1])
        later: npt.NDArray[np.bool_] = (rated_at > self.cut.time) | (equal & (place > self.cut.equal_before))
        return later


def _last_of_each(source: Batches, config: SplitConfig) -> Iterator[tuple[pa.Table, Labels]]:
    test_ratings = int(config.test_size > 0)
    for batch in whole_users(source.checked()):
        _, users = ranked(batch[USER])
        order = np.lexsort((times(batch), users))
        counts = np.bincount(users)
        # The number of newer ratings of the same user, and whether an older one remains.
        newer = np.repeat(np.cumsum(counts), counts) - 1 - np.arange(len(users))
        older_remains = newer < np.repeat(counts, counts) - 1
        labels = np.zeros(len(batch), np.uint8)
        labels[order[older_remains & (newer < test_ratings)]] = TEST
        if config.val_size:
            labels[order[older_remains & (newer == test_ratings)]] = VALIDATION
        yield batch, labels


def _check_sizes(rows: Sequence[int], config: SplitConfig) -> None:
    sizes = " and ".join(
        f"{name} {getattr(config, name):g}" for name in ("val_size", "test_size") if getattr(config, name)
    )
    for part, count, wanted in zip(PARTS, rows, (1.0, config.val_size, config.test_size), strict=True):
        if wanted and not count:
            raise DataError(
                f"split {config.split}: {sum(rows):,} ratings leave none for the {part} part with {sizes}; use more "
                "ratings or other sizes"
            )
