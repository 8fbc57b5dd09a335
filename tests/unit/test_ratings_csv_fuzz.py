"""Whatever the bytes are: rows that add up, or one sentence and nothing written."""

import csv
import gzip
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mf.errors import ConfigError, DataError
from mf.ingest import ingest
from mf.ratings import csv as ratings_csv
from mf.ratings.config import IngestConfig
from mf.ratings.schema import Provenance, read_ratings

HEADER = b"userId,movieId,rating,timestamp"
ODD = [b"", b" ", b'"', b'""', b'"x"', b'"\n"', b",", b"::", b"\t", b";", b"|", b"\r", b"\r\n", b"\n", b"\0", b"\x1f"]
ODD += [
    b"\xef\xbb\xbf",
    b"\xff",
    b"\xc3",
    "é".encode(),
    "٣".encode(),
    b"nan",
    b"-inf",
    b"1e400",
    b"9" * 40,
    b"-0",
    b"+1",
]
ODD += [b"007", b"0x1F", b".5", b"5.", b"1_0", b"1e-400", b"NULL", b"2020-02-30", b"2020-02-29T12:00:00+14:00", b"1e3"]
JUNK = st.lists(st.one_of(st.sampled_from(ODD), st.binary(max_size=3), st.integers().map(b"%d".__mod__)), max_size=8)
JUNK_LINE = JUNK.map(lambda pieces: b",".join(pieces).replace(b"\n", b""))
# A quote that is not closed ends the import.
CLOSED_LINE = JUNK_LINE.map(lambda line: line.replace(b'"', b""))
FIELD = st.one_of(st.integers(0, 99).map(b"%d".__mod__), st.integers(0, 99).map(b"%d".__mod__), st.sampled_from(ODD))
ROW_LINE = st.lists(FIELD, min_size=4, max_size=4).map(b",".join)  # most are a row, or nearly one
ENDS = st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n", b"\r\n \r\n"])

bounded = settings(max_examples=100, derandomize=True, deadline=None, database=None)


@dataclass(frozen=True)
class Outcome:
    """What an import left: its account, its rows as text, and where the rejects stood; or what it said."""

    provenance: Provenance | None
    rows: list[tuple[str, ...]]
    rejected: list[str]
    error: str

    @property
    def rows_read(self) -> int:
        return self.provenance.rows_read if self.provenance else 0


def outcome(content: bytes, fraction: float = 1, columns: str = "") -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        source, output, rejects = (Path(folder) / name for name in ("r.csv", "out.parquet", "rejects.csv"))
        source.write_bytes(content)
        config = IngestConfig.of(ratings_csv=str(source), max_reject_fraction=fraction, columns=columns)
        provenance, error = None, ""
        try:
            provenance = ingest(config, output, rejects)
        except (DataError, ConfigError) as refusal:
            error = str(refusal).replace(folder, "")
        found = sorted(path.name for path in Path(folder).iterdir())
        if provenance is None:
            assert found == ["r.csv"]
            assert error.isprintable()
            return Outcome(None, [], [], error)
        assert found == ["out.parquet", "r.csv", "rejects.csv"]
        table, noted = read_ratings(output)
        with rejects.open(newline="", encoding="utf-8") as file:
            rejected = [row[0] for row in list(csv.reader(file))[1:]]
        rows = [tuple(map(str, row.values())) for row in table.to_pylist()]
        assert noted == provenance
        assert (len(rejected), len(rows)) == (provenance.rows_rejected, provenance.rows_kept)
        assert provenance.rows_kept + provenance.rows_replaced + provenance.rows_rejected == provenance.rows_read
        return Outcome(replace(provenance, source=""), rows, rejected, "")


@contextmanager
def cut_small() -> Iterator[None]:
    """Blocks of a few lines, pieces of one or two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ratings_csv, "BLOCK", 700)
        patch.setattr(ratings_csv, "PIECE", 24)
        yield


def full_lines(content: bytes) -> list[int]:
    """The numbers of the lines that are not blank."""
    return [number for number, line in enumerate(content.split(b"\n"), 1) if line.strip(b" \r")]


@given(
    st.lists(st.one_of(ROW_LINE, ROW_LINE, ROW_LINE, JUNK_LINE, st.binary(max_size=30)), max_size=12),
    ENDS,
    st.booleans(),
    st.sampled_from([0.5, 1]),
)
@bounded
def test_any_bytes_end_in_rows_that_add_up_or_in_one_sentence(
    lines: list[bytes], end: bytes, header: bool, fraction: float
) -> None:
    content = end.join([HEADER, *lines] if header else lines)
    found = outcome(content, fraction, "" if header else "userId,movieId,rating,timestamp")
    # A quoted line break makes one row of two lines.
    rows = len(full_lines(content)) - header
    assert found.error or found.rows_read == rows or (b'"' in content and found.rows_read < rows)


@given(st.lists(st.tuples(st.booleans(), CLOSED_LINE, ENDS), min_size=1, max_size=40), st.booleans())
@bounded
def test_good_lines_survive_whatever_stands_between_them(lines: list[tuple[bool, bytes, bytes]], zipped: bool) -> None:
    good, content = {}, HEADER + b"\n"
    for i, (is_good, junk, end) in enumerate(lines):
        number = content.count(b"\n") + 1
        if is_good:
            good[number] = (f"{7_000_000 + i}", "-1", "2.5", "2001-09-09 01:46:40+00:00")
            junk = b"%d,-1,2.5,1000000000" % (7_000_000 + i)
        content += junk + end
    found = outcome(gzip.compress(content) if zipped else content)
    assert set(found.rows) >= set(good.values())
    assert found.error or found.rows_read == len(full_lines(content)) - 1
    numbers = [int(where.removeprefix("line ")) for where in found.rejected]
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= set(full_lines(content)[1:]) - set(good)


@given(st.lists(st.tuples(JUNK_LINE, st.integers(0, 9), ENDS), max_size=60))
@bounded
def test_it_does_not_matter_where_the_file_is_cut_into_blocks(lines: list[tuple[bytes, int, bytes]]) -> None:
    content = HEADER + b"\n" + b"".join(b"%d,5,3,%d\n%b%b" % (i, i, junk[:400], end) for junk, i, end in lines)
    whole = outcome(content)
    with cut_small():
        assert outcome(content) == whole


NOTE = st.lists(st.sampled_from(["a", '"', "\n", "\r\n", ",", ";", " ", "1,2,3\n", '""', "é"]), max_size=6).map("".join)


@given(
    st.lists(st.tuples(st.integers(0, 9), NOTE, st.booleans()), min_size=1, max_size=40),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n"]),
)
@bounded
def test_what_pythons_csv_module_writes_is_read_as_it_reads_it(
    rows: list[tuple[int, str, bool]], quoting: int, end: str
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
    writer.writerow(["userId", "note", "movieId", "rating"])
    for number, (user, note, is_good) in enumerate(rows):
        writer.writerow([user, note, number, 3 if is_good else "none"])
    content = text.getvalue().encode()
    reader = csv.reader(io.StringIO(text.getvalue(), newline=""))
    good, bad, line = [], [], 0
    for record in reader:
        first = line
        line += sum(value.count("\n") for value in record) + 1
        if record[3] == "3":
            good.append((record[0], record[2], "3.0"))
        elif record[3] == "none":
            bad.append(f"line {first + 1}")
    for small in (False, True):
        with cut_small() if small else nullcontext():
            found = outcome(content)
        assert found.error or (sorted(found.rows), found.rejected) == (sorted(good), bad)
        assert bool(found.error) == (not good)


@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
@bounded
def test_a_damaged_gzip_file_is_an_error_or_whole(place: int, byte: int, is_cut: bool) -> None:
    rows = b"".join(b"%d,%d,%d\n" % (i * i % 1009, i, i % 5) for i in range(500))
    content = gzip.compress(b"userId,movieId,rating\n" + rows, mtime=0)
    place %= len(content)
    damaged = content[:place] if is_cut else content[:place] + bytes([byte]) + content[place + 1 :]
    found = outcome(damaged)
    # A byte of the head that says nothing of the content (its time, its system) may change.
    assert found.error or (not is_cut and found.rows_read == 500 and not found.rejected)
