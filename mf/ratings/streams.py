"""Open a file of text: compression, encoding, and the kind of what is no text."""

import bz2
import codecs
import gzip
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa

from mf.errors import DataError
from mf.ratings.fetch import ratings_among

HEAD = 512  # bytes to recognise a file by
# What a file that is no text begins with, and what to do about it.
KINDS = (
    (rb"PAR1", "a compressed Parquet file", "unpack it"),
    (
        rb"\x1f[\x8b\x9d]|BZh[1-9]1AY&SY|\xfd7zXZ|\x28\xb5\x2f\xfd|PK[\x03\x05]|\x5d\x00\x00[\x00-\xff]|\x04\x22\x4d\x18|\xff\x06\x00\x00sNaPpY",
        "a compressed file, within another one or of a kind that is not read (Z, lzma, lz4, snappy)",
        "unpack it",
    ),
    (rb"\xd0\xcf\x11\xe0", "an Excel workbook (xls)", "save it as CSV"),
    (
        rb"version https://git-lfs|\S*/annex/objects/",
        "a git-lfs pointer, not the file itself",
        "fetch the file with git lfs pull (git annex get)",
    ),
    (
        rb"<stata_dta|\$FL[23]|RD[ABX][23]\n|[XB]\n\0\0|MATLAB [57]\.|(?s:.{12})\xc2\xea\x81\x60",
        "a file of a statistics program",
        "write it as CSV",
    ),
    (
        rb"\s*(?i:<!doctype html|<html|<head|<body|<table|<script|<!--)",
        "an HTML page",
        "download the file itself, perhaps after logging in",
    ),
    (rb"\s*<", "an XML document", "write it as CSV"),
    (rb"\s*\[\s*[\[{\]]", "a JSON array", "write it as JSON lines, one object per line, or as CSV"),
    (rb"%PDF|%!PS|\{\\rtf", "a PDF, PostScript or RTF document", "write its table as CSV"),
    (rb"SQLite format 3", "a SQLite database", "write its table as CSV with sqlite3 -header -csv"),
    (
        rb"PGDMP|PGCOPY|\s*(?i:--|/\*|copy\s+\S+\s|insert\s+into\s|create\s+table\s|set\s+\w+\s*=)",
        "a database dump",
        r"load it into a database and write its table as CSV with psql -c '\copy ratings to ratings.csv csv header'",
    ),
    (rb"ARROW1|FEA1", "an Arrow file", "write it as CSV"),
    (rb"ORC|Obj\x01", "an ORC or Avro file", "write it as CSV"),
    (rb"\x80[\x02-\x05]", "a Python pickle", "write it as CSV with to_csv(…, index=False)"),
    (rb"\x93NUMPY", "a NumPy array", "write it as CSV with numpy.savetxt"),
    (rb"\x89HDF|CDF", "an HDF5 or netCDF file", "write it as CSV"),
    (rb"7z\xbc\xaf|Rar!|MSCF", "a 7z, RAR or CAB archive", "unpack it"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|\x7fELF|MZ[\x00-\xff]\0", "an image or a program", "name the file of ratings"),
    (rb"(?s:.{257})ustar", "a tar archive", "unpack it and name the file of ratings"),
)
# UTF-16 without a byte order mark: every other byte is NUL.
UTF_16 = ((rb"(?:[^\0]\0){8}", "utf-16-le"), (rb"(?:\0[^\0]){8}", "utf-16-be"))
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def plain_size(path: Path) -> int | None:
    """Bytes of a file's text; None where it is compressed."""
    with path.open("rb") as file:
        is_compressed = file.read(8).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK"))
    return None if is_compressed else path.stat().st_size


@contextmanager
def text_stream(path: Path, name: str) -> Iterator[Readable]:
    """The bytes of a text file, decompressed (gzip, bzip2, xz, zstd, zip with one file of ratings) and in UTF-8 (from
    UTF-16).

    Raises:
        DataError: the file is missing, damaged, or no text; its kind is named.
    """
    kind = ""
    try:
        with path.open("rb") as file:
            kind, stream = _decompressed(file, path, name)
            yield _decoded(stream, name)
    except FileNotFoundError:
        raise DataError(f"{name}: no such file, expected a file of ratings") from None
    except IsADirectoryError:
        raise DataError(f"{name}: a directory, expected a file of ratings") from None
    except UnicodeError as error:
        raise DataError(f"{name}: damaged UTF-16 text ({error}); save it as UTF-8") from None
    except DAMAGED as error:
        raise DataError(f"{name}: the {kind or 'zip'} file is damaged or cut short ({error}); copy it again") from None
    except OSError as error:
        if kind:
            raise DataError(f"{name}: the {kind} file is damaged or cut short ({error}); copy it again") from None
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from None


def _decompressed(file: Any, path: Path, name: str) -> tuple[str, Readable]:
    """The kind of compression, and the stream."""
    head = file.peek(HEAD)[:HEAD]
    if head.startswith(b"\x1f\x8b"):
        return "gzip", gzip.GzipFile(fileobj=file)
    if re.match(rb"BZh[1-9]1AY&SY", head):
        return "bzip2", bz2.BZ2File(file)
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz", lzma.LZMAFile(file)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return "zstd", pa.CompressedInputStream(pa.PythonFile(file), "zstd")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip", _of_zip(zipfile.ZipFile(file), name)
    return "", file


def _of_zip(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """The one table of an archive; of several the one that is called ratings."""
    names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    if "[Content_Types].xml" in names or "mimetype" in names:
        raise DataError(f"{name}: a spreadsheet or document (xlsx, ods), expected a CSV file: save it as CSV")
    found = ratings_among(names) or names
    if len(found) != 1:
        listed = ", ".join(names[:10]) or "no file"
        raise DataError(f"{name}: a zip archive of {listed}; expected one file of ratings: unpack it and name one")
    try:
        return archive.open(found[0])
    except (RuntimeError, NotImplementedError) as error:
        raise DataError(f"{name}: the zip archive cannot be read ({error}); unpack it") from None


def _decoded(stream: Readable, name: str) -> Readable:
    head = b""
    while len(head) < HEAD and (data := stream.read(HEAD - len(head))):
        head += data
    for begin, kind, advice in KINDS:
        if re.match(begin, head):
            raise DataError(f"{name}: {kind}, expected a CSV file: {advice}")
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise DataError(f"{name}: text in UTF-32, expected a CSV file in UTF-8: save it as UTF-8")
    rest = _Joined(head, stream)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _Recoded(rest, "utf-16")
    encoding = next((encoding for begin, encoding in UTF_16 if re.match(begin, head)), "")
    return _Recoded(rest, encoding) if encoding else rest


class _Joined:
    """A stream with bytes put back in front."""

    def __init__(self, head: bytes, stream: Readable) -> None:
        self._head, self._stream = head, stream

    def read(self, size: int, /) -> bytes:
        head, self._head = self._head[:size], self._head[size:]
        return head + self._stream.read(size - len(head)) if len(head) < size else head


class _Recoded:
    """UTF-16 as UTF-8."""

    def __init__(self, stream: Readable, encoding: str) -> None:
        self._stream, self._decoder = stream, codecs.getincrementaldecoder(encoding)()

    def read(self, size: int, /) -> bytes:
        while True:
            data = self._stream.read(size)
            text = self._decoder.decode(data, final=not data)
            if text or not data:
                return text.encode()
