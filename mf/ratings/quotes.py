"""Quoted CSV values (RFC 4180): where a record ends, and its fields."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

JSON_LINES = "JSON lines"  # stands for a delimiter
UNQUOTED = ("::", " ", JSON_LINES)  # delimiters of files in which quotes are ordinary characters

NO_TEXT = "not UTF-8 text"


class BadLineError(Exception):
    """A line that is not a row; ``str()`` is the reason."""


class OpenEscapeError(BadLineError):
    """A quoted value that escapes quotes by backslashes and, read so, is not closed at the end of its line: the lines
    after it belong to its text."""


class Stray(str):
    """A value that holds a quote and does not begin with one."""


class _Grammar(NamedTuple):
    """Patterns for one delimiter.

    A value is quoted when it begins with a quote, blanks aside, as ``csv.reader`` with ``skipinitialspace`` reads it.
    Its closing quote ends the value; where it does not, the value must at least end on its line.
    """

    regular: re.Pattern[bytes]  # lines with quotes around whole values that hold neither quotes, delimiters nor breaks
    records: re.Pattern[bytes]  # whole records, up to the first whose quote is not closed
    record: re.Pattern[bytes]
    before_open: re.Pattern[bytes]  # the values of a record before the one whose quote is not closed
    field: re.Pattern[str]
    quoted: re.Pattern[str]


@cache
def _grammar(delimiter: str) -> _Grammar:
    end, blank = re.escape(delimiter), r"[ ]*+" if delimiter == "\t" else r"[ \t]*+"
    closed = rf'{blank}"(?>[^"]++|"")*+"{blank}(?={end}|\r?\n|\Z)'
    on_one_line = rf'{blank}"(?>[^"\n]++|"")*+"[^{end}\n]*+'
    field = rf'(?>{closed}|{on_one_line}|(?!{blank}")[^{end}\n]*+)'
    # Each repeated group is atomic: without, Python before 3.11.5 keeps half of the last try (its issue 106052).
    before = rf"(?>{field}{end})*+"
    record = rf"{before}{field}(?:\r?\n|\Z)"
    regular = rf'(?>(?>{blank}"[^"{end}\r\n]*"{blank}|[^"{end}\n]*)(?:{end}|\r?\n|\Z))*+'
    return _Grammar(
        re.compile(regular.encode()),
        re.compile(rf"(?>{record})*+".encode()),
        re.compile(record.encode()),
        re.compile(before.encode()),
        re.compile(rf"(?:^|{end})({field})"),
        re.compile(rf'{blank}"((?:[^"]|"")*)"{blank}'),
    )


def may_be_quoted(block: bytes, delimiter: str) -> bool:
    """Whether quotes have a meaning in ``block``, and there are any."""
    return delimiter not in UNQUOTED and b'"' in block


def is_regular(block: bytes, delimiter: str) -> bool:
    """Whether each quote of ``block`` is around a whole value without quotes, delimiters and line breaks, so that the
    quotes can be left out."""
    return _grammar(delimiter).regular.fullmatch(block) is not None


def whole_records(
    blocks: Iterable[bytes], delimiter: str, longest: int, left: list[bytes]
) -> Iterator[tuple[bytes, bool]]:
    """Blocks of whole lines as blocks of whole records, each with whether its quotes are regular.

    Args:
        longest: limit of a record, in bytes.
        left: given the rest of the file, from the first record whose quote is not closed within ``longest`` bytes.
    """
    rest = b""
    for block in blocks:
        block = rest + block if rest else block
        rest = b""
        if not may_be_quoted(block, delimiter):
            yield block, True
            continue
        grammar = _grammar(delimiter)
        place = grammar.regular.match(block).end()  # type: ignore[union-attr]
        if place == len(block):
            yield block, True
            continue
        end = _closed_end(block, delimiter, block.rfind(b"\n", 0, place) + 1, len(block))
        if end:
            yield block[:end], False
        rest = block[end:]
        if len(rest) > longest:
            break
    if rest:
        left.append(rest)


def _closed_end(block: bytes, delimiter: str, start: int, end: int) -> int:
    """Where the whole records from ``start`` on end, at most at ``end``, which is the end of a line."""
    if delimiter in UNQUOTED or block.find(b'"', start, end) < 0:
        return end
    return _grammar(delimiter).records.match(block, start, end).end()  # type: ignore[union-attr]


def lines_before_open(rest: bytes, delimiter: str) -> int:
    """Line breaks before the quote that is not closed, ``rest`` being its record and what follows."""
    return rest.count(b"\n", 0, _grammar(delimiter).before_open.match(rest).end())  # type: ignore[union-attr]


def pieces(block: bytes, delimiter: str, size: int) -> Iterator[bytes]:
    """A block of whole records in pieces of about ``size`` bytes that end at a record's end."""
    start = 0
    while start < len(block):
        end, least = start, size
        while end == start:
            limit = block.find(b"\n", start + least) + 1 or len(block)
            end = _closed_end(block, delimiter, start, limit)
            least *= 2
            if limit == len(block):
                end = limit
        yield block[start:end]
        start = end


def records(block: bytes, delimiter: str) -> Iterator[tuple[int, bytes]]:
    """The records of a block of whole ones, without their line ends, and the offset of each one's first line."""
    if not may_be_quoted(block, delimiter):
        yield from ((line, raw.removesuffix(b"\r")) for line, raw in enumerate(block.split(b"\n")))
        return
    line = 0
    for match in _grammar(delimiter).record.finditer(block):
        raw = match[0]
        yield line, raw.removesuffix(b"\n").removesuffix(b"\r")
        line += raw.count(b"\n")


def is_closed(record: bytes, delimiter: str) -> bool:
    """Whether each quote of a record is closed."""
    return delimiter in UNQUOTED or _grammar(delimiter).record.fullmatch(record) is not None


def text_of(raw: bytes) -> str:
    """A record as text.

    Raises:
        BadLineError: it is not text.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise BadLineError(NO_TEXT) from None
    if "\0" in text:
        raise BadLineError("a NUL byte")
    if "\r" in text and "\r" in re.sub('"(?:[^"]|"")*"', "", text):
        raise BadLineError("a carriage return that does not end the line")
    return text


def fields(text: str, delimiter: str) -> list[str]:
    """The fields of one record, those with a quote that does not begin them as ``Stray``.

    Raises:
        BadLineError: text follows a closing quote.
        OpenEscapeError: see there.
    """
    if delimiter == " ":
        return text.split()
    if '"' not in text or delimiter in UNQUOTED:
        return text.split(delimiter)
    grammar = _grammar(delimiter)
    try:
        return [_value(raw, grammar, delimiter) if '"' in raw else raw for raw in grammar.field.findall(text)]
    except BadLineError:
        if '\\"' in text and re.sub(r"\\.", "", text).count('"') % 2:
            raise OpenEscapeError from None
        raise


def _value(raw: str, grammar: _Grammar, delimiter: str) -> str:
    if match := grammar.quoted.fullmatch(raw):
        return match[1].replace('""', '"')
    if raw.startswith('"'):
        raise BadLineError(f"malformed quotes ('{delimiter}' expected after '\"')")
    return Stray(raw)
