"""Reuse of the checked and split ratings of an unchanged source, by content hash and options."""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq

import mf.ratings
from mf.files import directory_written_aside
from mf.ingest import ingest
from mf.ratings.config import IngestConfig, SplitConfig
from mf.ratings.schema import Provenance, read_provenance
from mf.ratings.split import PARTS, SplitRows, split_file

FOLDER = "MF_INGESTED"  # environment variable: the folder of ingested and split ratings; without it nothing is reused
KEPT = 3  # ingested files, and splits, the newest
RATINGS, REJECTS = "ratings.parquet", "rejects.csv"


def ingest_once(config: IngestConfig, output: Path, rejects: Path, *, url: str = "") -> tuple[Provenance, bool]:
    """As ``mf.ingest.ingest`` for training; a file that was ingested before with the same options is not read again.

    Returns:
        The provenance, and whether an earlier ingest was reused.

    Raises:
        MfError: as ``ingest``.
    """
    if not os.environ.get(FOLDER) or not config.ratings_csv or not Path(config.ratings_csv).is_file():
        return ingest(config, output, rejects, url=url, for_training=True), False
    with Path(config.ratings_csv).open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").digest()

    def write(folder: Path) -> None:
        ingest(config, folder / RATINGS, folder / REJECTS, for_training=True)

    kept, reused = _kept("ingest", [content, config.model_dump_json().encode()], RATINGS, write)
    _link(kept / RATINGS, output)
    if (kept / REJECTS).exists():
        _link(kept / REJECTS, rejects)
    return read_provenance(output), reused


def split_once(ratings: Path, outputs: Sequence[Path], config: SplitConfig) -> tuple[SplitRows, bool]:
    """As ``mf.ratings.split.split_file``; the same ratings are not split again with the same options.

    Returns:
        Rows and provenance of each part, and whether an earlier split was reused.

    Raises:
        MfError: as ``split_file``.
    """
    if not os.environ.get(FOLDER):
        return split_file(ratings, outputs, config), False
    names = [f"{part}.parquet" for part in PARTS]
    given = repr(sorted(asdict(read_provenance(ratings)).items()))

    def write(folder: Path) -> None:
        split_file(ratings, [folder / name for name in names], config)

    kept, reused = _kept("split", [given.encode(), config.model_dump_json().encode()], names[0], write)
    for name, output in zip(names, outputs, strict=True):
        _link(kept / name, output)
    files = tuple(map(read_provenance, outputs))
    return SplitRows(tuple(pq.read_metadata(output).num_rows for output in outputs), files), reused


def _kept(kind: str, given: Sequence[bytes], seal: str, write: Callable[[Path], None]) -> tuple[Path, bool]:
    """The folder that ``write`` filled for what is given and the present code, and whether it was there.

    Args:
        kind: begins the folder's name; of each kind the newest ``KEPT`` stay.
        given: all that the content depends on, besides the code.
        seal: the file without which a folder is incomplete.
    """
    folder = Path(os.environ[FOLDER])
    digest = hashlib.sha256(b"\0".join(given))
    for source in sorted(Path(str(mf.ratings.__file__)).parent.glob("*.py")):
        digest.update(source.read_bytes())
    kept = folder / f"{kind}-{digest.hexdigest()[:16]}"
    if (kept / seal).exists():
        os.utime(kept)
        return kept, True
    folder.mkdir(parents=True, exist_ok=True)
    with directory_written_aside(kept, seal=seal) as aside:
        write(aside)
    for old in sorted(folder.glob(f"{kind}-*"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return kept, False


def _link(kept: Path, output: Path) -> None:
    """Gives a kept file a second name, or copies it where the two folders are on different disks."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    try:
        os.link(kept, output)
    except OSError:
        shutil.copy(kept, output)
