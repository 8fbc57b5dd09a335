"""Bad rows: count, limit, and the file rejects.csv."""

import csv
import re
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from os import SEEK_END
from pathlib import Path

from mf.errors import DataError
from mf.ratings.config import shown
from mf.ratings.quotes import NO_TEXT
from mf.ratings.schema import MOVIE, USER

HEADER = ("where", "reason", "row")
NAMES = {USER: "user id", MOVIE: "movie id"}
# Blanks, invisible characters and quotes before the sign: a program may take them off.
FORMULA = re.compile(r"[\t\r\n]|[\s\x00-\x1f\u200b-\u200f\u2060\ufeff'\"]*[=+\-@＝＋－＠﹦﹢﹣﹫−⁼⁺⁻]")
AS_UTF_8 = "save the file as UTF-8 (iconv -f LATIN1 -t UTF-8)"
# Bytes before the rows go to a temporary file, so that a source of bad rows alone does not fill the memory.
IN_MEMORY = 16 << 20


class Rejects:
    """Collects bad rows.

    Args:
        source: the source as the user knows it; begins every error.
        max_fraction: the share of bad rows, 0 to 1, above which ``check`` refuses.

    Attributes:
        count: rows so far, those of ``add_odd`` only after ``settle``.
    """

    def __init__(self, source: str, max_fraction: float) -> None:
        self.source, self.max_fraction, self.count = source, max_fraction, 0
        self._first: list[str] = []
        self._odd: Counter[tuple[str, ...]] = Counter()
        self._integers: frozenset[str] = frozenset()
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - it outlives this function
            IN_MEMORY, "w+", newline="", encoding="utf-8", errors="backslashreplace"
        )
        weakref.finalize(self, self._file.close)
        self._writer = csv.writer(self._file)

    def add(self, where: str, reason: str, row: str) -> None:
        """Add one row: its place (``line 8123``), what is wrong with it, and the row as the source has it."""
        self.count += 1
        if len(self._first) < 3:
            self._first.append(f"{where}: {reason}")
        self._writer.writerow(map(_cell, (where, reason, row)))

    def add_odd(self, where: str, row: str, ids: Mapping[str, str]) -> None:
        """Add one row whose ``ids`` (by role) are not integers; ``settle`` decides whether it is bad."""
        self._writer.writerow((_cell(where), "", _cell(row), *chain.from_iterable(ids.items())))
        self._odd[tuple(ids)] += 1

    def settle(self, integers: Iterable[str]) -> None:
        """Make those rows of ``add_odd`` bad that have an odd id in one of the roles ``integers``."""
        self._integers = frozenset(integers)
        odd = sum(count for roles, count in self._odd.items() if not self._integers.isdisjoint(roles))
        if odd:
            self.count += odd
            self._file.seek(0)
            self._first = [f"{where}: {reason}" for where, reason, _ in islice(self._rows(), 3)]
            self._file.seek(0, SEEK_END)

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        """The bad rows of the file, from where it stands."""
        for where, reason, row, *ids in csv.reader(self._file):
            wrong = [(role, text) for role, text in zip(ids[::2], ids[1::2], strict=True) if role in self._integers]
            if wrong:
                reason = "; ".join(
                    f"{NAMES[role]} {shown(text)} is not an integer, as others are" for role, text in wrong
                )
            if reason:
                yield where, reason, row

    def check(self, good: int) -> None:
        """Check the share of bad rows, with ``good`` good ones.

        Raises:
            DataError: there is no row, no good row, or too many bad ones.
        """
        read = good + self.count
        if not read:
            raise DataError(f"{self.source}: no ratings found, expected at least one row")
        if not good or self.count > self.max_fraction * read:
            ways = ["allow more with --max_reject_fraction"] if good else []
            if any(": timestamp " in text for text in self._first):
                ways.append("read them without times with --timestamp_column none")
            if any(text.endswith(f": {NO_TEXT}") for text in self._first):
                ways.append(AS_UTF_8)
            raise DataError(
                f"{self.source}: {self.count:,} of {read:,} rows are bad ({self.count / read:.2%}, at most "
                f"{self.max_fraction:.2%} may be): {'; '.join(self._first)}{' …' if self.count > 3 else ''}"
                f"{', or '.join([' - correct them', *ways])}"
            )

    def write(self, path: Path) -> None:
        """Write the rows to ``path`` (CSV: where, reason, row); can be called once."""
        self._file.seek(0)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            if self._odd:
                writer.writerows(self._rows())
            else:
                shutil.copyfileobj(self._file, file)
        self._file.close()


def _cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if FORMULA.match(text) else text
