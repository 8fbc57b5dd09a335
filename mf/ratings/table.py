"""Ratings from a Supabase table, through its REST API: page after page along a unique key."""

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, pairwise
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from postgrest import CountMethod
from pydantic import SecretStr
from supabase import Client

from mf.errors import ConfigError, DataError, SupabaseError
from mf.progress import Progress
from mf.ratings.collect import Collector
from mf.ratings.config import IngestConfig
from mf.ratings.ingest import ReadTable
from mf.ratings.schema import MOVIE, RATED_AT, RATING, TIMESTAMP, USER
from mf.supabase.client import call, call_response, connect
from mf.supabase.credentials import Credentials

SCHEMA = "public"  # the one that Supabase's API shows by default
BATCH_ROWS = 50_000
# What a column may be in JSON to serve as what. A number that is no integer can be neither id nor key: a numeric's last
# digits are lost on the way.
TYPES = {
    USER: ("integer", "string"),
    MOVIE: ("integer", "string"),
    RATING: ("integer", "number"),
    RATED_AT: ("integer", "number", "string"),
    "the key": ("integer", "string", "boolean"),
}
# Epoch times above this are milliseconds; as seconds they would lie beyond the year 5138.
EPOCH_SECONDS_MAX = 1e11

Row = dict[str, Any]
Key = tuple[Any, ...]


@contextmanager
def reader(config: IngestConfig, url: str = "", key: SecretStr | None = None) -> Iterator[ReadTable | None]:
    """What ``ingest`` needs to read the table of ``config``; ``None`` when that names a file, which needs no key.

    Args:
        url, key: of the Supabase project; those of the environment when empty.

    Raises:
        ConfigError, SupabaseError: the credentials cannot be had.
    """
    if not config.import_table:
        yield None
        return
    credentials = Credentials.find(url, key)
    with connect(credentials) as client:
        yield functools.partial(read_table, client, credentials)


def read_table(
    client: Client, credentials: Credentials, config: IngestConfig, collector: Collector, *, page_size: int = 1000
) -> dict[str, str]:
    """Reads the table or view ``config.import_table`` of the schema public into ``collector``.

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
    table = _describe(client, config.import_table, credentials.role)
    columns = config.find_columns(list(table.columns), str(table))
    key = table.key(config.key_columns)
    for use, name in [*columns.items(), *(("the key", name) for name in key)]:
        table.check_type(name, use)
    selected = list(dict.fromkeys([*key, *columns.values()]))
    total = _count(client, table, selected)
    _refuse_null_keys(client, table, key)
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
            raise SupabaseError(
                f"cannot read {table}: it shows no rows: either it is empty (fill it), or row level security hides its "
                f"rows from the role {table.role} (use the secret key; a view must belong to a role that sees them)"
            )
    return columns


@dataclass(frozen=True)
class _Table:
    """A table or view as the API describes it."""

    name: str
    role: str  # the database role that reads it
    columns: dict[str, dict[str, str]]  # by name, in the table's order: type (in JSON), format (in SQL), description
    not_null: frozenset[str]

    def __str__(self) -> str:
        return f"table {SCHEMA}.{self.name}"

    def key(self, asked: str) -> list[str]:
        """The columns of ``asked``, separated by commas, else those of the primary key."""
        if not asked:
            key = [name for name, column in self.columns.items() if "<pk/>" in column.get("description", "")]
            if not key:
                raise DataError(
                    f"{self} has no primary key, and pages need a unique one: add it, or name columns that are unique "
                    "together with --key_columns"
                )
            return key
        key = [name.strip() for name in asked.split(",")]
        for name in key:
            if name not in self.columns:
                raise DataError(f"{self}: no column {name!r} for --key_columns, found {', '.join(self.columns)}")
        return key

    def check_type(self, column: str, use: str) -> None:
        if self.columns[column].get("type") not in TYPES[use]:
            raise DataError(
                f"{self}: column {column} is of type {self.columns[column].get('format')}, expected "
                f"{' or '.join(TYPES[use])} for {use}: name another column, or read a view that casts it"
            )

    def get(self, request: Any) -> Any:
        """The response to a request that reads the table."""
        response = call_response(request, f"read {self}", {"42501": _grant(self.name, self.role)})
        if not isinstance(response.data, list):
            raise SupabaseError(f"cannot read {self}: the answer is no list of rows: is the URL a Supabase project's?")
        return response


def _describe(client: Client, name: str, role: str) -> _Table:
    """Looks ``name`` up in the description of the API, an OpenAPI document that names what the key may see:
    https://docs.postgrest.org/en/v12/references/api/openapi.html."""
    schema, _, name = name.partition(".") if "." in name else (SCHEMA, "", name)
    if schema != SCHEMA:
        raise ConfigError(f"--import_table {schema}.{name}: expected a table of the schema {SCHEMA}; make a view there")
    document = call(client.postgrest.from_("").select("*"), "read the list of tables")
    found = document.get("definitions", {}) if isinstance(document, dict) else {}
    if name not in found:
        _explain_absence(client, name, role, found)
    return _Table(name, role, found[name].get("properties", {}), frozenset(found[name].get("required", ())))


def _explain_absence(client: Client, name: str, role: str, found: Mapping[str, Any]) -> NoReturn:
    """A table that is not described is missing, or the role has no grant; asking for a row tells which."""
    missing = f"check --import_table; the tables to be seen are {', '.join(sorted(found)[:20]) or 'none'}"
    hints = {"42501": _grant(name, role), "42P01": missing, "PGRST205": missing}
    call(client.table(name).select("*").limit(1), f"read table {SCHEMA}.{name}", hints)
    raise SupabaseError(
        f"cannot read table {SCHEMA}.{name}: the API does not describe its columns: run "
        "`notify pgrst, 'reload schema';` in the SQL editor"
    )


def _grant(table: str, role: str) -> str:
    name = table if re.fullmatch("[a-z_][a-z0-9_]*", table) else '"' + table.replace('"', '""') + '"'
    role = "service_role" if role == "unknown" else role
    return f"run `grant select on {SCHEMA}.{name} to {role};` in the SQL editor"


def _count(client: Client, table: _Table, selected: Sequence[str]) -> int | None:
    """The number of rows: exact for a small table, else the planner's guess."""
    request = client.table(table.name).select(",".join(map(_quoted, selected)), count=CountMethod.estimated)
    count: int | None = table.get(request.limit(1)).count
    return count


def _refuse_null_keys(client: Client, table: _Table, key: Sequence[str]) -> None:
    """No page would show a row whose key is null, as null is not greater than anything."""
    for name in [name for name in key if name not in table.not_null]:
        request = client.table(table.name).select(_quoted(name)).or_(f"{_quoted(name)}.is.null").limit(1)
        if table.get(request).data:
            raise DataError(f"{table}: key column {name} is null in a row: fill it, or name others with --key_columns")


def _pages(
    client: Client, table: _Table, selected: Sequence[str], key: Sequence[str], page_size: int
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
        page: list[Row] = table.get(request).data
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


def _check_keys(table: _Table, key: Sequence[str], before: list[Key], keys: list[Key]) -> None:
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
    with np.errstate(over="ignore"):
        rating = np.array([np.nan if value is None else float(value) for value in cells[RATING]]).astype(np.float32)
    arrays = {USER: _ids(cells[USER]), MOVIE: _ids(cells[MOVIE]), RATING: pa.array(rating)}
    good = np.isfinite(rating)
    for role in (USER, MOVIE):
        good &= np.array([value not in (None, "") for value in cells[role]], bool)
    if RATED_AT in columns:
        arrays[RATED_AT] = pa.array([_instant(value) for value in cells[RATED_AT]], TIMESTAMP)
        unknown = np.array([value in (None, "") for value in cells[RATED_AT]], bool)
        good &= unknown | arrays[RATED_AT].is_valid().to_numpy(zero_copy_only=False)
    for row in (rows[i] for i in np.flatnonzero(~good)):
        where = _where(key, [row[name] for name in key])
        reason = _reason({role: row[name] for role, name in columns.items()})
        collector.reject(f"row {where}", reason, json.dumps(row, ensure_ascii=False))
    collector.add(pa.table(arrays).filter(pa.array(good)))


def _reason(cells: Row) -> str:
    """Why a row, by role, cannot be used."""
    for role, what in ((USER, "user id"), (MOVIE, "movie id"), (RATING, "rating")):
        if cells[role] in (None, ""):
            return f"empty {what}"
    rating = float(cells[RATING])
    if not math.isfinite(rating):
        return f"rating {rating} is not finite"
    if abs(rating) > float(np.finfo(np.float32).max):
        return f"rating {rating} is larger than float32 can hold"
    return f"timestamp {json.dumps(cells[RATED_AT])} is neither epoch seconds, epoch milliseconds nor ISO 8601"


def _ids(values: list[int | str | None]) -> pa.Array:
    return pa.array(values, pa.int64() if any(isinstance(value, int) for value in values) else pa.string())


def _instant(value: str | float | None) -> datetime | None:
    if value is None:
        return None
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        return datetime.fromtimestamp(value / 1000 if abs(value) > EPOCH_SECONDS_MAX else value, UTC)
    except (ValueError, OverflowError):
        return None


def _where(key: Sequence[str], values: Sequence[Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in zip(key, values, strict=True))
