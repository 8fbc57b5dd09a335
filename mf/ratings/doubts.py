"""Warnings about values that probably mean something else: ratings that mean "not rated", and odd times."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from mf.ratings.schema import UNKNOWN_TIME
from mf.ratings.values import micros_of

# Times that numbers of another meaning become: years, day numbers, counters and, as nanoseconds, Windows' file times.
EARLY = 157_766_400_000_000  # microseconds from 1970 to 1975
NEARLY_ALL = 0.9  # the share of the known times
FREQUENT = 0.01  # share of the rows with a rating that means "not rated", at least
FEW = 3  # rows with such a rating, and distinct ratings, at least


def not_rated(counts: Mapping[float, int]) -> list[float]:
    """The ratings that may mean "not rated", by the number of rows of each distinct rating: a lowest one of 0, or below
    0 where no other is; a lowest or highest one that is frequent and further from the others than they from each other.
    """
    if len(counts) < FEW:
        return []
    ratings = sorted(counts)
    (low, second), (last, high) = ratings[:2], ratings[-2:]
    span, least = last - second, max(FEW, FREQUENT * sum(counts.values()))
    gaps = ((low, second - low), (high, high - last)) if len(counts) > FEW else ()
    apart = [rating for rating, gap in gaps if gap > span and counts[rating] >= least]
    # -1, 0 and 1 are thumbs down and up.
    is_below = low == 0 or (low < 0 <= second and -low != high)
    return sorted({*apart, low}) if is_below else apart


class Times:
    """Counts of the times of a source that lie outside the years of ratings."""

    def __init__(self) -> None:
        self._known = self._early = self._late = 0
        self._first: int | None = None  # of these times
        # A day for the clocks of other machines.
        self._now = round((datetime.now(UTC) + timedelta(days=1)).timestamp() * 1_000_000)

    def add(self, micros: npt.NDArray[np.int64]) -> None:
        """Count times in microseconds since 1970, unknown ones among them."""
        is_early, is_late = (micros > -EARLY) & (micros < EARLY), micros > self._now
        self._known += int(np.count_nonzero(micros != UNKNOWN_TIME))
        self._early += int(np.count_nonzero(is_early))
        self._late += int(np.count_nonzero(is_late))
        if self._first is None and self._early + self._late:
            self._first = int(micros[(is_early | is_late).argmax()])

    def warning(self, first_number: str | None) -> str:
        """One sentence where nearly all times lie from 1965 to 1975 or in the future, else empty.

        Args:
            first_number: place and text of the first time that is a number, ``line 2: 2020``; None if none is.
        """
        count = max(self._early, self._late)
        if self._first is None or count < NEARLY_ALL * self._known:
            return ""
        when = "from 1965 to 1975" if count == self._early else "in the future"
        shown = f"the first is {_text(self._first)}"
        if first_number is not None and micros_of(first_number.rpartition(": ")[2]) == self._first:
            shown = f"{first_number} is read as epoch time, {_text(self._first)}"
        return (
            f"{count:,} of the {self._known:,} times lie {when} ({shown}): if they are years, day numbers, counters or "
            "of another unit, convert them to epoch seconds or ISO 8601, or read the ratings without times with "
            "--timestamp_column none"
        )


def _text(micros: int) -> str:
    return f"{np.datetime64(micros, 'us').astype('datetime64[s]')} UTC".replace("T", " ", 1)
