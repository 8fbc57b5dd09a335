"""Atomic file and directory writes: write aside, then rename."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Write a file or a directory atomically: yields a temporary path beside ``path``.

    It replaces ``path`` at the end of the block, or is deleted if the block raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove(aside)
    try:
        yield aside
        if path.is_dir():
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
