"""Ingest: ratings from a file or a Supabase table to one Parquet file of checked rows."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from mf.errors import ConfigError
from mf.ratings import csv, frame
from mf.ratings.collect import Collector
from mf.ratings.config import IngestConfig
from mf.ratings.schema import Provenance

# A source's reader: reads what the configuration names into the sink; returns which column was read as what.
Read = Callable[[IngestConfig, Collector], dict[str, str]]


def ingest(
    config: IngestConfig,
    output: Path,
    rejects: Path,
    *,
    url: str = "",
    key: SecretStr | None = None,
    text_ids: Collection[str] = (),
    for_training: bool = False,
) -> Provenance:
    """Read ratings from a file or a table; write the good rows to ``output`` (Parquet, see ``Collector.finish``) and
    the bad ones to ``rejects`` (CSV: where, reason, row).

    Args:
        url, key: of the Supabase project of ``config.import_table``; by default those of the environment. With
            ``SUPABASE_DB_URL`` the table is read over the direct connection, and no key is needed.
        text_ids: the roles (user_id, movie_id) whose ids in a file are text, though all may look like integers.
        for_training: refuse ratings that are all the same, from which no star model can be trained.

    Raises:
        ConfigError: not exactly one source is given, or the table's project and its credentials are missing, malformed
            or of two projects.
        SupabaseError: the table cannot be read.
        DataError: the source cannot be read, has no ratings or too many bad rows; or as ``for_training`` says. Nothing
            is written after any error.
    """
    with _source(config, url, key) as (name, read):
        sink = Collector(name, config.max_reject_fraction, config.ignored, text_ids)
        columns = read(config, sink)
        return sink.finish(output, rejects, columns, for_training=for_training)


def ingest_frame(
    ratings: Any, config: IngestConfig, output: Path, rejects: Path, *, for_training: bool = False
) -> Provenance:
    """As ``ingest``, from a data frame (``mf.ratings.frame.to_arrow``) instead of a file or a table.

    Raises:
        DataError: it is not a data frame; or as ``ingest``.
    """
    table = frame.to_arrow(ratings, config)
    sink = Collector(frame.frame_name(ratings), config.max_reject_fraction, config.ignored)
    columns = frame.read(table, config, sink)
    return sink.finish(output, rejects, columns, for_training=for_training)


@contextmanager
def _source(config: IngestConfig, url: str, key: SecretStr | None) -> Iterator[tuple[str, Read]]:
    """The name of the configured source and its reader; the list of all sources."""
    if bool(config.ratings_csv) == bool(config.import_table):
        found = "both" if config.ratings_csv else "neither"
        raise ConfigError(f"expected a file (--ratings_csv) or a table (--import_table) to read, found {found}")
    if config.ratings_csv:
        yield config.ratings_csv, csv.read
        return
    # Imported here, since the clients of Supabase take a second that a file does not need.
    from mf.supabase.client import connect
    from mf.supabase.credentials import Credentials
    from mf.supabase.database import Database
    from mf.supabase.tables import direct, rest
    from mf.supabase.tables.description import source_name

    name = source_name(config.import_table)
    if database := Database.find():
        database.check_project(url)
        yield name, partial(direct.read, database)
    else:
        credentials = Credentials.find(url, key)
        with connect(credentials) as client:
            yield name, partial(rest.read, client, credentials)
