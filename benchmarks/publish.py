"""Whether published means whole: what readers see, a statement at a time, while runs are published and exporters killed
and run again.
"""

import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import psutil
import psycopg
import pyarrow as pa
import pyarrow.dataset  # pyarrow.parquet imports it when it first reads
import pyarrow.parquet as pq
from pydantic import SecretStr

from benchmarks.apart import Result, run
from benchmarks.bars import Bar, bars
from benchmarks.report import number, ratio, table
from benchmarks.sampled import servers_cpu_s
from mf.errors import SupabaseError
from mf.local import LocalSupabase, delete_home
from mf.supabase.client import connect
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.credentials import Credentials
from mf.supabase.database import Database
from mf.supabase.direct_target import DirectTarget
from mf.supabase.rest_target import RestTarget
from mf.supabase.schema import migration

PUBLISHES = 1000
ROWS = 60  # users, and movies, of each run
READERS = 2
PAUSE_S = 0.01  # of a reader, after one statement of each kind
KILLED, CUT = 0.4, 0.2  # shares of the exporters
# The readers have an API of their own, and no statement of theirs names these functions.
CUT_EXPORTER = """
select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()
and (application_name = 'mf' or query ~ 'mf_(schema|register|load|publish|prune)') and pid <> pg_backend_pid()
"""


def section(publishes: int = PUBLISHES) -> str:
    """What readers saw through so many publishes over both ways, as Markdown."""
    saw = run(f"{publishes} publishes", measure, publishes=publishes)
    if "error" in saw:
        return f"- it was not measured: {saw['error']}"
    rows = [
        ["publishes, half through the API, half over the direct connection", number(saw["publishes"], 0), ""],
        ["exporters killed (-9) and run again", number(saw["killed"], 0), ""],
        ["connections of exporters that were ended", number(saw["cut"], 0), ""],
        ["runs that readers saw", number(saw["runs"], 0), f"{ratio(saw['runs'], saw['publishes'])} of the publishes"],
        ["statements that readers sent", number(saw["reads"], 0), ""],
        ["of these saw a mix, fewer rows or an error", number(saw["wrong"], 0), ""],
        [
            "a statement, median, ms",
            number(saw["median_ms"], 1),
            f"{ratio(saw['median_ms'], saw['idle_ms'])} of at rest",
        ],
        ["seconds in all", number(saw["seconds"], 0), ""],
        [
            "CPU seconds of PostgreSQL and PostgREST",
            number(saw["server_cpu_s"], 0),
            f"{number(saw['cpu_seconds'], 0)} of readers and gateway",
        ],
    ]
    said = (
        f"{READERS} readers ask the API again and again for both views, `recommend_movies` and `similar_movies`, while "
        f"runs of {ROWS} users and {ROWS} movies are published. Every value of a run tells which one it is of."
    )
    reached = [
        Bar("publishes", saw["publishes"], at_least=PUBLISHES, digits=0),
        Bar("statements that saw a mix, fewer rows or an error", saw["wrong"], at_most=0, digits=0),
    ]
    return "\n\n".join([said, table(["", "found", "beside"], rows), bars(reached), *saw["examples"]])


def measure(publishes: int) -> Result:
    """``disturbed`` in a database of its own."""
    home = Path(tempfile.mkdtemp(prefix="mf-publish-"))
    home.chmod(0o755)  # root's PostgreSQL runs as another user
    try:
        with LocalSupabase(home) as exporters:
            exporters.migrate(migration(SchemaConfig()))
            began, before = time.perf_counter(), servers_cpu_s()
            found = disturbed(exporters, home / "models", publishes)
            return found | {"seconds": time.perf_counter() - began, "server_cpu_s": servers_cpu_s() - before}
    finally:
        delete_home(home)


def disturbed(exporters: LocalSupabase, folder: Path, publishes: int, seed: int = 0) -> Result:
    """Publishes run after run in a migrated database, the two ways by turns, while readers look on. At random moments
    it kills exporters or ends their connections, and runs them again until they are through.

    Returns:
        publishes; killed: exporters; cut: connections of theirs; reads: statements of the readers; wrong: those that
        saw no one whole run; examples: some of these; runs: how many they saw; median_ms, idle_ms: of a statement, and
        of one before it began.
    """
    readers_own = LocalSupabase(exporters.home, exporters.database, postgres=exporters.postgres)
    with readers_own as door, exporters.connect() as cutter, Forker() as forker:
        attempts = Attempts(forker, cutter, random.Random(seed))  # noqa: S311
        DirectTarget(Database(SecretStr(exporters.db_url))).export(write_model(folder / "0", 0), ExportConfig())
        with looking(door) as seen:
            time.sleep(1)
            idle_ms, seen.ms = seen.median_ms(), []
            for i in range(1, publishes + 1):
                way = (exporters.db_url,) if i % 2 else (exporters.url, exporters.secret_key)
                attempts.publish(write_model(folder / str(i), i), *way)
    return {
        "publishes": publishes,
        "killed": attempts.killed,
        "cut": attempts.cut,
        "reads": seen.reads,
        "runs": len(seen.runs - {-1, 0}),
        "wrong": len(seen.wrong),
        "examples": seen.wrong[:5],
        "median_ms": seen.median_ms(),
        "idle_ms": idle_ms,
    }


@dataclass
class Attempts:
    """Exporters, some of them disturbed at a random moment of the time that one takes."""

    forker: "Forker"
    cutter: psycopg.Connection[Any]
    rng: random.Random
    killed: int = 0
    cut: int = 0
    takes_s: dict[int, float] = field(default_factory=dict)  # the quickest that was left alone, by its way

    def publish(self, model_dir: Path, *way: str) -> None:
        """Runs exporters until one has published the model."""
        status = -1
        while status:
            began = time.monotonic()
            pid = self.forker.start(str(model_dir), *way)
            fate = self.rng.random()
            if fate < KILLED or (self.cut and fate < KILLED + CUT):
                time.sleep(self.rng.uniform(0, self.takes_s.get(len(way), 0.1)))
            if fate < KILLED:
                os.kill(pid, signal.SIGKILL)
            elif fate < KILLED + CUT:
                # The first one as soon as it is connected, so that there is one whatever the machine's speed.
                while not (cut := len(self.cutter.execute(CUT_EXPORTER).fetchall())) and not self.cut and _runs(pid):
                    time.sleep(0.001)
                self.cut += cut
            status = self.forker.wait()
            self.killed += status == -signal.SIGKILL
            if fate >= KILLED + CUT:
                self.takes_s[len(way)] = min(self.takes_s.get(len(way), math.inf), time.monotonic() - began)
                if status:
                    raise RuntimeError(f"the export of {model_dir} ended with {status}, and nothing was done to it")


def _runs(pid: int) -> bool:
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


class Forker:
    """Starts exporters one at a time, each a process of its own that need not import anything first."""

    def __enter__(self) -> "Forker":
        command = [sys.executable, "-m", "benchmarks.publish"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def start(self, model_dir: str, url: str, key: str = "") -> int:
        """The process that exports; until ``wait`` it stays one, if only a dead one."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([model_dir, url, key]) + "\n")
        return self._answer()

    def wait(self) -> int:
        """How the process ended: 0, 2 for a refusal, below 0 for a signal."""
        assert self._process.stdin
        self._process.stdin.write("wait\n")
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout
        return int(self._process.stdout.readline())


def fork_exporters() -> None:
    """The other end of ``Forker``."""
    with connect(Credentials("http://127.0.0.1:1", SecretStr("none"))):
        pass  # what it imports when it is first needed is imported now, once
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            os._exit(export_one(*json.loads(line)))
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def export_one(model_dir: str, url: str, key: str) -> int:
    """Exports through the API with ``key``, else over the direct connection; 0, or 2 when that was refused."""
    try:
        if not key:
            DirectTarget(Database(SecretStr(url))).export(Path(model_dir), ExportConfig())
            return 0
        RestTarget(Credentials(url, SecretStr(key))).export(
            Path(model_dir), ExportConfig(rows_per_request=10, clients=2)
        )
    except SupabaseError:
        return 2
    return 0


def angle(i: int) -> float:
    """Between the vectors of neighbouring movies in run ``i``: radians, and others than in the runs around it."""
    return 0.005 + 0.001 * (i % 15)


def write_model(folder: Path, i: int) -> Path:
    """Run ``i``: every bias is i, every predicted rating 3 i, and the cosine of movies a and b cos((a - b) angle)."""
    folder.mkdir(parents=True)
    header = {"run_id": f"r{i}", "factors": 2, "mu": i, "rating_min": -1e6, "rating_max": 1e6}
    (folder / "model.json").write_text(json.dumps(header))
    turned = np.arange(ROWS) * angle(i)
    for side, vectors in (("user", np.zeros((ROWS, 2))), ("movie", np.stack([np.cos(turned), np.sin(turned)], 1))):
        columns = {
            f"{side}_id": pa.array(np.arange(ROWS)),
            "bias": pa.array(np.full(ROWS, i, np.float32)),
            "embedding": pa.array(list(vectors.astype(np.float32)), pa.list_(pa.float32())),
        }
        pq.write_table(pa.table(columns), folder / f"{side}_embeddings.parquet")
    return folder


@dataclass
class Seen:
    """What the readers saw."""

    reads: int = 0
    runs: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)

    def median_ms(self) -> float:
        return statistics.median(self.ms)


@contextmanager
def looking(door: LocalSupabase) -> Iterator[Seen]:
    """Readers at work while the block lasts. A request is sent once: an error that a retry would hide shows."""
    seen, over = Seen(), threading.Event()
    threads = [threading.Thread(target=_look, args=(door, seen, over)) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _look(door: LocalSupabase, seen: Seen, over: threading.Event) -> None:
    headers = {"apikey": door.secret_key}
    with httpx.Client(base_url=f"{door.url}/rest/v1", headers=headers, timeout=30, trust_env=False) as client:
        while not over.wait(PAUSE_S):
            for path, check in READS.items():
                began = time.monotonic()
                try:
                    answer = client.get(path)
                    answer.raise_for_status()
                    seen.runs.add(check(answer.json()))
                except (httpx.HTTPError, ValueError) as error:
                    seen.wrong.append(f"{path}: {error!r}")
                seen.ms.append((time.monotonic() - began) * 1000)
                seen.reads += 1


def _run_of_view(rows: Sequence[dict[str, Any]]) -> int:
    (found,) = {(row["run_id"], row["bias"]) for row in rows}
    if len(rows) != ROWS or found[0] != f"r{found[1]}":
        raise ValueError(f"{len(rows)} rows of {found}")
    return int(found[1])


def _run_of_recommendations(rows: Sequence[dict[str, Any]]) -> int:
    (found,) = {row["predicted_rating"] for row in rows}
    if len(rows) != ROWS or found % 3:
        raise ValueError(f"{len(rows)} rows of {found}")
    return int(found) // 3


def _run_of_similar(rows: Sequence[dict[str, Any]]) -> int:
    """-1, since several runs share an angle; but all of the rows are of one."""
    similarity: npt.NDArray[np.float64] = np.empty(ROWS - 1)
    for row in rows:
        similarity[row["movie_id"] - 1] = row["similarity"]
    found = round((math.acos(similarity[-1]) / (ROWS - 1) - 0.005) / 0.001)
    if len(rows) != ROWS - 1 or np.abs(similarity - np.cos(np.arange(1, ROWS) * angle(found))).max() > 1e-5:
        raise ValueError(f"{len(rows)} rows, of them {similarity.tolist()}")
    return -1


READS = {
    "/user_embeddings?select=run_id,bias": _run_of_view,
    "/movie_embeddings?select=run_id,bias": _run_of_view,
    f"/rpc/recommend_movies?for_user=7&k={ROWS}": _run_of_recommendations,
    f"/rpc/similar_movies?for_movie=0&k={ROWS}": _run_of_similar,
}


if __name__ == "__main__":
    fork_exporters()
