"""From a source of ratings to one Parquet file of checked rows."""

from collections.abc import Callable
from pathlib import Path

from mf.errors import ConfigError
from mf.progress import Progress
from mf.ratings.collect import Collector
from mf.ratings.config import IngestConfig
from mf.ratings.csv import read_csv
from mf.ratings.fetch import local_copy
from mf.ratings.schema import Provenance

ReadTable = Callable[[IngestConfig, Path, Path], Provenance]


def ingest(config: IngestConfig, output: Path, rejects: Path, *, read_table: ReadTable | None = None) -> Provenance:
    """Reads ratings from a file or a table and writes the good rows to ``output`` (Parquet) and the bad ones to
    ``rejects`` (CSV: where, reason, row).

    Args:
        read_table: does the same for ``config.import_table``; see ``mf.supabase.tables.reader.reader``.

    Raises:
        ConfigError: not exactly one source is given, or a table without a way to read it.
        DataError: the source cannot be read, has no ratings or too many bad rows; nothing is written then.
    """
    if bool(config.ratings_csv) == bool(config.import_table):
        found = "both" if config.ratings_csv else "neither"
        raise ConfigError(f"expected a file (--ratings_csv) or a table (--import_table) to read, found {found}")
    if config.import_table:
        if read_table is None:
            raise ConfigError(f"the table {config.import_table} needs Supabase; set SUPABASE_URL and SUPABASE_KEY")
        return read_table(config, output, rejects)
    collector = Collector(config.ratings_csv, config.max_reject_fraction)
    with local_copy(config.ratings_csv) as path, Progress(f"read {config.ratings_csv}") as progress:
        columns = read_csv(path, config.ratings_csv, config, collector, progress)
    return collector.finish(output, rejects, columns)
