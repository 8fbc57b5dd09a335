"""Order statistics of times that do not fit in memory."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]
DIGITS = (22, 21, 21)  # bits per pass over the times, from the highest: 64 together


class Cut(NamedTuple):
    """A position in the stable ascending order of times."""

    time: int  # at this position
    equal_before: int  # the number of equal times before it


def cuts(read: Callable[[], Iterable[Times]], positions: Sequence[int]) -> list[Cut]:
    """The times at ``positions``, counted from 0, of the stable ascending order of all times.

    A radix selection in three passes: memory is one batch and 32 MB per position, whatever the number of times.

    Args:
        read: gives all times, in batches; called once per pass.
        positions: each below the number of times.
    """
    prefixes, left = [0] * len(positions), list(positions)
    shift = 64
    for bits in DIGITS:
        shift -= bits
        counts = {prefix: np.zeros(1 << bits, np.int64) for prefix in prefixes}
        for batch in read():
            # In the order of unsigned numbers.
            keys = batch.view(np.uint64) ^ np.uint64(1 << 63)
            for prefix, count in counts.items():
                here = keys
                if bits + shift < 64:
                    here = keys[keys >> np.uint64(shift + bits) == prefix]
                digits = (here >> np.uint64(shift)) & np.uint64((1 << bits) - 1)
                count += np.bincount(digits.astype(np.int64), minlength=1 << bits)
        ends = {prefix: count.cumsum() for prefix, count in counts.items()}
        for i, prefix in enumerate(prefixes):
            digit = int(np.searchsorted(ends[prefix], left[i], side="right"))
            left[i] -= int(ends[prefix][digit - 1]) if digit else 0
            prefixes[i] = prefix << bits | digit
    return [Cut(prefix - (1 << 63), before) for prefix, before in zip(prefixes, left, strict=True)]
