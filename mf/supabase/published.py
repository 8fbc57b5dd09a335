"""Reads the published run back, whole, over either way: what it is, and its embeddings."""

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
from psycopg import sql
from supabase import Client

from mf.errors import SupabaseError
from mf.model_directory import Embeddings, Header
from mf.ratings.schema import TrainedOn
from mf.supabase.client import call
from mf.supabase.database import Database
from mf.supabase.recommend import pages
from mf.supabase.snapshot import select, snapshot

Side = Literal["user", "movie"]

ABSENT = ("42P01", "PGRST205")  # codes of a table that is not there
READ_RUN = "read the published run"


@dataclass(frozen=True)
class PublishedRun:
    """What ``mf_runs`` says of the run that readers see."""

    header: Header
    users: int
    movies: int
    published_at: str  # ISO 8601
    trained_on: TrainedOn | None  # None where it was not recorded

    @classmethod
    def of(cls, row: dict[str, Any]) -> "PublishedRun":
        """A row of ``mf_runs``, of this migration or of an earlier one."""
        # JSON has no way to tell 5.0 from 5.
        stars = {name: float(row[name]) for name in ("mu", "rating_min", "rating_max")}
        header = Header(row["run_id"], row["factors"], **stars)
        trained_on = TrainedOn.read(row.get("trained_on"))
        return cls(header, row["n_users"], row["n_movies"], row["published_at"], trained_on)


def read_run(client: Client) -> PublishedRun | None:
    """The published run; ``None`` when nothing is published, or the database has no migration yet.

    Raises:
        SupabaseError: the API refused, or does not answer.
    """
    try:
        rows = call(client.table("mf_runs").select("*").eq("status", "published"), READ_RUN)
    except SupabaseError as error:
        if error.code in ABSENT:
            return None
        raise
    return PublishedRun.of(rows[0]) if rows else None


def read_embeddings(client: Client, run: PublishedRun) -> tuple[Embeddings, Embeddings]:
    """The users and the movies of ``run``, whatever is published meanwhile.

    Raises:
        SupabaseError: the run was removed meanwhile; or the API refused, or does not answer.
    """
    return _pages(client, "user", run), _pages(client, "movie", run)


def _pages(client: Client, side: Side, run: PublishedRun) -> Embeddings:
    ids, biases, vectors = [], [], []
    for page in pages(client, side, run.header.run_id):
        ids += [row[f"{side}_id"] for row in page]
        biases += [row["bias"] for row in page]
        texts = ",".join(row["embedding"] for row in page)
        vectors.append(np.array(orjson.loads(f"[{texts}]"), np.float32))
    return Embeddings(pa.array(ids), np.array(biases, np.float32), np.concatenate(vectors))


def read_run_directly(database: Database) -> PublishedRun | None:
    """As ``read_run``."""
    with snapshot(database, READ_RUN) as cursor:
        if select(cursor, "select to_regclass('public.mf_runs')::text as name")["name"].to_pylist() == [None]:
            return None
        runs = select(cursor, "select to_jsonb(r)::text as run from public.mf_runs r where r.status = 'published'")
    return PublishedRun.of(json.loads(runs["run"][0].as_py())) if len(runs) else None


def read_embeddings_directly(database: Database, run: PublishedRun) -> tuple[Embeddings, Embeddings]:
    """As ``read_embeddings``."""
    with snapshot(database, f"read run {run.header.run_id}") as cursor:
        made = json.loads(select(cursor, "select public.mf_schema()::text as made")["made"][0].as_py())
        return _rows(cursor, "user", run, run.users, made), _rows(cursor, "movie", run, run.movies, made)


_EMBEDDINGS = "select {id} as id, e.bias, e.embedding::float4[] as vector from {table} e where e.run_id = {run}"


def _rows(cursor: Any, side: Side, run: PublishedRun, expected: int, made: dict[str, Any]) -> Embeddings:
    kind = "int8" if made[f"{side}_id_type"] == "bigint" else "text"
    parts: dict[str, str | sql.Composable] = {
        "id": sql.SQL(f"e.{side}_id::{kind}"),
        "table": sql.Identifier("public", f"mf_{side}_embeddings"),
        "run": run.header.run_id,
    }
    found = select(cursor, _EMBEDDINGS, **parts)
    if len(found) != expected:
        raise SupabaseError(f"run {run.header.run_id} is no longer whole in the database: begin anew")
    ids, biases, vectors = (found[name].combine_chunks() for name in ("id", "bias", "vector"))
    return Embeddings(ids, biases.to_numpy(), vectors.flatten().to_numpy().reshape(expected, run.header.factors))
