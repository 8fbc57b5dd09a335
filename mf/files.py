"""Everything that is written is written aside and then renamed: a reader sees the whole or nothing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Gives a path beside ``path`` to write a file or a directory to; when the block ends well it takes the place of
    ``path`` (a directory that stood there is replaced), when it raises nothing is left of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove(aside)
    try:
        yield aside
        if path.is_dir():
            # A directory cannot be replaced by a rename, so the old one steps aside for the instant between two.
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            aside.rename(path)
            _remove(old)
        else:
            os.replace(aside, path)
    finally:
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
