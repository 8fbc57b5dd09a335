"""Atomic file and directory writes: write aside, then rename."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Numbers of errors of a full disk, a used up quota and a limit of a file's size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of a full disk in the block the name of the file, and PyTorch's, which has no reason, a number."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        raise
    except RuntimeError as error:
        if "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Write a file or a directory atomically: yields a temporary path beside ``path``.

    It replaces ``path`` at the end of the block, or is deleted if the block raises.

    Raises:
        IsADirectoryError: a file was written, and ``path`` is a directory with files in it, which are kept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove(aside)
    try:
        with naming(path):
            yield aside
        if path.is_dir():
            if not aside.is_dir() and any(path.iterdir()):
                raise IsADirectoryError(errno.EISDIR, "found a directory, expected the name of a file", str(path))
            _remove(path)
        os.replace(aside, path)
    finally:
        _remove(aside)


@contextmanager
def directory_written_aside(path: Path, seal: str) -> Iterator[Path]:
    """Write several files of a directory; yields a temporary folder for them. Other files in the directory are kept.

    Each file is replaced atomically. ``seal`` names the file without which readers take the directory for incomplete:
    it is deleted before the others are replaced, and written last.
    """
    path = Path(path)
    is_new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    # Inside, not beside: the directory may be a mounted volume or a link to one, and rename works within a volume only.
    aside = path / f".{os.getpid()}.part"
    _remove(aside)
    aside.mkdir()
    try:
        with naming(path):
            yield aside
        (path / seal).unlink(missing_ok=True)
        for file in sorted(aside.iterdir(), key=lambda file: file.name == seal):
            os.replace(file, path / file.name)
    finally:
        _remove(aside)
        if is_new and not any(path.iterdir()):
            path.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
