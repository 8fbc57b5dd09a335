"""Ratings from a Supabase table, through its REST API: page after page along a unique key."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
from postgrest import CountMethod
from supabase import Client

from mf.errors import DataError, SupabaseError
from mf.progress import Progress
from mf.ratings.collect import Collector
from mf.ratings.config import IngestConfig
from mf.ratings.schema import RATED_AT, RATING, Provenance
from mf.supabase.client import call, call_response
from mf.supabase.credentials import Credentials
from mf.supabase.tables.description import SCHEMA, Table, grant, missing, reject, table_name, usable
from mf.supabase.tables.page import Page
from mf.supabase.tables.pages import Pages, quoted

PAGE_SIZE = 10_000  # rows; Supabase gives 1000 unless told otherwise
WORKERS = 8  # enough to keep a client busy at 20 ms away, and what a small project serves beside its own readers


class _Turned(NamedTuple):
    """Rows as the collector takes them: the usable ones, and where, why and what of each that is not."""

    ratings: pa.Table
    bad: list[tuple[str, str, str]]


def read_table(
    client: Client,
    credentials: Credentials,
    config: IngestConfig,
    output: Path,
    rejects: Path,
    *,
    page_size: int = PAGE_SIZE,
    workers: int = WORKERS,
) -> Provenance:
    """Reads the table or view ``config.import_table`` of the schema public and writes ``output`` (Parquet) and
    ``rejects`` (CSV), as ``mf.ingest.ingest`` does.

    Pages follow a unique key, ``config.key_columns`` or else the primary key. The whole is not one snapshot: a row that
    stands throughout the reading comes exactly once; one that is inserted, deleted or given another key meanwhile may
    come or not. Each page is fast when an index has the key's columns in the order in which they are followed:
    that of ``config.key_columns``, for the primary key that of the table's columns.

    Integers become int64 ids, text and UUIDs string ids, as they are. A time is epoch seconds or milliseconds, or ISO
    8601 text, which without a zone is UTC.

    Args:
        client: to the project to read from.
        credentials: those that ``client`` was made with.
        config: the table, its columns and its key.
        output, rejects: files to write.
        page_size: rows to ask for at once; the server may give fewer, and that many are asked for then.
        workers: requests at a time.

    Raises:
        ConfigError: the table is of another schema.
        SupabaseError: the key is a public or a user's one, the table or a grant is missing, no row is to be seen, or
            the API does not answer.
        DataError: a column is missing or of a type that does not serve, or the key is missing, null or not unique;
            or too many rows are bad. Nothing is written then.
    """
    if credentials.role in ("anon", "authenticated"):
        raise SupabaseError(
            f"the key is of the role {credentials.role}, from which row level security may hide rows without a word: "
            "use the project's secret key (sb_secret_… or the service_role JWT) to read ratings"
        )
    table = _describe(client, table_name(config.import_table), credentials.role)
    columns, key = table.find_columns(config), table.key(config.key_columns)
    if not key:
        raise DataError(
            f"{table} has no primary key, and pages need a unique one: add it, or name columns that are unique "
            "together with --key_columns"
        )
    selected = list(dict.fromkeys([*key, *columns.values()]))
    total = _count(client, table, selected)
    _refuse_null_keys(client, table, key)
    collector = Collector(str(table), config.max_reject_fraction)
    pages = Pages(client, table, selected, key, _conditions(table, columns, config), page_size)
    with Progress(f"import {SCHEMA}.{table.name}", total) as progress:
        for ratings, bad in pages.read(lambda page: _turned(page, columns, key), workers, total):
            progress.advance(len(ratings) + len(bad))
            for row in bad:
                collector.reject(*row)
            collector.add(ratings)
        if not progress.done:
            raise table.nothing(config)
    return collector.finish(output, rejects, columns)


def _conditions(table: Table, columns: Mapping[str, str], config: IngestConfig) -> list[str]:
    """Those of ``rated_since`` and ``rated_before``, which a time that is unknown does not fulfil."""
    bounds = {"gte": config.since, "lt": config.before}
    return [
        f"{quoted(columns[RATED_AT])}.{operator}.{quoted(_literal(moment, table.columns[columns[RATED_AT]]['format']))}"
        for operator, moment in bounds.items()
        if moment
    ]


def _literal(moment: datetime, kind: str) -> str:
    """``moment`` as PostgreSQL reads it for a column of this type. A day is midnight, and so before or after a moment
    as it is before or after the first midnight that is not before that."""
    if kind == "timestamp with time zone":
        return moment.isoformat()
    if kind == "date":
        moment += timedelta(days=1) - timedelta(microseconds=1)
        return moment.date().isoformat()
    return moment.replace(tzinfo=None).isoformat()


def _describe(client: Client, name: str, role: str) -> Table:
    """Looks ``name`` up in the description of the API, an OpenAPI document that names what the key may see:
    https://docs.postgrest.org/en/v12/references/api/openapi.html."""
    document = call(client.postgrest.from_("").select("*"), "read the list of tables")
    found = document.get("definitions", {}) if isinstance(document, dict) else {}
    if name not in found:
        _explain_absence(client, name, role, found)
    columns = found[name].get("properties", {})
    primary = [column for column, about in columns.items() if "<pk/>" in about.get("description", "")]
    return Table(name, role, columns, primary, frozenset(found[name].get("required", ())))


def _explain_absence(client: Client, name: str, role: str, found: Mapping[str, Any]) -> NoReturn:
    """A table that is not described is missing, or the role has no grant; asking for a row tells which."""
    absent = missing(found)
    hints = {"42501": grant(name, role), "42P01": absent, "PGRST205": absent}
    call(client.table(name).select("*").limit(1), f"read table {SCHEMA}.{name}", hints)
    raise SupabaseError(
        f"cannot read table {SCHEMA}.{name}: the API does not describe its columns: run "
        "`notify pgrst, 'reload schema';` in the SQL editor"
    )


def _count(client: Client, table: Table, selected: Sequence[str]) -> int | None:
    """The number of rows: exact for a small table, else the planner's guess."""
    request = client.table(table.name).select(",".join(map(quoted, selected)), count=CountMethod.estimated)
    count: int | None = call_response(request.limit(1), f"read {table}", table.hints).count
    return count


def _refuse_null_keys(client: Client, table: Table, key: Sequence[str]) -> None:
    """No page would show a row whose key is null, as null is not greater than anything."""
    for name in [name for name in key if name not in table.not_null]:
        request = client.table(table.name).select(quoted(name)).or_(f"{quoted(name)}.is.null").limit(1)
        if call(request, f"read {table}", table.hints):
            raise DataError(f"{table}: key column {name} is null in a row: fill it, or name others with --key_columns")


def _turned(page: Page, columns: Mapping[str, str], key: Sequence[str]) -> _Turned:
    raw = {role: page.columns[name] for role, name in columns.items()}
    ratings, good = usable(pa.table(raw | {RATING: raw[RATING].cast(pa.float64(), safe=False)}))
    bad: list[tuple[str, str, str]] = []
    if not good.all():
        rows = page.rows()
        reject((rows[i] for i in np.flatnonzero(~good).tolist()), columns, key, lambda *row: bad.append(row))
    return _Turned(ratings, bad)
