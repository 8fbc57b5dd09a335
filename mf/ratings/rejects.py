"""Bad rows: count, limit, and the file rejects.csv."""

import csv
import shutil
import tempfile
from pathlib import Path

from mf.errors import DataError

HEADER = ("where", "reason", "row")
# Bytes before the rows go to a temporary file, so that a source of bad rows alone does not fill the memory.
IN_MEMORY = 16 << 20


class Rejects:
    """Collects bad rows.

    Args:
        source: the source as the user knows it; begins every error.
        max_fraction: the share of bad rows, 0 to 1, above which ``check`` refuses.

    Attributes:
        count: rows so far.
    """

    def __init__(self, source: str, max_fraction: float) -> None:
        self.source, self.max_fraction, self.count = source, max_fraction, 0
        self._first: list[str] = []
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - it outlives this function
            IN_MEMORY, "w+", newline="", encoding="utf-8", errors="backslashreplace"
        )
        self._writer = csv.writer(self._file)

    def add(self, where: str, reason: str, row: str) -> None:
        """Add one row: its place (``line 8123``), what is wrong with it, and the row as the source has it."""
        self.count += 1
        if len(self._first) < 3:
            self._first.append(f"{where}: {reason}")
        self._writer.writerow((where, reason, row))

    def check(self, good: int) -> None:
        """Check the share of bad rows, with ``good`` good ones.

        Raises:
            DataError: there is no row, no good row, or too many bad ones.
        """
        read = good + self.count
        if not read:
            raise DataError(f"{self.source}: no ratings found, expected at least one row")
        if not good or self.count > self.max_fraction * read:
            raise DataError(
                f"{self.source}: {self.count:,} of {read:,} rows are bad ({self.count / read:.2%}, at most "
                f"{self.max_fraction:.2%} may be): {'; '.join(self._first)}{' …' if self.count > 3 else ''}"
                " - correct them" + (", or allow more with --max_reject_fraction" if good else "")
            )

    def write(self, path: Path) -> None:
        """Write the rows to ``path`` (CSV: where, reason, row); can be called once."""
        self._file.seek(0)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(HEADER)
            shutil.copyfileobj(self._file, file)
        self._file.close()
