"""Reader of files: layout, header and compression are detected, every line becomes a rating or a rejected row."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from mf.errors import DataError
from mf.parallel import in_order
from mf.progress import Progress
from mf.ratings import parquet
from mf.ratings.collect import MOST_ODD, Collector
from mf.ratings.config import IngestConfig, shown
from mf.ratings.fetch import SourceFile, local_files
from mf.ratings.quotes import (
    JSON_LINES,
    NO_TEXT,
    BadLineError,
    OpenEscapeError,
    Stray,
    fields,
    is_closed,
    is_regular,
    lines_before_open,
    may_be_quoted,
    pieces,
    records,
    text_of,
    whole_records,
)
from mf.ratings.rejects import AS_UTF_8
from mf.ratings.schema import COUNT, MOVIE, RATING, USER
from mf.ratings.streams import plain_size, text_stream
from mf.ratings.values import NUMBER, check, odd_ids, reason, trim

BLOCK = 8 << 20  # bytes per read; also the length limit of a line
PIECE = 64 << 10  # bytes per second attempt at a block with an irregular line
BOM = b"\xef\xbb\xbf"
DELIMITERS = ("::", "\t", ";", "|", ",")
SHORTEST = 4  # bytes of the shortest row without a rating, 1,2 and its line end; with one there are 2 more
BLANKS = " "  # runs of blanks, where no other delimiter fits
COMMENT = re.compile(r"\s*(#|//|%|;;)")
DECIMAL_COMMA = "^([+-]?[0-9]+),([0-9]+)$"
QUOTED_DECIMAL_COMMA = "^([+-]?[0-9]+),([0-9]{1,2})$"
JSON_START = re.compile(rb"""\s*\{\s*["}]""")
SEP_LINE = re.compile(rb'"?sep=(.)"?\r?\n', re.IGNORECASE)  # first line of Excel's CSV
# pyarrow separates at one byte only; "::" is replaced by this one, which text does not hold.
UNIT_SEPARATOR = b"\x1f"
# White space that ``trim`` takes off values (UTF-8, some by its first bytes), but for line ends.
SPACES = (b" ", b"\t", b"\v", b"\f", b"\x1c", b"\x1d", b"\x1e")
WIDE_SPACES = (b"\xc2\x85", b"\xc2\xa0", b"\xe1\x9a\x80", b"\xe2\x80", b"\xe2\x81\x9f", b"\xe3\x80\x80")
# What follows the place of a quoted value whose end is not known.
OPEN = "that the rows after it cannot be told from its text"
ESCAPE = (
    f'a quoted value with \\" in it, which is no escape in CSV, goes on after its line, so {OPEN}: write each quote '
    'within a value as "" (pandas: without escapechar)'
)
BLANK_LINES = re.compile(rb"(?: *\r?\n)*")


@dataclass(frozen=True)
class Layout:
    """How a line is divided: the delimiter, the number of fields, and the position of each role's field."""

    delimiter: str
    width: int
    positions: dict[str, int]
    names: tuple[str, ...] = ()  # of the fields of JSON lines


# Offset, ids by role, line of each row; and, by role, the offset and the id that make all ids text.
OddRows = tuple[list[tuple[int, dict[str, str], str]], dict[str, tuple[int, str]]]


class Piece(NamedTuple):
    """Parsed lines. Offsets are line numbers, from 0, within the piece."""

    ratings: pa.Table  # as ``Collector.add`` takes it
    bad: list[tuple[int, str, str]]  # offset, reason, line
    ignored: int  # rows left out for their rating
    time_forms: dict[str, tuple[int, str]]  # as in ``Checked``, by offset
    lines: int
    size: int  # in bytes
    odd: Callable[[Iterable[str]], "OddRows"]  # by roles; see ``_odd_rows``


def read(config: IngestConfig, sink: Collector) -> dict[str, str]:
    """Read the files of ``config.ratings_csv`` (see ``local_files``) into ``sink``; bad rows with their line number
    (from 1, blank lines counted) and reason.

    A record is a row. Quoted values may hold delimiters and line breaks (RFC 4180); in files separated by ``::`` quotes
    are ordinary characters. White space around a value is not part of it; for the values see
    ``mf.ratings.values.check``. JSON lines and Parquet are read as well.

    Returns:
        Which column was read as what, ``{"user_id": "userId", …}``.

    Raises:
        DataError: a file cannot be read, is empty, its columns are not understood, or a quote is not closed; or as
            ``sink.add`` raises.
            (A file with only a header is an error when the sink finishes.)
    """
    columns: dict[str, str] = {}
    with local_files(config.ratings_csv) as files, Progress(f"read {sink.source}") as progress:
        sink.untyped = {USER, MOVIE}.difference(sink.text_ids)
        most = [_most_rows(file) for file in files]
        for number, file in enumerate(files):
            following = None if None in most[number + 1 :] else sum(filter(None, most[number + 1 :]))
            name, place = (file.name, f"{file.name} ") if len(files) > 1 else (sink.source, "")
            if most[number] is not None and parquet.is_parquet(file.path):
                found = parquet.read(file.path, name, place, config, sink, progress, following)
            else:
                found = _read_text(file.path, name, place, config, sink, progress, following)
            columns = columns or found
            if found.keys() != columns.keys():
                raise DataError(
                    f"{name}: found the columns {', '.join(found.values())}, expected {', '.join(columns.values())} as "
                    f"in {files[0].name}"
                )
    return columns


def _most_rows(file: SourceFile) -> int | None:
    """The most rows that a file may have; None where it is compressed."""
    if not file.path.is_file():
        return None
    if parquet.is_parquet(file.path):
        return parquet.rows_in(file.path, file.name)
    size = plain_size(file.path)
    return None if size is None else size // SHORTEST


def _read_text(
    path: Path,
    name: str,
    place: str,
    config: IngestConfig,
    sink: Collector,
    progress: Progress,
    following: int | None,
) -> dict[str, str]:
    """Read one file of text.

    Args:
        name: the file as errors show it.
        place: begins a row's place, ``line 7``.
        following: the most rows of the files after it; None if unknown.
    """
    blocks = _blocks(path, name)
    first, line = _first_block(blocks, name)
    separator = ""
    if match := SEP_LINE.match(first):
        separator, first, line = match[1].decode(errors="replace"), first[match.end() :], line + 1
    header, body = _first_record(first)
    try:
        if JSON_START.match(first):
            layout, columns = _json_layout(first.partition(b"\n")[0], f"{name} line {line}", config)
            body = first
        elif b"\n" in header and header.count(b'"') % 2:
            raise DataError(f"{name} line {line}: a quoted value of the header does not end: close the quote")
        else:
            layout, columns = _layout(text_of(header), f"{name} line {line}", config, separator)
    except BadLineError as error:
        way = ", with line feeds (tr '\\r' '\\n')" if b"\r" in header else ""
        if str(error) == NO_TEXT:
            way = f": {AS_UTF_8}"
        raise DataError(f"{name} line {line}: {error}, expected a CSV file in UTF-8{way}") from None
    if not config.columns:
        line += first.count(b"\n", 0, len(first) - len(body))
        first = body
    size, shortest = plain_size(path), SHORTEST + 2 * (RATING in columns)
    left: list[bytes] = []
    whole = whole_records(chain([first], blocks), layout.delimiter, BLOCK, left)
    for parsed in in_order(partial(_parse, layout, config.ignored), whole):
        for piece in parsed:
            odd_rows, texts = piece.odd(sink.untyped)
            for role, (offset, text) in texts.items():
                sink.text(role, f"{place}line {line + offset}", text)
            odd = [(offset, partial(sink.odd, ids=ids), row) for offset, ids, row in odd_rows]
            bad = [(offset, partial(sink.reject, reason=why), row) for offset, why, row in piece.bad]
            if open_escape := next((offset for offset, why, _ in piece.bad if why == ESCAPE), None):
                raise DataError(f"{name} line {line + open_escape}: {ESCAPE}")
            for offset, tell, row in sorted([*odd, *bad], key=itemgetter(0)):
                tell(f"{place}line {line + offset}", row=row)
            forms = piece.time_forms.items()
            places = {form: f"{place}line {line + offset}: {text}" for form, (offset, text) in forms}
            sink.add(piece.ratings, places, piece.ignored)
            if size is not None:
                size -= piece.size
            sink.check(None if size is None or following is None else max(0, size) // shortest + following)
            line += piece.lines
            progress.advance(piece.lines)
    if left:
        line += lines_before_open(left[0], layout.delimiter)
        raise DataError(
            f"{name} line {line}: a quoted value begins here and does not end properly, so {OPEN}: close the quote, "
            "and double each quote within the value"
        )
    return columns


def _blocks(path: Path, name: str) -> Iterator[bytes]:
    """The decompressed file in blocks that end at a line's end."""
    with text_stream(path, name) as stream:
        rest = b""
        while data := stream.read(BLOCK):
            end = data.rfind(b"\n") + 1
            if end:
                yield rest + data[:end]
                rest = b""
            rest += data[end:]
            if len(rest) > BLOCK:
                raise DataError(f"{name}: a line is longer than {BLOCK:,} bytes, expected one rating per line")
        if rest:
            yield rest


def _first_block(blocks: Iterator[bytes], name: str) -> tuple[bytes, int]:
    """The first block, from its first line that is not blank, and the number of that line."""
    line, mark = 1, BOM
    for block in blocks:
        block, mark = block.removeprefix(mark), b""
        start = BLANK_LINES.match(block).end()  # type: ignore[union-attr]
        line += block.count(b"\n", 0, start)
        if block[start:].strip(b" \r"):
            return block[start:], line
    raise DataError(f"{name}: the file is empty, expected ratings")


def _first_record(block: bytes) -> tuple[bytes, bytes]:
    """The first record, without its line end, and what follows it."""
    end = block.find(b"\n") + 1 or len(block)
    if not is_closed(block[:end], max(DELIMITERS, key=lambda delimiter: block.count(delimiter.encode(), 0, end))):
        while block.count(b'"', 0, end) % 2 and end < len(block):
            end = block.find(b"\n", end) + 1 or len(block)
    return block[:end].removesuffix(b"\n").removesuffix(b"\r"), block[end:]


def _layout(text: str, where: str, config: IngestConfig, separator: str = "") -> tuple[Layout, dict[str, str]]:
    """The file's layout, from its first line and the configuration, and which column was read as what. ``separator``:
    the delimiter that the file names."""
    delimiters = (separator,) if separator else DELIMITERS
    splits = {delimiter: _fields_or_none(text, delimiter) for delimiter in delimiters}
    if not separator and max(map(len, splits.values())) <= 1:
        splits[BLANKS] = fields(text, BLANKS)
    names = [name.strip() for name in config.columns.split(",")] if config.columns else []
    if names:
        columns = config.find_columns(names, "--columns")
        fits = [delimiter for delimiter, fields in splits.items() if len(fields) == len(names)]
        if not fits:
            most = max(len(fields) for fields in splits.values())
            raise DataError(f"{where}: expected {len(names)} fields (--columns {config.columns}), found {most}")
        # Two delimiters can fit, as in 1,2,3.5,Action|Comedy|Drama|War; with the right one the rating is a number.
        numbers = [names.index(columns[role]) for role in (RATING, COUNT) if role in columns]
        right = (fit for fit in fits if all(NUMBER.fullmatch(splits[fit][number].strip()) for number in numbers))
        delimiter = next(right, fits[0])
    else:
        # The delimiter of most fields, unless another one gives the columns: a name may hold a delimiter.
        widest = sorted(splits, key=lambda delimiter: -len(splits[delimiter]))
        delimiter = next((delimiter for delimiter in widest if _has_columns(splits[delimiter], config)), widest[0])
        names = [name.strip() for name in splits[delimiter]]
        columns = _header_columns(names, where, config)
    positions = {role: names.index(column) for role, column in columns.items()}
    return Layout(delimiter, len(names), positions), columns


def _example(width: int) -> str:
    """--columns for a file of so many columns."""
    return ",".join(["userId", "movieId", "rating", "timestamp", *map("column{}".format, range(5, width + 1))][:width])


def _has_columns(names: list[str], config: IngestConfig) -> bool:
    try:
        return bool(config.find_columns([name.strip() for name in names], ""))
    except DataError:
        return False


def _header_columns(names: list[str], where: str, config: IngestConfig) -> dict[str, str]:
    try:
        return config.find_columns(names, where)
    except DataError:
        if COMMENT.match(names[0]):
            raise DataError(
                f"{where}: a comment, {shown(' '.join(names))}, expected a header: delete the comment lines, and the "
                "sign before a header"
            ) from None
        if any(NUMBER.fullmatch(name) for name in names):
            raise DataError(
                f"{where}: expected a header, found {shown(', '.join(names))}; for a file without one name its "
                f"columns with --columns {_example(len(names))}"
            ) from None
        if len(names) == 1:
            raise DataError(
                f"{where}: expected a header with the columns of user, movie and rating, found {shown(names[0])}; "
                'columns are separated by one of , ; | tab "::" or blanks'
            ) from None
        raise


def _parse(layout: Layout, ignore: Sequence[float], block: tuple[bytes, bool]) -> list[Piece]:
    """The rows of a block of ``whole_records``. A block that the fast parser refuses is given to it again in small
    pieces, so that the careful parser reads only those with an irregular line."""
    data, regular = block
    if layout.delimiter == JSON_LINES:
        return [_piece(data, layout, ignore, None)]
    texts = _split_fast(data, layout, regular) if regular else None
    if texts is None and len(data) > PIECE:
        parts = pieces(data, layout.delimiter, PIECE)
        return [_piece(part, layout, ignore, _split_fast(part, layout)) for part in parts]
    return [_piece(data, layout, ignore, texts)]


def _piece(block: bytes, layout: Layout, ignore: Sequence[float], texts: pa.Table | None) -> Piece:
    """The rows of ``block``, from its fields ``texts`` when the fast parser read them."""
    bad: dict[int, str] = {}
    is_fast = texts is not None
    if texts is not None:
        count, lines = len(texts), np.arange(len(texts))
    else:
        count = block.count(b"\n")
        texts, lines, bad = _split_careful(block, layout)
    # Between commas a decimal comma is in quotes, which the fast parser does not read; 1,000 may be a thousand there.
    commas = DECIMAL_COMMA if layout.delimiter != "," else "" if is_fast else QUOTED_DECIMAL_COMMA
    if commas and b"," in block:
        for role in (RATING, COUNT):
            if role in texts.column_names:
                points = pc.replace_substring_regex(texts[role], commas, r"\1.\2")
                texts = texts.set_column(texts.column_names.index(role), role, points)
    ratings, usable, ignored, forms = check(texts, is_file=True, ignore=ignore)
    is_bad = ~(usable | ignored)
    refused = zip(lines[is_bad].tolist(), texts.filter(pa.array(is_bad)).to_pylist(), strict=True)
    bad |= {number: reason(row) for number, row in refused}
    raw = dict(records(block, layout.delimiter)) if bad else {}
    rows = [(i, bad[i], raw[i].decode(errors="backslashreplace")) for i in sorted(bad)]
    places = {form: (int(lines[row]), text) for form, (row, text) in forms.items()}
    odd = partial(_odd_rows, block, layout.delimiter, ratings, lines[usable])
    return Piece(ratings, rows, int(ignored.sum()), places, count, len(block), odd)


def _odd_rows(
    block: bytes, delimiter: str, ratings: pa.Table, lines: npt.NDArray[np.int64], roles: Iterable[str]
) -> OddRows:
    """The rows with an id in one of ``roles`` that is not an integer. Where most rows of a large block have one, all
    ids are text, and these rows are not listed."""
    is_odd = {role: odd_ids(ratings[role]) for role in roles}
    texts = {}
    for role, counts in {role: int(np.count_nonzero(odd)) for role, odd in is_odd.items()}.items():
        if counts >= MOST_ODD and 2 * counts >= len(ratings):
            first = int(is_odd.pop(role).argmax())
            texts[role] = int(lines[first]), ratings[role][first].as_py()
    numbers = np.flatnonzero(np.logical_or.reduce(list(is_odd.values()))) if is_odd else np.zeros(0, np.int64)
    if not len(numbers):
        return [], texts
    raw = dict(records(block, delimiter))
    ids = ratings.select(list(is_odd)).take(numbers).to_pylist()
    rows = [
        (line, {role: row[role] for role in row if is_odd[role][number]}, raw[line].decode(errors="backslashreplace"))
        for number, line, row in zip(numbers.tolist(), lines[numbers].tolist(), ids, strict=True)
    ]
    return rows, texts


def _split_fast(block: bytes, layout: Layout, regular: bool = False) -> pa.Table | None:
    """The fields of ``block``, one row of trimmed strings per line; None when a line is irregular. ``regular``: its
    quotes are known to be."""
    delimiter = layout.delimiter
    if may_be_quoted(block, delimiter):
        if not (regular or is_regular(block, delimiter)):
            return None
        block = block.replace(b'"', b"")
    if not _is_plain(block):
        return None
    if delimiter == "::":
        block, delimiter = block.replace(b"::", UNIT_SEPARATOR), UNIT_SEPARATOR.decode()
    elif delimiter == BLANKS:
        block = re.sub(rb"[ \t]+", UNIT_SEPARATOR, re.sub(rb"(?m)^[ \t]+|[ \t]+(?=\r?$)", b"", block))
        delimiter = UNIT_SEPARATOR.decode()
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
    if _has_spaces(block, delimiter.encode()):
        texts = {role: trim(column) for role, column in texts.items()}
    return pa.table(texts)


def _has_spaces(block: bytes, delimiter: bytes) -> bool:
    """Whether ``block`` may hold white space that ``trim`` takes off."""
    spaces = SPACES if block.isascii() else SPACES + WIDE_SPACES
    return any(space in block for space in spaces if space != delimiter)


def _is_plain(block: bytes) -> bool:
    """Whether ``block`` is UTF-8 text without quotes, control bytes that matter and stray carriage returns."""
    if not block or any(odd in block for odd in (b'"', b"\0", UNIT_SEPARATOR)) or block.startswith(BOM):
        return False
    # The first count is fast where there are none, the second always slow.
    if (returns := block.count(b"\r")) and returns != block.count(b"\r\n"):
        return False
    try:
        return block.isascii() or bool(block.decode())
    except UnicodeDecodeError:
        return False


def _split_careful(block: bytes, layout: Layout) -> tuple[pa.Table, npt.NDArray[np.int64], dict[int, str]]:
    """As ``_split_fast``, for any bytes: the fields, the offset of each row's first line, and the reasons for the
    records that are not rows."""
    rows, lines, bad = [], [], {}
    for number, raw in records(block, layout.delimiter):
        if not raw.strip(b" "):
            continue
        try:
            if layout.delimiter == JSON_LINES:
                rows.append(_json_fields(raw, layout))
                lines.append(number)
                continue
            row = fields(text_of(raw), layout.delimiter)
            if len(row) != layout.width:
                raise BadLineError(f"expected {layout.width} fields, found {len(row)}")
            if any(isinstance(row[position], Stray) for position in layout.positions.values()):
                raise BadLineError("malformed quotes (a quote within a value that does not begin with one)")
        except OpenEscapeError:
            bad[number] = ESCAPE
        except BadLineError as error:
            bad[number] = str(error)
        else:
            rows.append(row)
            lines.append(number)
    texts = {
        role: pa.array([row[position].strip() for row in rows], pa.string())
        for role, position in layout.positions.items()
    }
    return pa.table(texts), np.array(lines, np.int64), bad


def _json_layout(record: bytes, where: str, config: IngestConfig) -> tuple[Layout, dict[str, str]]:
    """The layout of JSON lines, from the first one, and which field was read as what."""
    try:
        first = _json(record)
    except ValueError as error:
        raise DataError(
            f"{where}: JSON that is not one object per line ({error}): write it as JSON lines or CSV, for example with "
            "pandas.read_json(…).to_csv(…, index=False)"
        ) from None
    columns = config.find_columns(list(first), where)
    names = tuple(columns.values())
    return Layout(JSON_LINES, len(names), {role: names.index(name) for role, name in columns.items()}, names), columns


def _json(text: bytes) -> Any:
    """The value of a JSON text, which may have the NaN and Infinity that Python writes."""
    try:
        return orjson.loads(text)
    except ValueError:
        if b"NaN" in text or b"Infinity" in text:
            return json.loads(text)
        raise


def _json_fields(raw: bytes, layout: Layout) -> list[str]:
    """The fields of one JSON object, as texts."""
    try:
        record = _json(raw)
    except ValueError:
        raise BadLineError("not a JSON object") from None
    if not isinstance(record, dict):
        raise BadLineError("not a JSON object")
    cells = [record.get(name) for name in layout.names]
    if any(isinstance(cell, dict | list | bool) for cell in cells):
        raise BadLineError("an object, list or boolean in place of an id, a rating or a time")
    return ["" if cell is None else str(cell) for cell in cells]


def _fields_or_none(text: str, delimiter: str) -> list[str]:
    try:
        return fields(text, delimiter) if is_closed(text.encode(), delimiter) else []
    except BadLineError:
        return []
