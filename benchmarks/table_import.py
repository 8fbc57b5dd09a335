"""How fast a table comes in: over the direct connection beside a bare loop of its driver, and through the API in
several ranges beside one page after another."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.apart import Result, run
from benchmarks.bars import Bar, bars, quotient
from benchmarks.planted import generate
from benchmarks.report import failures, number, ratio, table
from benchmarks.sampled import beside_servers
from mf.ingest import Read
from mf.local import LocalSupabase, delete_home
from mf.local.gateway import Gateway, Request, Response
from mf.parallel import cores
from mf.ratings.collect import Collector
from mf.ratings.config import IngestConfig
from mf.supabase.client import connect
from mf.supabase.credentials import Credentials
from mf.supabase.database import Database
from mf.supabase.tables import direct, rest
from mf.supabase.tables.description import source_name

COLUMNS = "(user_id bigint not null, movie_id bigint not null, rating real not null)"
BARE = "select user_id::int8, movie_id::int8, rating::float4 from public.ratings"
REST_ROWS = 2_000_000  # of the table that is read through the API for its speed, at most
MEMORY_ROWS = (2_000_000, 4_000_000)  # of those that are read for their memory, at most
LATENCY_S = 0.02  # of a request, beside what it takes here
TIMES_BARE, PEAK_MB, TIMES_SEQUENTIAL, TIMES_MEMORY = 0.8, 400, 4, 1.25
REPEATS = 3
CHUNK = 1 << 20


def section(rows: int) -> str:
    """Both ways to import ``rows`` planted ratings, as Markdown."""
    few, *sizes = (min(rows, size) for size in (REST_ROWS, *MEMORY_ROWS))
    direct: dict[str, list[Result]] = {label: [] for label in ("bare loop", "ours", "ours, no unique index")}
    at_once = (1, rest.WORKERS, 2 * rest.WORKERS)
    through: dict[str, list[Result]] = {f"{workers} at a time": [] for workers in at_once}
    with _supabase() as supabase:
        run("load", load, rows=rows, parts=[*dict.fromkeys([few, *sizes])])
        supabase.migrate("grant select on all tables in schema public to service_role")
        for _ in range(REPEATS):
            direct["bare loop"].append(beside_servers("bare loop", bare))
            direct["ours"].append(beside_servers("ours", ours, name="ratings"))
        direct["ours, no unique index"].append(beside_servers("ours, no unique index", ours, name="unsorted"))
        near = {
            f"{size:,} rows": [beside_servers(f"API, {size:,} rows", api, rows=size)] for size in dict.fromkeys(sizes)
        }
        supabase.gateway.latency_s = LATENCY_S
        for _ in range(REPEATS):
            for label, workers in zip(through, at_once, strict=True):
                through[label].append(beside_servers(f"API, {label}", api, rows=few, workers=workers))
    measured = {**direct, **through, **near}
    parts = (
        f"Over the direct connection, {rows:,} rows from a PostgreSQL on the same machine ({cores()} cores), which "
        f"works for as long as the reader does. The bare loop is `{BARE}` streamed by ADBC to a Parquet file. Best of "
        f"{REPEATS}, each in a process of its own, whose CPU seconds include its imports. The server's CPU seconds are "
        "those of PostgreSQL, PostgREST and the gateway.",
        _rates(dict.fromkeys(direct, rows), direct),
        f"Through the API, {few:,} rows, 1,000 a page, {LATENCY_S * 1000:.0f} ms added to every request:",
        _rates(dict.fromkeys(through, few), through),
        f"Through the API, {rest.WORKERS} requests at a time and none of them delayed:",
        _rates({f"{size:,} rows": size for size in sizes}, near),
        _bars(direct, through, near),
        failures({label: next((r for r in results if "error" in r), {}) for label, results in measured.items()}),
    )
    return "\n\n".join(part for part in parts if part)


def _bars(*measured: Mapping[str, Sequence[Result]]) -> str:
    (bare, direct, _), (one, several, _), near = ([*_best(them).values()] for them in measured)

    def more(name: str, of: Result, to: Result) -> float | None:
        return quotient(of.get(name), to.get(name))

    return bars(
        [
            Bar("direct: rows/s / the bare loop's", more("seconds", bare, direct), at_least=TIMES_BARE),
            Bar("direct: peak MB", direct.get("peak_mb"), at_most=PEAK_MB, digits=0),
            Bar(
                f"API, {rest.WORKERS} at a time: rows/s / one at a time's",
                more("seconds", one, several),
                at_least=TIMES_SEQUENTIAL,
            ),
            Bar("API: peak MB, more rows / fewer", more("peak_mb", near[-1], near[0]), at_most=TIMES_MEMORY),
        ]
    )


def _best(measured: Mapping[str, Sequence[Result]]) -> dict[str, Result]:
    """The fastest of each."""
    return {
        label: min((r for r in results if "error" not in r), key=lambda r: float(r["seconds"]), default={})
        for label, results in measured.items()
    }


def _rates(rows: Mapping[str, int], measured: Mapping[str, Sequence[Result]]) -> str:
    """Rows a second, as such and beside the first of ``measured``; memory."""
    best = _best(measured)
    rates = {label: rows[label] / result["seconds"] if result else None for label, result in best.items()}
    first = next(iter(rates))
    lines = [
        (
            label,
            number(result.get("seconds"), 1),
            number(result.get("cpu_seconds"), 1),
            number(result.get("server_cpu_s"), 1),
            number(rates[label], 0),
            ratio(rates[label], rates[first]),
            number(result.get("peak_mb"), 0),
        )
        for label, result in best.items()
    ]
    return table(("", "s", "CPU s", "server's CPU s", "rows/s", f"× {first}", "peak MB"), lines)


class SlowGateway(Gateway):
    """A gateway that delays every request by ``latency_s``."""

    latency_s = 0.0

    def respond(self, request: Request) -> Response:
        time.sleep(self.latency_s)
        return super().respond(request)


class SlowSupabase(LocalSupabase):
    gateway_class = SlowGateway
    gateway: SlowGateway


@contextmanager
def _supabase() -> Iterator[SlowSupabase]:
    """An empty one, whose address and keys the measurements find in the environment."""
    home = Path(tempfile.mkdtemp(prefix="mf-bench-"))
    home.chmod(0o755)  # root's PostgreSQL, which runs as another user, lies in it too
    try:
        with SlowSupabase(home) as supabase:
            os.environ |= {
                "SUPABASE_URL": supabase.url,
                "SUPABASE_KEY": supabase.secret_key,
                "SUPABASE_DB_URL": supabase.db_url,
            }
            yield supabase
    finally:
        delete_home(home)


def load(rows: int, parts: Sequence[int]) -> Result:
    """Makes the table ``ratings`` with a primary key over user and movie, ``unsorted``, the same without it, and, for
    each n of ``parts``, ``ratings_n``, its first n rows."""
    data = generate(rows)
    schema = pa.schema({"user_id": pa.int64(), "movie_id": pa.int64(), "rating": pa.float32()})
    columns = dict(zip(schema.names, (data.users, data.movies, data.ratings), strict=True))
    with adbc.connect(_database().conninfo.get_secret_value(), autocommit=True) as connection:
        cursor = connection.cursor()
        for name, count in {"ratings": rows, "unsorted": rows, **{f"ratings_{n}": n for n in parts}}.items():
            cursor.execute(f"create table {name} {COLUMNS}")
            for start in range(0, count, CHUNK):
                part = {key: values[start : min(count, start + CHUNK)] for key, values in columns.items()}
                cursor.adbc_ingest(name, pa.table(part, schema), mode="append")
            if name != "unsorted":
                cursor.execute(f"alter table {name} add primary key (user_id, movie_id)")
            cursor.execute(f"vacuum analyze {name}")
        cursor.close()
    return {"rows": rows}


def bare() -> Result:
    """The least that reading a table to Parquet takes."""
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        adbc.connect(_database().conninfo.get_secret_value()) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(BARE)
        batches = cursor.fetch_record_batch()
        with pq.ParquetWriter(f"{folder}/ratings.parquet", batches.schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
    return {"seconds": time.perf_counter() - started}


def ours(name: str) -> Result:
    """This project's direct import."""
    return _imported(name, partial(direct.read, _database()))


def api(rows: int, workers: int = rest.WORKERS) -> Result:
    """This project's import through the API."""
    credentials = Credentials.find()
    with connect(credentials) as client:
        return _imported(f"ratings_{rows}", partial(rest.read, client, credentials, workers=workers))


def _imported(name: str, read: Read) -> Result:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sink = Collector(source_name(name), 0)
        columns = read(IngestConfig(import_table=name), sink)
        provenance = sink.finish(Path(folder, "ratings.parquet"), Path(folder, "rejects.csv"), columns)
    return {"seconds": time.perf_counter() - started, "rows": provenance.rows_kept}


def _database() -> Database:
    database = Database.find()
    assert database is not None
    return database
