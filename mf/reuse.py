"""Reuse of the checked ratings of an unchanged file, by content hash and options."""

import hashlib
import os
import shutil
from pathlib import Path

import mf.ratings
from mf.files import directory_written_aside
from mf.ingest import ingest
from mf.ratings.config import IngestConfig
from mf.ratings.schema import Provenance, read_provenance

FOLDER = "MF_INGESTED"  # environment variable: the folder of ingested files; without it nothing is reused
KEPT = 3  # ingested files, the newest
RATINGS, REJECTS = "ratings.parquet", "rejects.csv"


def ingest_once(config: IngestConfig, output: Path, rejects: Path, *, url: str = "") -> tuple[Provenance, bool]:
    """As ``mf.ingest.ingest`` for training; a file that was ingested before with the same options is not read again.

    Returns:
        The provenance, and whether an earlier ingest was reused.

    Raises:
        MfError: as ``ingest``.
    """
    folder = os.environ.get(FOLDER)
    if not folder or not config.ratings_csv or not Path(config.ratings_csv).is_file():
        return ingest(config, output, rejects, url=url, for_training=True), False
    kept = Path(folder) / _key(config)
    reused = (kept / RATINGS).exists()
    if not reused:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with directory_written_aside(kept, seal=RATINGS) as aside:
            ingest(config, aside / RATINGS, aside / REJECTS, for_training=True)
        for old in sorted(Path(folder).iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    shutil.copy(kept / RATINGS, output)
    if (kept / REJECTS).exists():
        shutil.copy(kept / REJECTS, rejects)
    return read_provenance(output), reused


def _key(config: IngestConfig) -> str:
    """A hash of the file's content, its name, the options and the code that reads it."""
    with Path(config.ratings_csv).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    digest.update(config.model_dump_json().encode())
    for source in sorted(Path(str(mf.ratings.__file__)).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
