"""Everything that is written is written aside and then renamed: a reader sees the whole or nothing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Gives a path beside ``path`` to write a file or a directory to; when the block ends well it takes the place of
    ``path``, when it raises nothing is left of it."""
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
    """As ``written_aside``, for files that belong together in a directory that may hold others, which are left alone.

    The file ``seal``, without which the directory is not taken for whole, goes first and comes back last.
    """
    path = Path(path)
    is_new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    # Inside, not beside: the directory may be a mounted volume, or a link to one, and no rename leaves a volume.
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
