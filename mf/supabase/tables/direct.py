"""Read a table of Supabase's database over the direct connection: one snapshot, streamed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa
from adbc_driver_manager import AdbcStatusCode
from psycopg import sql

from mf.errors import SupabaseError
from mf.progress import Progress
from mf.ratings.collect import Collector
from mf.ratings.config import IngestConfig
from mf.ratings.schema import COUNT, MOVIE, RATED_AT, RATING, USER
from mf.supabase.database import Database
from mf.supabase.snapshot import select, snapshot
from mf.supabase.tables.description import KEY, SCHEMA, Table, check_rows, grant, no_such_table, table_name


@dataclass(frozen=True)
class _Source:
    """The table and what is read of it."""

    table: Table
    columns: dict[str, str]
    key: list[str]  # the columns that identify a rejected row
    types: dict[str, str]  # the base type's name of every column
    order: list[sql.Composable]  # in which the last row of a pair is its latest; empty where each pair occurs once
    rows: int | None  # the planner's estimate


def read(database: Database, config: IngestConfig, sink: Collector) -> dict[str, str]:
    """Read the table or view ``config.import_table`` of the schema public into ``sink``.

    All rows are of one snapshot. Where no unique index over user and movie guarantees that a pair occurs once, the
    database sorts them by key, or as they are stored, which takes room on its disk.

    Returns:
        Which column was read as what, ``{"user_id": "userId", …}``.

    Raises:
        ConfigError: the table is of another schema.
        SupabaseError: no connection, no table, no right to read it or to see all its rows, no row can be seen, or the
            connection broke.
        DataError: a column is missing or has a type that cannot be used; or as ``sink.add`` raises.
    """
    name = table_name(config.import_table)
    hints = {"42501": grant(name, "ROLE") + ", with the role of SUPABASE_DB_URL"}
    with snapshot(database, f"read table {SCHEMA}.{name}", hints) as cursor:
        source = _describe(cursor, name, config)
        with Progress(f"import {SCHEMA}.{name}", source.rows) as progress:
            for cells in _cells(cursor, source, config):
                progress.advance(len(cells))
                batch = check_rows(cells, source.columns, source.key, config.ignored)
                for row in batch.bad:
                    sink.reject(*row)
                sink.add(batch.ratings, batch.time_forms, batch.ignored)
    if not sink.rows_read:
        raise source.table.no_rows(config)
    return source.columns


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
# A domain counts as its base type; "type" is PostgREST's name for a column's type.
_COLUMNS = """
select a.attname::text as name, pg_catalog.format_type(a.atttypid, null) as format, a.attnotnull as not_null,
  b.typname::text as base,
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
    relations = select(cursor, _TABLE, schema=SCHEMA, name=name).to_pylist()
    if not relations:
        tables = [row["name"] for row in select(cursor, _TABLES, schema=SCHEMA).to_pylist()]
        raise SupabaseError(
            f"cannot read table {SCHEMA}.{name}: relation does not exist (42P01): {no_such_table(tables)}"
        )
    (about,) = relations
    if not about["readable"]:
        denied = f"permission denied for table {name} (42501): {grant(name, about['role'])}"
        raise SupabaseError(f"cannot read table {SCHEMA}.{name}: {denied}")
    if about["filtered"]:
        raise SupabaseError(
            f"cannot read table {SCHEMA}.{name}: row level security may hide rows from the role {about['role']}: "
            "connect as postgres, or as a role with bypassrls"
        )
    unique = select(cursor, _UNIQUE, oid=about["oid"]).to_pylist()
    described = select(cursor, _COLUMNS, oid=about["oid"]).to_pylist()
    table = Table(
        name,
        about["role"],
        {column["name"]: column for column in described},
        next((index["columns"] for index in unique if index["is_primary"]), []),
        frozenset(column["name"] for column in described if column["not_null"]),
    )
    columns = table.find_columns(config)
    pair = [columns[USER], columns[MOVIE]]
    types = {column["name"]: column["base"] for column in described}
    key = table.key(config.key_columns)
    # The index allows several rows with a null user or movie, but those are bad rows. A table's index does not hold for
    # the tables that inherit from it.
    is_once = not about["has_children"] and any(sorted(index["columns"]) == sorted(pair) for index in unique)
    order: list[sql.Composable] = [] if is_once else [sql.Identifier(name) for name in key]
    if not is_once and not key and about["kind"] == "r":
        order = [sql.SQL("ctid")]  # as they are stored
    is_unknown = config.rated_since or config.rated_before or about["rows"] < 1
    return _Source(table, columns, key or pair, types, order, None if is_unknown else about["rows"])


def _cells(cursor: Any, source: _Source, config: IngestConfig) -> Iterator[pa.Table]:
    """The rows, batch by batch: the columns of the roles and of the key, by the table's names."""
    roles = dict.fromkeys(source.key, KEY) | {name: role for role, name in source.columns.items()}
    fields = [
        sql.SQL("{} as {}").format(_cast(source.types[name], name, role), sql.Identifier(name))
        for name, role in roles.items()
    ]
    query: list[sql.Composable] = [
        sql.SQL("select"),
        sql.SQL(", ").join(fields),
        sql.SQL("from {} t").format(sql.Identifier(SCHEMA, source.table.name)),
    ]
    if bounds := _bounds(source, config):
        query += [sql.SQL("where"), sql.SQL(" and ").join(bounds)]
    if source.order:
        # Qualified: the bare name would mean the selected text.
        query += [sql.SQL("order by"), sql.SQL(", ").join(sql.SQL("t.{}").format(column) for column in source.order)]
    cursor.execute(sql.SQL(" ").join(query).as_string())
    batches = cursor.fetch_record_batch()
    while (batch := _next(batches)) is not None:
        yield pa.Table.from_batches([batch])


def _next(batches: pa.RecordBatchReader) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (OSError, pa.ArrowException) as error:  # Arrow's error for a fault of the driver between two batches
        raise adbc.OperationalError(str(error), status_code=AdbcStatusCode.IO) from None


def _bounds(source: _Source, config: IngestConfig) -> list[sql.Composable]:
    """The conditions of ``rated_since`` and ``rated_before``; an unknown time fulfils neither."""
    if not (config.since or config.before):
        return []
    column = sql.Identifier(source.columns[RATED_AT])
    is_zoned = source.types[source.columns[RATED_AT]] == "timestamptz"
    moments = {">=": config.since, "<": config.before}
    return [
        sql.SQL(f"{{}} {comparison} {{}}").format(
            column, sql.Literal(moment if is_zoned else moment.replace(tzinfo=None))
        )
        for comparison, moment in moments.items()
        if moment
    ]


def _cast(base: str, column: str, role: str) -> sql.Composable:
    """The expression to select for a column, of a type that Arrow has. A numeric is selected as text: it may be beyond
    float8, where a cast would end the query. Other types are selected as the API gives them, whose JSON differs from a
    cast: 10.0.0.1/32, 2020-01-02 12:30:00."""
    is_number = role in (RATING, COUNT)
    if role == RATED_AT and base in ("timestamp", "date"):
        form = "t.{}::timestamp at time zone 'UTC'"
    elif base in ("float4", "timestamptz") and (is_number or role == RATED_AT):
        form = "t.{}"
    elif base == "float8" or (is_number and base in ("int4", "int8")):
        form = "t.{}::float8"
    elif base in ("int2", "int4", "int8"):
        form = "t.{}::float4" if is_number else "t.{}::int8"
    elif base in ("text", "varchar", "bpchar", "uuid", "numeric", "bool"):
        form = "t.{}::text"
    else:
        form = "pg_catalog.to_json(t.{}) #>> '{{}}'"
    return sql.SQL(form).format(sql.Identifier(column))
