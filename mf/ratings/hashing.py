"""Hashes of ids, the same on every machine."""

import hashlib
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mf.ratings.vocabulary import distinct_ids

REMEMBERED = 1 << 18  # hashes of ids, those last used

UInt64s = npt.NDArray[np.uint64]


def id_hashes(seed: int) -> Callable[[pa.ChunkedArray], UInt64s]:
    """A function that hashes a column of ids with ``seed`` to uint64; 5 and "5" have the same hash."""
    # Movies occur in every batch of ratings.
    of = lru_cache(REMEMBERED)(partial(_hash, seed))

    def hashes(ids: pa.ChunkedArray) -> UInt64s:
        distinct, rows = distinct_ids(ids)
        return np.array([of(one) for one in distinct.to_pylist()], np.uint64)[rows]

    return hashes


def _hash(seed: int, id: int | str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{id}".encode(), digest_size=8).digest(), "little")


def mixed(values: UInt64s) -> UInt64s:
    """A bijection of 64 bits in which every bit of the input changes half of the output (SplitMix64's finaliser)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values
