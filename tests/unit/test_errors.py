import errno
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest

from mf.config import Config
from mf.errors import ConfigError, DataError, one_line, reported
from mf.ratings.rejects import _cell
from mf.terminal import printable

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "secret",
    [
        "sb_secret_N7UND0UgjKTVK", "SB_SECRET_N7UND0UgjKTVK", "sbp_0123456789abcdef0123456789abcdef01234567", JWT,
        "postgresql://me:hunter2@h/d", "host=h user=me password=hunter2", "postgresql://h/d?password=hunter2&user=me",
        "x-----BEGIN PRIVATE KEY-----hunter2",
    ],
)  # fmt: skip
@pytest.mark.parametrize("error", [DataError, ConfigError, OSError, FileNotFoundError])
def test_an_error_shows_no_secret(capsys: pytest.CaptureFixture[str], secret: str, error: type[Exception]) -> None:
    with pytest.raises(SystemExit) as ended, reported():
        raise error(f"{secret}: no such file,\nexpected a file of ratings")
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    for part in ("hunter2", "N7UND0UgjKTVK", "0123456789abcdef", "eyJyb2xl"):
        assert part not in line


def test_a_value_of_a_config_that_is_a_secret_is_not_shown() -> None:
    class Options(Config):
        name: int

    with pytest.raises(ConfigError, match="given: 'password=…'"):
        Options.of(name="password=hunter2")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_with_the_path(number: int) -> None:
    line = one_line(OSError(number, "text", "/out/model.pt"))
    assert line.startswith("/out/model.pt: the ")
    assert ": " in line.removeprefix("/out/model.pt: ")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        pa.ArrowMemoryError("malloc of size 64 failed"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    ],
)
def test_a_lack_of_memory_is_one_line(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    with pytest.raises(SystemExit, match="2"), reported():
        raise error
    assert capsys.readouterr().err.startswith("error: the memory is used up, or a limit of it (ulimit -v): use a ")
    with pytest.raises(RuntimeError), reported():
        raise RuntimeError("a fault of the program")


def test_characters_that_act_on_a_terminal_are_escapes() -> None:
    assert printable("a\x1b[31mb\x07\u202ec\u2066\x9b\r\n\u2028\x7f\t") == (
        r"a\x1b[31mb\x07\u202ec\u2066\x9b\r\n\u2028\x7f\t"
    )
    assert printable("Amélie 日本 😀 é") == "Amélie 日本 😀 é"
    assert printable("Z" + "\u0300" * 6 + "a\u0301") == "Z" + "\u0300" * 4 + r"\u0300" * 2 + "a\u0301"
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) in ("Cc", "Zl", "Zp", "Cs") or unicodedata.bidirectional(chr(code)) in (
            "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"
        ):  # fmt: skip
            assert printable(chr(code)).isascii(), hex(code)


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1,2,3", "@a", "\t=1", " =1", "\ufeff=1", "\x00@a", '"=1"', "＝1", "﹣1"]
)
def test_a_cell_of_rejects_is_no_formula(text: str) -> None:
    assert _cell(text) == f"'{text}"
    assert _cell(f"a{text}") == f"a{text}"


def test_a_limit_of_a_files_size_leaves_nothing_half_written(tmp_path: Path) -> None:
    """As a full disk: every write beyond the limit fails."""
    rows = "".join(f"{u},{m},{u % 5 + 1}\n" for u in range(300) for m in range(3))
    (tmp_path / "r.csv").write_text(f"userId,movieId,rating\n{rows}")
    for options in (["--checkpoint", "c.pt"], []):
        command = f"ulimit -f 100; {sys.executable} -m mf --ratings_csv r.csv --factors 300 {' '.join(options)}"
        ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 2, ended.stderr
        assert re.fullmatch(r"(?:still running, .*\n)*error: (output|c\.pt)[^\n]*: the [^\n]*\n", ended.stderr)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["r.csv"]


@pytest.mark.parametrize("error", [psycopg.OperationalError("connection\nfailed"), psycopg.errors.DiskFull("full")])
def test_an_error_of_the_database_is_one_line(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    with pytest.raises(SystemExit), reported():
        raise error
    assert re.fullmatch(r"error: (connection failed|full)\n", capsys.readouterr().err)
