"""Ratings from a text file: delimiter, header and gzip are recognised, every line is read or accounted for."""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from mf.errors import DataError
from mf.parallel import in_order
from mf.progress import Progress
from mf.ratings.collect import Collector
from mf.ratings.config import IngestConfig, shown
from mf.ratings.schema import MOVIE, RATED_AT, RATING, TIMESTAMP, USER

BLOCK = 8 << 20  # bytes read at once; also the longest line
PIECE = 64 << 10  # bytes read again at once, of a block with an odd line
BOM = b"\xef\xbb\xbf"
DELIMITERS = ("::", "\t", ";", "|", ",")
# pyarrow separates at one byte only; "::" becomes this one, which text does not hold.
UNIT_SEPARATOR = b"\x1f"
SPACES = " \t\n\v\f\r"  # no part of a value at its ends
# Lines with quotes around whole values that hold neither quotes nor the delimiter: there they can as well be left out.
QUOTED = rb'(?:(?>"[^"%b\r\n]*"|[^"%b\n]*)(?:%b|\r?\n|\Z))*+'
BLANK_LINES = re.compile(rb"(?: *\r?\n)*")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
INTEGER = "^-?[0-9]+$"
EPOCH = "^-?[0-9]{1,15}$"
DATE = "^[0-9]{4}-[0-9]{2}-[0-9]{2}"
# Of an integer timestamp; as seconds this is the year 5138, as milliseconds March 1973.
LARGEST_SECONDS = 10**11
# The years 1 to 9999, which is what Python's datetime can hold.
FIRST_MICRO, LAST_MICRO = -62_135_596_800_000_000, 253_402_300_799_999_999
NO_TEXT = pa.scalar(None, pa.string())


@dataclass(frozen=True)
class Layout:
    """How a line is divided: the delimiter, how many fields there are, and at which position each column stands."""

    delimiter: str
    width: int
    positions: dict[str, int]


class Piece(NamedTuple):
    """What became of some lines."""

    good: pa.Table  # as ``Collector.add`` takes it
    bad: list[tuple[int, str, str]]  # offset among these lines, reason, row
    lines: int


class BadLineError(Exception):
    """A line that is no row; ``str()`` is the reason."""


def read_csv(path: Path, name: str, config: IngestConfig, collector: Collector, progress: Progress) -> dict[str, str]:
    """Reads a file of ratings into ``collector``: good rows as batches, bad ones with their line number (from 1, blank
    lines counted but skipped) and reason.

    A line is a row: a quoted value cannot hold a line break, and one that does is a malformed row. In files separated
    by ``::`` quotes are ordinary characters. Ids become int64 when all of a block are integers in canonical form (7,
    not 007 or 7.0), else they stay strings; white space around a value is no part of it. Timestamps are epoch seconds,
    epoch milliseconds (integers beyond 1e11) or ISO 8601, UTC unless they say otherwise; an empty one is unknown.

    Args:
        path: the file, plain or gzip.
        name: the file as the user knows it; opens every error.
        progress: advanced by lines.

    Returns:
        Which column was read as what, ``{"user_id": "userId", …}``.

    Raises:
        DataError: the file cannot be read, is empty, or its columns are not understood. (That it holds a header only
            shows when the collector finishes.)
    """
    blocks = _blocks(path, name)
    first, line = _first_block(blocks, name)
    header, _, body = first.partition(b"\n")
    try:
        layout, columns = _layout(_text(header.removesuffix(b"\r")), f"{name} line {line}", config)
    except BadLineError as error:
        raise DataError(f"{name} line {line}: {error}, expected a CSV file in UTF-8") from None
    if not config.columns:
        first, line = body, line + 1
    for pieces in in_order(partial(_parse, layout), chain([first], blocks)):
        for piece in pieces:
            for offset, reason, row in piece.bad:
                collector.reject(f"line {line + offset}", reason, row)
            collector.add(piece.good)
            line += piece.lines
            progress.advance(piece.lines)
    return columns


def _blocks(path: Path, name: str) -> Iterator[bytes]:
    """The file's bytes, unpacked, in pieces that end at a line's end."""
    try:
        with path.open("rb") as file:
            stream = gzip.GzipFile(fileobj=file) if file.peek(2).startswith(b"\x1f\x8b") else file
            rest = b""
            while data := stream.read(BLOCK):
                end = data.rfind(b"\n") + 1
                if end:
                    yield rest + data[:end]
                    rest = b""
                rest += data[end:]
                if len(rest) > BLOCK:
                    raise DataError(f"{name}: a line is longer than {BLOCK:,} bytes, expected one rating a line")
            if rest:
                yield rest
    except FileNotFoundError:
        raise DataError(f"{name}: no such file, expected a file of ratings") from None
    except IsADirectoryError:
        raise DataError(f"{name}: a directory, expected a file of ratings") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name}: the gzip file is damaged or cut short ({error}); copy it again") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from None


def _first_block(blocks: Iterator[bytes], name: str) -> tuple[bytes, int]:
    """The first block from its first line that is not blank, and the number of that line."""
    line, mark = 1, BOM
    for block in blocks:
        block, mark = block.removeprefix(mark), b""
        start = BLANK_LINES.match(block).end()  # type: ignore[union-attr]
        line += block.count(b"\n", 0, start)
        if block[start:].strip(b" \r"):
            return block[start:], line
    raise DataError(f"{name}: the file is empty, expected ratings")


def _layout(text: str, where: str, config: IngestConfig) -> tuple[Layout, dict[str, str]]:
    """How the file is laid out, from its first line and the configuration, and which column was read as what."""
    splits = {delimiter: _fields_or_none(text, delimiter) for delimiter in DELIMITERS}
    names = [name.strip() for name in config.columns.split(",")] if config.columns else []
    if names:
        columns = config.find_columns(names, "--columns")
        fits = [delimiter for delimiter, fields in splits.items() if len(fields) == len(names)]
        if not fits:
            most = max(len(fields) for fields in splits.values())
            raise DataError(f"{where}: expected {len(names)} fields (--columns {config.columns}), found {most}")
        # Two delimiters can fit, as in 1,2,3.5,Action|Comedy|Drama|War; the right one leaves a number for the rating.
        rating = names.index(columns[RATING])
        delimiter = next((fit for fit in fits if NUMBER.fullmatch(splits[fit][rating].strip())), fits[0])
    else:
        delimiter = max(DELIMITERS, key=lambda delimiter: len(splits[delimiter]))
        names = [name.strip() for name in splits[delimiter]]
        columns = _header_columns(names, where, config)
    positions = {role: names.index(column) for role, column in columns.items()}
    return Layout(delimiter, len(names), positions), columns


def _header_columns(names: list[str], where: str, config: IngestConfig) -> dict[str, str]:
    try:
        return config.find_columns(names, where)
    except DataError:
        if any(NUMBER.fullmatch(name) for name in names):
            raise DataError(
                f"{where}: expected a header, found {shown(', '.join(names))}; for a file without one name its "
                "columns with --columns userId,movieId,rating,timestamp"
            ) from None
        raise


def _parse(layout: Layout, block: bytes) -> list[Piece]:
    """The rows of ``block``. One that the fast parser refuses is given to it again in small pieces, so that only those
    with an odd line are read at the careful one's pace."""
    texts = _split_fast(block, layout)
    if texts is None and len(block) > PIECE:
        return [_piece(piece, layout, _split_fast(piece, layout)) for piece in _cut(block)]
    return [_piece(block, layout, texts)]


def _cut(block: bytes) -> Iterator[bytes]:
    """``block`` in pieces of some ``PIECE`` bytes that end at a line's end."""
    start = 0
    while start < len(block):
        end = block.find(b"\n", start + PIECE) + 1 or len(block)
        yield block[start:end]
        start = end


def _piece(block: bytes, layout: Layout, texts: pa.Table | None) -> Piece:
    """The rows of ``block``, from their fields when the fast parser found them."""
    bad: dict[int, str] = {}
    if texts is not None:
        count, lines = len(texts), np.arange(len(texts))
    else:
        count = block.count(b"\n")
        texts, lines, bad = _split_careful(block, layout)
    batch, good = _typed(texts)
    rejected = zip(lines[~good].tolist(), texts.filter(pa.array(~good)).to_pylist(), strict=True)
    bad |= {number: _reason(row) for number, row in rejected}
    raw = block.split(b"\n") if bad else []
    rows = [(i, bad[i], raw[i].removesuffix(b"\r").decode(errors="backslashreplace")) for i in sorted(bad)]
    return Piece(batch, rows, count)


def _split_fast(block: bytes, layout: Layout) -> pa.Table | None:
    """The fields of ``block`` as strings, row by line, or ``None`` when it holds anything that needs a closer look."""
    delimiter = layout.delimiter
    if b'"' in block and delimiter != "::":
        if not re.fullmatch(QUOTED % ((re.escape(delimiter).encode(),) * 3), block):
            return None
        block = block.replace(b'"', b"")
    if not _is_plain(block):
        return None
    if delimiter == "::":
        block, delimiter = block.replace(b"::", UNIT_SEPARATOR), UNIT_SEPARATOR.decode()
    names = [str(position) for position in range(layout.width)]
    wanted = [str(position) for position in layout.positions.values()]
    try:
        table = pacsv.read_csv(
            pa.BufferReader(block),
            pacsv.ReadOptions(column_names=names, block_size=len(block) + 1, use_threads=False),
            pacsv.ParseOptions(delimiter=delimiter, quote_char=False),
            pacsv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted),
        )
    except pa.ArrowInvalid:
        return None
    if len(table) != block.count(b"\n") + (not block.endswith(b"\n")):
        return None
    texts = {role: table[str(position)].chunk(0) for role, position in layout.positions.items()}
    if any(space.encode() in block for space in SPACES if space not in ("\r", "\n", delimiter)):
        texts = {role: pc.ascii_trim_whitespace(column) for role, column in texts.items()}
    return pa.table(texts)


def _is_plain(block: bytes) -> bool:
    """Whether ``block`` holds nothing but UTF-8 text, delimiters and line ends."""
    if not block or any(odd in block for odd in (b'"', b"\0", UNIT_SEPARATOR)) or block.startswith(BOM):
        return False
    # The first count is quick where there are none, the second never.
    if (returns := block.count(b"\r")) and returns != block.count(b"\r\n"):
        return False
    try:
        return block.isascii() or bool(block.decode())
    except UnicodeDecodeError:
        return False


def _split_careful(block: bytes, layout: Layout) -> tuple[pa.Table, npt.NDArray[np.int64], dict[int, str]]:
    """What ``_split_fast`` gives, for any bytes: the fields, the offset of each row's line, and the reason for each
    line that is no row."""
    rows, lines, bad = [], [], {}
    for number, raw in enumerate(block.split(b"\n")):
        raw = raw.removesuffix(b"\r")
        if not raw.strip(b" "):
            continue
        try:
            text = _text(raw)
            fields = _fields(text, layout.delimiter)
            if len(fields) != layout.width:
                raise BadLineError(f"expected {layout.width} fields, found {len(fields)}")
            if '"' in text and layout.delimiter != "::":
                _check_quotes(text, layout)
        except BadLineError as error:
            bad[number] = str(error)
        else:
            rows.append(fields)
            lines.append(number)
    texts = {
        role: pa.array([row[position].strip(SPACES) for row in rows], pa.string())
        for role, position in layout.positions.items()
    }
    return pa.table(texts), np.array(lines, np.int64), bad


def _text(raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise BadLineError("not UTF-8 text") from None
    if "\0" in text:
        raise BadLineError("a NUL byte")
    if "\r" in text:
        raise BadLineError("a carriage return that does not end the line")
    return text


def _fields(text: str, delimiter: str) -> list[str]:
    if '"' not in text or delimiter == "::":
        return text.split(delimiter)
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise BadLineError(f"malformed quotes ({error})") from None


def _check_quotes(text: str, layout: Layout) -> None:
    """Refuses a quote within a wanted value that does not begin with one, such as the end of a value that holds a line
    break; the csv module takes it for a character."""
    delimiter = re.escape(layout.delimiter)
    written = re.findall(rf'(?:^|{delimiter})("(?:[^"]|"")*"|[^{delimiter}]*)', text)
    for position in layout.positions.values():
        if '"' in written[position] and not written[position].startswith('"'):
            raise BadLineError("malformed quotes (a quote within a value that does not begin with one)")


def _fields_or_none(text: str, delimiter: str) -> list[str]:
    try:
        return _fields(text, delimiter)
    except BadLineError:
        return []


def _typed(texts: pa.Table) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """The rows whose values are all good, in their types, and which rows those are."""
    columns = {name: texts[name].chunk(0) for name in texts.column_names}
    values: dict[str, pa.Array] = {RATING: pa.array(_ratings(columns[RATING]))}
    good = np.isfinite(values[RATING].to_numpy())
    if RATED_AT in columns:
        values[RATED_AT] = _times(columns[RATED_AT])
        known = pc.or_(values[RATED_AT].is_valid(), pc.equal(columns[RATED_AT], ""))
        good &= known.to_numpy(zero_copy_only=False)
    for name in (USER, MOVIE):
        good &= pc.not_equal(columns[name], "").to_numpy(zero_copy_only=False)
    ids = {USER: columns[USER], MOVIE: columns[MOVIE]}
    batch = pa.table(ids | values)
    if not good.all():
        batch = batch.filter(pa.array(good))
    for place, name in enumerate(ids):
        batch = batch.set_column(place, name, _ids(batch[name].combine_chunks()))
    return batch, good


def _ids(texts: pa.StringArray) -> pa.Array:
    """int64 when every id is an integer that is written the one way PostgreSQL and Python write it, else as it is; what
    was looked up in a dictionary stays in it."""
    if _is_decimal(texts, 18):
        integers = texts.cast(pa.int64())
        # Any other way to write a number that is not negative is longer.
        if pc.sum(pc.binary_length(texts)).as_py() == _digits(integers.to_numpy()):
            return integers
    encoded = texts.dictionary_encode()
    # One text that is no number decides; a cast would say of each of them what is wrong with it.
    if not pc.all(pc.match_substring_regex(encoded.dictionary.slice(0, 1), INTEGER)).as_py():
        return encoded
    try:
        integers = encoded.dictionary.cast(pa.int64())
    except pa.ArrowInvalid:
        return encoded
    if not integers.cast(pa.string()).equals(encoded.dictionary):
        return encoded
    return pa.DictionaryArray.from_arrays(encoded.indices, integers)


def _digits(numbers: npt.NDArray[np.int64]) -> int:
    """How many digits the numbers, none of them negative, have together."""
    powers = 10 ** np.arange(1, len(str(numbers.max(initial=0))), dtype=np.int64)
    return len(numbers) + sum(int(np.count_nonzero(numbers >= power)) for power in powers)


def _ratings(texts: pa.StringArray) -> npt.NDArray[np.float32]:
    """The numbers, float32; NaN for what is none and infinity for what float32 cannot hold."""
    encoded = texts.dictionary_encode()
    values = [float(text) if NUMBER.fullmatch(text) else np.nan for text in encoded.dictionary.to_pylist()]
    with np.errstate(over="ignore"):
        distinct = np.array(values, np.float64).astype(np.float32)
    ratings: npt.NDArray[np.float32] = distinct[encoded.indices.to_numpy()]
    return ratings


def _times(texts: pa.StringArray) -> pa.TimestampArray:
    """Microseconds, UTC; null for what is no timestamp."""
    if _is_decimal(texts, 15):
        numbers = texts.cast(pa.int64())
    else:
        numbers = pc.if_else(pc.match_substring_regex(texts, EPOCH), texts, NO_TEXT).cast(pa.int64())
    micros = pc.multiply(numbers, pc.if_else(pc.greater(pc.abs(numbers), LARGEST_SECONDS), 1_000, 1_000_000))
    if micros.null_count:
        dates = pc.if_else(pc.match_substring_regex(texts, DATE), texts, NO_TEXT)
        # Digits below a microsecond would make pandas count in nanoseconds, which end in 2262, for every row.
        dates = pc.replace_substring_regex(dates, r"(\.[0-9]{6})[0-9]+", r"\1")
        parsed = pd.to_datetime(dates.to_pandas(), format="ISO8601", utc=True, errors="coerce").dt.as_unit("us")
        micros = pc.coalesce(micros, pa.Array.from_pandas(parsed, type=TIMESTAMP).cast(pa.int64()))
    possible = pc.and_(pc.greater_equal(micros, FIRST_MICRO), pc.less_equal(micros, LAST_MICRO))
    return pc.if_else(possible, micros, pa.scalar(None, pa.int64())).cast(TIMESTAMP)


def _is_decimal(texts: pa.StringArray, digits: int) -> bool:
    """Whether each is a number of so many digits or fewer; several times as fast as the regular expression."""
    is_short = not len(texts) or pc.max(pc.binary_length(texts)).as_py() <= digits
    return is_short and bool(pc.all(pc.ascii_is_decimal(texts)).as_py())


def _reason(row: dict[str, str]) -> str:
    """Why a row's trimmed values cannot be used."""
    for name, what in ((USER, "user id"), (MOVIE, "movie id"), (RATING, "rating")):
        if row[name] == "":
            return f"empty {what}"
    rating = row[RATING]
    if rating.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return f"rating {shown(rating)} is not finite"
    if not NUMBER.fullmatch(rating):
        return f"rating {shown(rating)} is not a number"
    if RATED_AT not in row or not np.isfinite(_ratings(pa.array([rating]))[0]):
        return f"rating {shown(rating)} is larger than float32 can hold"
    return f"timestamp {shown(row[RATED_AT])} is neither epoch seconds, epoch milliseconds nor ISO 8601"
