"""How fast embeddings go out: over the direct connection beside a bare COPY of the same bytes, and through the API."""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.dataset  # pyarrow.parquet imports it when it first reads
import pyarrow.parquet as pq
from psycopg import sql

from benchmarks.apart import Result, run
from benchmarks.bars import Bar, bars, quotient
from benchmarks.report import failures, number, ratio, table
from benchmarks.sampled import beside_servers
from mf.local import LocalSupabase, delete_home
from mf.model_directory import read_model
from mf.parallel import cores
from mf.supabase.binary_copy import COPY_BEGIN, COPY_END, copy_records
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.credentials import Credentials
from mf.supabase.database import Database
from mf.supabase.direct_target import DirectTarget
from mf.supabase.rest_target import RestTarget
from mf.supabase.schema import migration

USERS, MOVIES, FACTORS = 160_000, 59_000, 64
REPEATS = 5
TIMES_COPY, API_RATE = 1.5, 25_000
CHUNK = 1 << 20
# The same columns and keys, in tables of their own.
BARE = """
create table public.bare_movie (like public.mf_movie_embeddings including all);
create table public.bare_user (like public.mf_user_embeddings including all);
"""
WAYS = ("bare COPY", "direct, COPY and publish", "direct, all of it", "API, 1 client", "API, 4 clients")
OLD = 2  # runs that are there before it begins, so that every export finds one to remove


def section() -> str:
    """Both ways to export a model of full size, as Markdown."""
    rows = USERS + MOVIES
    measured: dict[str, list[Result]] = {name: [] for name in WAYS}
    with _supabase() as folder:
        for i in range(OLD):
            run("an export before", direct, model_dir=str(write_model(folder / f"old{i}", f"old{i}")))
        for i in range(REPEATS):
            models = [str(write_model(folder / f"{way}{i}", f"{way}{i}")) for way in ("direct", "one", "four")]
            measured[WAYS[0]].append(beside_servers(WAYS[0], bare, model_dir=models[0]))
            whole = beside_servers(WAYS[2], direct, model_dir=models[0])
            measured[WAYS[1]].append(whole | {"seconds": whole.get("published_s", np.inf)})
            measured[WAYS[2]].append(whole)
            for name, model, clients in zip(WAYS[3:], models[1:], (1, 4), strict=True):
                measured[name].append(beside_servers(name, api, model_dir=model, clients=clients))
    best = {name: min(results, key=lambda r: r.get("seconds", np.inf)) for name, results in measured.items()}
    said = (
        f"{USERS:,} users and {MOVIES:,} movies of {FACTORS} factors into a Supabase on the same machine ({cores()} "
        "cores). The bare COPY sends bytes that lie ready to tables of the same columns and keys. An export reads the "
        "model's files, checks and hashes them, registers, loads and publishes the run, and removes the one before the "
        "last; the second row is from when the model is read until readers see it, its CPU seconds are the whole "
        "export's. The server's CPU seconds are those of PostgreSQL, PostgREST and the gateway, background work "
        f"included. Best of {REPEATS} by turns, each in a process of its own, whose CPU seconds include its imports."
    )
    return "\n\n".join(part for part in (said, _rates(rows, best), _bars(rows, best), failures(best)) if part)


def _rates(rows: int, best: Mapping[str, Result]) -> str:
    seconds = {name: result.get("seconds") for name, result in best.items()}
    lines = [
        (
            name,
            number(taken, 2),
            number(best[name].get("cpu_seconds"), 2),
            number(best[name].get("server_cpu_s"), 2),
            number(rows / taken if taken else None, 0),
            ratio(taken, seconds["bare COPY"]),
            number(best[name].get("peak_mb"), 0),
        )
        for name, taken in seconds.items()
    ]
    return table(("", "s", "its CPU s", "server's CPU s", "rows/s", "time × bare COPY", "peak MB"), lines)


def _bars(rows: int, best: Mapping[str, Result]) -> str:
    copy, published, api = (best[name].get("seconds") for name in (WAYS[0], WAYS[1], WAYS[4]))
    return bars(
        [
            Bar(f"{WAYS[1]}: time / {WAYS[0]}'s", quotient(published, copy), at_most=TIMES_COPY),
            Bar(f"{WAYS[4]}: rows/s", quotient(rows, api), at_least=API_RATE, digits=0),
        ]
    )


@contextmanager
def _supabase() -> Iterator[Path]:
    """An empty, migrated one, whose address and keys the measurements find in the environment; a folder for models."""
    home = Path(tempfile.mkdtemp(prefix="mf-bench-"))
    home.chmod(0o755)  # root's PostgreSQL, which runs as another user, lies in it too
    try:
        with LocalSupabase(home) as supabase:
            supabase.migrate(migration(SchemaConfig()))
            supabase.migrate(BARE)
            os.environ |= {
                "SUPABASE_URL": supabase.url,
                "SUPABASE_KEY": supabase.secret_key,
                "SUPABASE_DB_URL": supabase.db_url,
            }
            yield home / "models"
    finally:
        delete_home(home)


def write_model(folder: Path, run_id: str) -> Path:
    """A model directory's published part, of random values."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(abs(hash(run_id)))
    header = {"run_id": run_id, "factors": FACTORS, "mu": 3.5, "rating_min": 0.5, "rating_max": 5.0}
    (folder / "model.json").write_text(json.dumps(header))
    for side, n in (("user", USERS), ("movie", MOVIES)):
        values = pa.array(rng.normal(0, 0.3, n * FACTORS).astype(np.float32))
        offsets = pa.array(np.arange(0, n * FACTORS + 1, FACTORS, dtype=np.int32))
        columns = {
            f"{side}_id": pa.array(rng.permutation(n) + 1),
            "bias": pa.array(rng.normal(0, 0.3, n).astype(np.float32)),
            "embedding": pa.ListArray.from_arrays(offsets, values),
        }
        pq.write_table(pa.table(columns), folder / f"{side}_embeddings.parquet", compression="zstd")
    return folder


def bare(model_dir: str) -> Result:
    """COPY of what an export of the model sends, ready in memory."""
    model = read_model(Path(model_dir))
    sides = {"movie": model.movies, "user": model.users}
    content = {
        side: memoryview(
            b"".join(
                records.tobytes()
                for records in copy_records(model.header.run_id, rows.ids, "bigint", (rows.bias, rows.vectors))
            )
        )
        for side, rows in sides.items()
        if rows
    }
    with psycopg.connect(_database().conninfo.get_secret_value(), autocommit=True) as connection:
        connection.execute("truncate public.bare_user, public.bare_movie")
        connection.execute("checkpoint")
        started = time.perf_counter()
        with connection.transaction():
            for side, rows in content.items():
                names = {"table": sql.Identifier(f"bare_{side}"), "id": sql.Identifier(f"{side}_id")}
                statement = "copy public.{table} (run_id, {id}, bias, embedding) from stdin (format binary)"
                with connection.cursor().copy(sql.SQL(statement).format(**names)) as copy:
                    copy.write(COPY_BEGIN)
                    for start in range(0, len(rows), CHUNK):
                        copy.write(rows[start : start + CHUNK])
                    copy.write(COPY_END)
        return {"seconds": time.perf_counter() - started, "bytes": sum(map(len, content.values()))}


def direct(model_dir: str) -> Result:
    """This project's export over the direct connection."""
    _settle()
    started = time.time()
    model = read_model(Path(model_dir))
    read = time.time()
    assert DirectTarget(_database()).publish(model, ExportConfig()).changed
    ended = time.time()
    with psycopg.connect(_database().conninfo.get_secret_value()) as connection:
        newest = connection.execute("select extract(epoch from published_at) from mf_runs where status = 'published'")
        (published,) = newest.fetchone() or (np.nan,)
    return {"seconds": ended - started, "published_s": float(published) - read}


def api(model_dir: str, clients: int) -> Result:
    """This project's export through the API."""
    _settle()
    started = time.perf_counter()
    done = RestTarget(Credentials.find()).export(Path(model_dir), ExportConfig(clients=clients))
    assert done.changed
    return {"seconds": time.perf_counter() - started}


def _settle() -> None:
    """What an earlier measurement left for the server to do is done before the next."""
    with psycopg.connect(_database().conninfo.get_secret_value(), autocommit=True) as connection:
        connection.execute("vacuum public.mf_user_embeddings, public.mf_movie_embeddings")
        connection.execute("checkpoint")


def _database() -> Database:
    database = Database.find()
    assert database is not None
    return database
