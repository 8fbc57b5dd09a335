"""Read a Supabase table through the REST API: pages along a unique key, several requests at a time."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NoReturn

import pyarrow.compute as pc
from postgrest import CountMethod
from supabase import Client

from mf.errors import DataError, SupabaseError
from mf.progress import Progress
from mf.ratings.collect import Collector
from mf.ratings.config import IngestConfig
from mf.ratings.schema import RATED_AT
from mf.supabase.client import call, call_response
from mf.supabase.credentials import Credentials
from mf.supabase.tables.description import SCHEMA, Batch, Row, Table, check_rows, grant, no_such_table, table_name
from mf.supabase.tables.page import Page
from mf.supabase.tables.pages import Pages, quoted

PAGE_SIZE = 10_000  # rows; Supabase's own limit is 1000 unless it is raised
WORKERS = 8  # requests at a time: keeps a client busy at 20 ms latency, and a small project serves as many


def read(
    client: Client,
    credentials: Credentials,
    config: IngestConfig,
    sink: Collector,
    *,
    page_size: int = PAGE_SIZE,
    workers: int = WORKERS,
) -> dict[str, str]:
    """Read the table or view ``config.import_table`` of the schema public into ``sink``.

    Pages follow a unique key, ``config.key_columns`` or else the primary key. The whole is not one snapshot: a row that
    exists throughout the import is read exactly once; a row that is inserted, deleted or given another key meanwhile
    may be read or not. Each page is fast when an index has the key's columns in the order in which they are followed:
    that of ``config.key_columns``, for the primary key that of the table's columns.

    Args:
        client: of the project to read from.
        credentials: those of ``client``.
        config: the table, its columns and its key.
        page_size: rows per request; the server may give fewer, and then that many are requested.
        workers: requests at a time.

    Returns:
        Which column was read as what, ``{"user_id": "userId", …}``.

    Raises:
        ConfigError: the table is of another schema.
        SupabaseError: the key is a public or a user's one, the table or a grant is missing, no row can be seen, or the
            API does not answer.
        DataError: a column is missing or has a type that cannot be used, or the key is missing, null or not unique; or
            as ``sink.add`` raises.
    """
    if credentials.role in ("anon", "authenticated"):
        raise SupabaseError(
            f"the key is of the role {credentials.role}, from which row level security may hide rows without an error: "
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
    pages = Pages(client, table, selected, key, _conditions(table, columns, config), page_size)
    with Progress(f"import {SCHEMA}.{table.name}", total) as progress:
        for batch in pages.read(lambda page: _check(page, table, columns, key, config.ignored), workers, total):
            progress.advance(len(batch.ratings) + len(batch.bad) + batch.ignored)
            for row in batch.bad:
                sink.reject(*row)
            sink.add(batch.ratings, batch.time_forms, batch.ignored)
    if not sink.rows_read:
        raise table.no_rows(config)
    return columns


def _check(page: Page, table: Table, columns: Mapping[str, str], key: Sequence[str], ignore: Sequence[float]) -> Batch:
    """The checked rows of a page."""
    # char(n) comes with its padding, which a cast to text, as over the direct connection, takes off.
    padded = {name for name in page.columns.column_names if table.columns[name].get("format") == "character"}
    cells = page.columns
    for name in padded:
        cells = cells.set_column(cells.column_names.index(name), name, pc.utf8_rtrim(cells[name], " "))

    def records(numbers: Sequence[int]) -> list[Row]:
        rows = page.rows()
        return [
            {name: cell.rstrip(" ") if name in padded and cell else cell for name, cell in rows[number].items()}
            for number in numbers
        ]

    return check_rows(cells, columns, key, ignore, records)


def _conditions(table: Table, columns: Mapping[str, str], config: IngestConfig) -> list[str]:
    """The conditions of ``rated_since`` and ``rated_before``; an unknown time fulfils neither."""
    bounds = {"gte": config.since, "lt": config.before}
    return [
        f"{quoted(columns[RATED_AT])}.{operator}.{quoted(_literal(moment, table.columns[columns[RATED_AT]]['format']))}"
        for operator, moment in bounds.items()
        if moment
    ]


def _literal(moment: datetime, kind: str) -> str:
    """``moment`` as a literal of the column's type. A date is midnight: it is compared with the first midnight that is
    not before ``moment``."""
    if kind == "timestamp with time zone":
        return moment.isoformat()
    if kind == "date":
        moment += timedelta(days=1) - timedelta(microseconds=1)
        return moment.date().isoformat()
    return moment.replace(tzinfo=None).isoformat()


def _describe(client: Client, name: str, role: str) -> Table:
    """The description of table ``name`` in the API's OpenAPI document, which has the tables that the key may see:
    https://docs.postgrest.org/en/v12/references/api/openapi.html."""
    document = call(client.postgrest.from_("").select("*"), "read the list of tables")
    tables = document.get("definitions", {}) if isinstance(document, dict) else {}
    if name not in tables:
        _explain_absence(client, name, role, tables)
    columns = tables[name].get("properties", {})
    primary = [column for column, about in columns.items() if "<pk/>" in about.get("description", "")]
    return Table(name, role, columns, primary, frozenset(tables[name].get("required", ())))


def _explain_absence(client: Client, name: str, role: str, tables: Mapping[str, Any]) -> NoReturn:
    """Raise the error for a table without a description: it is missing, or the role has no grant; a request tells."""
    absent = no_such_table(tables)
    hints = {"42501": grant(name, role), "42P01": absent, "PGRST205": absent}
    call(client.table(name).select("*").limit(1), f"read table {SCHEMA}.{name}", hints)
    raise SupabaseError(
        f"cannot read table {SCHEMA}.{name}: the API does not describe its columns: run "
        "`notify pgrst, 'reload schema';` in the SQL editor"
    )


def _count(client: Client, table: Table, selected: Sequence[str]) -> int | None:
    """The number of rows: exact for a small table, else the planner's estimate."""
    request = client.table(table.name).select(",".join(map(quoted, selected)), count=CountMethod.estimated)
    count: int | None = call_response(request.limit(1), f"read {table}", table.hints).count
    return count


def _refuse_null_keys(client: Client, table: Table, key: Sequence[str]) -> None:
    """Refuse null keys: no page would have such a row, since null is not greater than anything."""
    for name in [name for name in key if name not in table.not_null]:
        request = client.table(table.name).select(quoted(name)).or_(f"{quoted(name)}.is.null").limit(1)
        if call(request, f"read {table}", table.hints):
            raise DataError(f"{table}: key column {name} is null in a row: fill it, or name others with --key_columns")
