"""Ratings from a table of Supabase's database, over a direct connection: one snapshot, streamed to Parquet."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from adbc_driver_manager import AdbcStatusCode
from psycopg import sql

from mf.errors import SupabaseError
from mf.files import written_aside
from mf.progress import Progress
from mf.ratings.config import IngestConfig
from mf.ratings.rejects import Rejects
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER, Provenance, ratings_schema, times, write_parts
from mf.supabase.database import Database
from mf.supabase.snapshot import select, snapshot
from mf.supabase.tables.description import KEY, SCHEMA, Table, grant, missing, reject, table_name, usable

INFINITE = 9.2e18  # microseconds


@dataclass(frozen=True)
class _Source:
    """The table as it is found, and what is read of it."""

    table: Table
    columns: dict[str, str]
    key: list[str]  # what a rejected row is called by
    types: dict[str, tuple[str, int]]  # of every column: its base type's name, and its modifier
    order: list[sql.Composable]  # that puts the rows of a pair beside one another; none where each pair occurs once
    rows: int | None  # as the planner thinks


def read_table(database: Database, config: IngestConfig, output: Path, rejects: Path) -> Provenance:
    """Reads the table or view ``config.import_table`` of the schema public and writes ``output`` (Parquet) and
    ``rejects`` (CSV), as ``mf.ingest.ingest`` does.

    All rows are of one moment. They are never held in memory together: where a unique index over user and movie says
    that a pair occurs once, they go to the file as they come, in the database's own order; else the database sorts
    them, which takes room on its disk.

    Raises:
        ConfigError: the table is of another schema.
        SupabaseError: no connection, no table, no right to read it or to see all its rows, no row to be seen, or the
            connection broke off.
        DataError: a column is missing or of a type that does not serve, or too many rows are bad. Nothing is written
            then.
    """
    name = table_name(config.import_table)
    hints = {"42501": grant(name, "ROLE") + ", with the role of SUPABASE_DB_URL"}
    with snapshot(database, f"read table {SCHEMA}.{name}", hints) as cursor:
        source = _describe(cursor, name, config)
        bad = Rejects(str(source.table), config.max_reject_fraction)
        with written_aside(rejects) as aside, Progress(f"import {SCHEMA}.{name}", source.rows) as progress:
            parts = _ratings(_raw(cursor, source, config, progress), source, bad)

            def provenance(kept: int) -> Provenance:
                if not progress.done:
                    raise source.table.nothing(config)
                good = progress.done - bad.count
                bad.check(good)
                bad.write(aside)
                counts = (progress.done, bad.count, good - kept, kept)
                return Provenance(str(source.table), *counts, columns=source.columns)

            return write_parts(parts, _schema(source), output, provenance)


_TABLE = """
select c.oid::int8 as oid, c.relkind::text as kind, c.reltuples::int8 as rows, current_user::text as role,
  c.relhassubclass and c.relkind = 'r' as has_children,
  pg_catalog.has_any_column_privilege(c.oid, 'select') as readable,
  pg_catalog.row_security_active(c.oid) as filtered
from pg_catalog.pg_class c where c.relnamespace = {schema}::pg_catalog.regnamespace and c.relname = {name}
  and c.relkind in ('r', 'p', 'v', 'm', 'f')"""
_TABLES = """
select c.relname::text as name from pg_catalog.pg_class c
where c.relnamespace = {schema}::pg_catalog.regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')"""
# A domain is what it is made of; "type" is what PostgREST calls a column.
_COLUMNS = """
select a.attname::text as name, pg_catalog.format_type(a.atttypid, null) as format, a.attnotnull as not_null,
  b.typname::text as base, coalesce(nullif(t.typtypmod, -1), a.atttypmod)::int8 as modifier,
  case when b.typcategory = 'A' then 'array' when b.typname in ('int2', 'int4', 'int8') then 'integer'
    when b.typname in ('float4', 'float8', 'numeric') then 'number' when b.typname = 'bool' then 'boolean'
    when b.typname in ('json', 'jsonb') then 'json' else 'string' end as type
from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid
  join pg_catalog.pg_type b on b.oid = case when t.typtype = 'd' then t.typbasetype else t.oid end
where a.attrelid = {oid}::pg_catalog.oid and a.attnum > 0 and not a.attisdropped order by a.attnum"""
_UNIQUE = """
select i.indisprimary as is_primary, array(select a.attname::text from pg_catalog.pg_attribute a
  where a.attrelid = i.indrelid and a.attnum = any ((i.indkey::int2[])[0 : i.indnkeyatts - 1]) order by a.attnum)
  as columns
from pg_catalog.pg_index i where i.indrelid = {oid}::pg_catalog.oid and i.indisunique and i.indisvalid
  and i.indpred is null and i.indexprs is null"""


def _describe(cursor: Any, name: str, config: IngestConfig) -> _Source:
    found = select(cursor, _TABLE, schema=SCHEMA, name=name).to_pylist()
    if not found:
        there = [row["name"] for row in select(cursor, _TABLES, schema=SCHEMA).to_pylist()]
        raise SupabaseError(f"cannot read table {SCHEMA}.{name}: relation does not exist (42P01): {missing(there)}")
    (it,) = found
    if not it["readable"]:
        say = f"permission denied for table {name} (42501): {grant(name, it['role'])}"
        raise SupabaseError(f"cannot read table {SCHEMA}.{name}: {say}")
    if it["filtered"]:
        raise SupabaseError(
            f"cannot read table {SCHEMA}.{name}: row level security may hide rows from the role {it['role']}: connect "
            "as postgres, or as a role with bypassrls"
        )
    unique = select(cursor, _UNIQUE, oid=it["oid"]).to_pylist()
    described = select(cursor, _COLUMNS, oid=it["oid"]).to_pylist()
    table = Table(
        name,
        it["role"],
        {column["name"]: column for column in described},
        next((index["columns"] for index in unique if index["is_primary"]), []),
        frozenset(column["name"] for column in described if column["not_null"]),
    )
    columns = table.find_columns(config)
    pair = [columns[USER], columns[MOVIE]]
    types = {column["name"]: (column["base"], column["modifier"]) for column in described}
    key = table.key(config.key_columns)
    # A row whose user or movie is null is not bound by the index, and no rating either. A table's index says nothing
    # of the tables that inherit from it.
    is_once = not it["has_children"] and any(sorted(index["columns"]) == sorted(pair) for index in unique)
    order = [] if is_once else [*(_grouped_by(name, table) for name in pair), *map(sql.Identifier, key)]
    if order and not key and it["kind"] == "r":
        order.append(sql.SQL("ctid"))  # as they are stored
    filtered = config.rated_since or config.rated_before or it["rows"] < 1
    return _Source(table, columns, key or pair, types, order, None if filtered else it["rows"])


def _grouped_by(column: str, table: Table) -> sql.Composable:
    """Text is sorted by its bytes: a collation may mix different texts as if they were one."""
    described = table.columns[column]
    is_text = described["type"] == "string" and described["format"] != "uuid"
    return sql.SQL('{}::text collate pg_catalog."C"' if is_text else "{}").format(sql.Identifier(column))


def _raw(cursor: Any, source: _Source, config: IngestConfig, progress: Progress) -> Iterator[pa.Table]:
    """What the database gives, piece by piece: the columns by their role, then the key's others by their name."""
    read = {role: _cast(source, name, role) for role, name in source.columns.items()}
    read |= {f"{KEY} {name}": _cast(source, name, KEY) for name in source.key if name not in source.columns.values()}
    fields = [sql.SQL("{} as {}").format(what, sql.Identifier(name)) for name, what in read.items()]
    query: list[sql.Composable] = [
        sql.SQL("select"),
        sql.SQL(", ").join(fields),
        sql.SQL("from {}").format(sql.Identifier(SCHEMA, source.table.name)),
    ]
    if bounds := _bounds(source, config):
        query += [sql.SQL("where"), sql.SQL(" and ").join(bounds)]
    if source.order:
        query += [sql.SQL("order by"), sql.SQL(", ").join(source.order)]
    cursor.execute(sql.SQL(" ").join(query).as_string())
    batches = cursor.fetch_record_batch()
    while (batch := _next(batches)) is not None:
        progress.advance(len(batch))
        yield pa.Table.from_batches([batch])


def _next(batches: pa.RecordBatchReader) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (OSError, pa.ArrowException) as error:  # Arrow's own, for what the driver meets between two batches
        raise adbc.OperationalError(str(error), status_code=AdbcStatusCode.IO) from None


def _bounds(source: _Source, config: IngestConfig) -> list[sql.Composable]:
    """The conditions of ``rated_since`` and ``rated_before``, which a time that is unknown does not fulfil."""
    if not (config.since or config.before):
        return []
    column = sql.Identifier(source.columns[RATED_AT])
    is_zoned = source.types[source.columns[RATED_AT]][0] == "timestamptz"
    moments = {">=": config.since, "<": config.before}
    return [
        sql.SQL(f"{{}} {comparison} {{}}").format(
            column, sql.Literal(moment if is_zoned else moment.replace(tzinfo=None))
        )
        for comparison, moment in moments.items()
        if moment
    ]


def _cast(source: _Source, column: str, role: str) -> sql.Composable:
    """What is selected for a column, of a type that Arrow has. A number that float8 cannot hold becomes infinite, where
    a cast would end the query."""
    base, modifier = source.types[column]
    if role == RATED_AT and base in ("timestamp", "date"):
        form = "{}::timestamp at time zone 'UTC'"
    elif base in ("float4", "timestamptz") and role in (RATING, RATED_AT):
        form = "{}"
    elif base == "numeric" and modifier == -1:
        form = (
            "case when {0} between -1e300 and 1e300 then {0}::float8 when {0} = 'NaN' then 'NaN' when {0} > 0 then "
            "'Infinity' when {0} < 0 then '-Infinity' end"
        )
    elif base in ("float8", "numeric") or (role == RATING and base in ("int4", "int8")):
        form = "{}::float8"
    elif base in ("int2", "int4", "int8"):
        form = "{}::float4" if role == RATING else "{}::int8"
    else:
        form = "{}::text"
    return sql.SQL(form).format(sql.Identifier(column))


def _schema(source: _Source) -> pa.Schema:
    is_integer = [source.table.columns[source.columns[role]]["type"] == "integer" for role in (USER, MOVIE)]
    ids = [pa.int64() if integer else pa.string() for integer in is_integer]
    return ratings_schema(*ids, timestamps=RATED_AT in source.columns)


def _ratings(parts: Iterator[pa.Table], source: _Source, bad: Rejects) -> Iterator[pa.Table]:
    """The usable rows, each pair once."""
    rows = _usable(parts, source, bad)
    return _latest(rows) if source.order else rows


def _usable(parts: Iterator[pa.Table], source: _Source, bad: Rejects) -> Iterator[pa.Table]:
    for raw in parts:
        table, good = usable(raw.select(list(source.columns)))
        if not good.all():
            reject(_records(raw.filter(pa.array(~good)), source), source.columns, source.key, bad.add)
        yield table


def _records(raw: pa.Table, source: _Source) -> list[dict[str, Any]]:
    """Rows by the table's own columns."""
    if RATED_AT in raw.column_names and pa.types.is_timestamp(raw[RATED_AT].type):
        micros = raw[RATED_AT].cast(pa.int64()).to_pylist()
        raw = raw.set_column(
            raw.column_names.index(RATED_AT), RATED_AT, pa.array(map(_shown_time, micros), pa.string())
        )
    names = {f"{KEY} {name}": name for name in source.key} | source.columns
    return [{names[field]: value for field, value in row.items()} for row in raw.to_pylist()]


def _shown_time(micros: int | None) -> str | None:
    """A time as a text, which may be none that Python has: PostgreSQL's infinity comes as the last that Arrow has."""
    if micros is None:
        return None
    return "infinity" if abs(micros) > INFINITE else str(np.datetime64(micros, "us"))


def _latest(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Of parts in which the rows of a pair stand beside one another, the latest row of each: by ``rated_at``, and among
    equals the last. The rows of a part's last pair wait for the next part."""
    held: pa.Table | None = None
    for part in parts:
        rows = (pa.concat_tables([held, part]) if held is not None else part).combine_chunks()
        if len(rows):
            begins = _begins(rows)
            last = int(np.flatnonzero(begins)[-1])
            held = rows.slice(last)
            yield _last_of_each(rows.slice(0, last), begins[:last])
    if held is not None:
        yield _last_of_each(held, _begins(held))


def _begins(rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Which rows are the first of their pair."""
    begins = np.ones(len(rows), bool)
    differ = [
        pc.not_equal(rows[name].slice(1), rows[name].slice(0, len(rows) - 1)).to_numpy() for name in (USER, MOVIE)
    ]
    begins[1:] = differ[0] | differ[1]
    return begins


def _last_of_each(rows: pa.Table, begins: npt.NDArray[np.bool_]) -> pa.Table:
    if begins.all():
        return rows
    pair = np.cumsum(begins)
    order = np.lexsort((times(rows), pair)) if RATED_AT in rows.column_names else np.arange(len(rows))
    return rows.take(pa.array(order[np.append(pair[1:] != pair[:-1], True)]))
