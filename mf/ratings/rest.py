"""Ratings from a Supabase table, through its REST API: page after page along a unique key."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from postgrest import CountMethod
from supabase import Client

from mf.errors import DataError, SupabaseError
from mf.progress import Progress
from mf.ratings.checks import SCHEMA, Table, grant, missing, reject, table_name, usable
from mf.ratings.collect import Collector
from mf.ratings.config import IngestConfig
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER, Provenance
from mf.supabase.client import call, call_response
from mf.supabase.credentials import Credentials

BATCH_ROWS = 50_000

Row = dict[str, Any]
Key = tuple[Any, ...]


def read_table(
    client: Client,
    credentials: Credentials,
    config: IngestConfig,
    output: Path,
    rejects: Path,
    *,
    page_size: int = 1000,
) -> Provenance:
    """Reads the table or view ``config.import_table`` of the schema public and writes ``output`` (Parquet) and
    ``rejects`` (CSV), as ``mf.ratings.ingest.ingest`` does.

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
        collector: takes good rows in batches and bad ones one by one.
        page_size: rows to ask for at once; the server may give fewer.

    Returns:
        Which column was read as what, see ``IngestConfig.find_columns``.

    Raises:
        ConfigError: the table is of another schema.
        SupabaseError: the key is a public or a user's one, the table or a grant is missing, no row is to be seen, or
            the API does not answer.
        DataError: a column is missing or of a type that does not serve, or the key is missing, null or not unique.
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
    with Progress(f"import {SCHEMA}.{table.name}", total) as progress:
        batch: list[Row] = []
        for page in _pages(client, table, selected, key, page_size):
            batch += page
            progress.advance(len(page))
            if len(batch) >= BATCH_ROWS:
                _collect(batch, columns, key, collector)
                batch = []
        _collect(batch, columns, key, collector)
        if not progress.done:
            raise table.nothing(config)
    return collector.finish(output, rejects, columns)


def _get(request: Any, table: Table) -> Any:
    """The response to a request that reads the table."""
    role = "service_role" if table.role == "unknown" else table.role
    response = call_response(request, f"read {table}", {"42501": grant(table.name, role)})
    if not isinstance(response.data, list):
        raise SupabaseError(f"cannot read {table}: the answer is no list of rows: is the URL a Supabase project's?")
    return response


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
    role = "service_role" if role == "unknown" else role
    hints = {"42501": grant(name, role), "42P01": absent, "PGRST205": absent}
    call(client.table(name).select("*").limit(1), f"read table {SCHEMA}.{name}", hints)
    raise SupabaseError(
        f"cannot read table {SCHEMA}.{name}: the API does not describe its columns: run "
        "`notify pgrst, 'reload schema';` in the SQL editor"
    )


def _count(client: Client, table: Table, selected: Sequence[str]) -> int | None:
    """The number of rows: exact for a small table, else the planner's guess."""
    request = client.table(table.name).select(",".join(map(_quoted, selected)), count=CountMethod.estimated)
    count: int | None = _get(request.limit(1), table).count
    return count


def _refuse_null_keys(client: Client, table: Table, key: Sequence[str]) -> None:
    """No page would show a row whose key is null, as null is not greater than anything."""
    for name in [name for name in key if name not in table.not_null]:
        request = client.table(table.name).select(_quoted(name)).or_(f"{_quoted(name)}.is.null").limit(1)
        if _get(request, table).data:
            raise DataError(f"{table}: key column {name} is null in a row: fill it, or name others with --key_columns")


def _pages(
    client: Client, table: Table, selected: Sequence[str], key: Sequence[str], page_size: int
) -> Iterator[list[Row]]:
    """All rows, in the key's order. A page begins with the row that ended the one before: were there a second row of
    that key, it would show.

    The end is a page that is empty when asked for keys *above* the last one; a short page says nothing, since the
    server cuts pages (db-max-rows) without a word.
    """
    last: Key | None = None
    before: list[Key] = []
    above = False
    while True:
        request = client.table(table.name).select(",".join(map(_quoted, selected))).limit(page_size)
        for name in key:
            request = request.order(_quoted(name))
        if last is not None:
            request = request.or_(_from(key, last, "gt" if above else "gte"))
        page: list[Row] = _get(request, table).data
        keys = [tuple(row[name] for name in key) for row in page]
        if keys and keys[0] == last:
            del page[0], keys[0]
        _check_keys(table, key, before, keys)
        if page:
            yield page
            before, last, above = keys, keys[-1], False
        elif above or last is None:
            return
        else:
            above = True


def _check_keys(table: Table, key: Sequence[str], before: list[Key], keys: list[Key]) -> None:
    """Checks that a page's keys ascend from the last one's; where the database's collation orders text, only that none
    comes twice."""
    if None in chain.from_iterable(keys):
        raise DataError(f"{table}: a key ({', '.join(key)}) is null: fill it, or name others with --key_columns")
    if all(table.columns[name]["type"] == "integer" for name in key):
        wrong = next((b for a, b in pairwise([*before[-1:], *keys]) if a >= b), None)
    elif len(set(keys)) == len(keys) and set(keys).isdisjoint(before):
        wrong = None
    else:
        wrong = next(b for i, b in enumerate(keys) if b in before or b in keys[:i])
    if wrong is not None:
        raise DataError(
            f"{table}: the key {_where(key, wrong)} came twice or out of order: ({', '.join(key)}) is not unique; name "
            "columns that are unique together with --key_columns"
        )


def _from(key: Sequence[str], last: Key, operator: str) -> str:
    """The filter for the keys from ``last`` on, with ``operator`` gt or gte, in PostgREST's syntax. The first condition
    follows from the others; without it the database would not bound its walk along the index."""
    names, values = [_quoted(name) for name in key], [_quoted(str(value)) for value in last]
    steps = []
    for i in range(len(key)):
        equal = [f"{name}.eq.{value}" for name, value in zip(names[:i], values[:i], strict=True)]
        greater = f"{names[i]}.{operator if i == len(key) - 1 else 'gt'}.{values[i]}"
        steps.append(f"and({','.join([*equal, greater])})")
    return f"and({names[0]}.gte.{values[0]},or({','.join(steps)}))"


def _quoted(text: str) -> str:
    """Quoted as PostgREST reads names and values: https://docs.postgrest.org/en/v12/references/api/url_grammar.html."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _collect(rows: list[Row], columns: Mapping[str, str], key: Sequence[str], collector: Collector) -> None:
    """Turns rows into one batch for ``collector``, and rejects those that cannot be used."""
    cells = {role: [row[name] for row in rows] for role, name in columns.items()}
    rating = np.array([np.nan if value is None else float(value) for value in cells[RATING]])
    raw = {USER: _ids(cells[USER]), MOVIE: _ids(cells[MOVIE]), RATING: pa.array(rating)}
    if RATED_AT in columns:
        raw[RATED_AT] = _times(cells[RATED_AT])
    table, good = usable(pa.table(raw))
    reject((rows[i] for i in np.flatnonzero(~good)), columns, key, collector.reject)
    collector.add(table)


def _ids(values: list[int | str | None]) -> pa.Array:
    return pa.array(values, pa.int64() if any(isinstance(value, int) for value in values) else pa.string())


def _times(values: list[float | str | None]) -> pa.Array:
    if all(value is None or isinstance(value, str) for value in values):
        return pa.array(values, pa.string())
    return pa.array([None if value is None else float(value) for value in values], pa.float64())


def _where(key: Sequence[str], values: Sequence[Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in zip(key, values, strict=True))
