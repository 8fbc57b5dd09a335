"""How fast a file of ratings becomes checked Parquet, beside Arrow's reading and writing of it unchecked."""

import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from benchmarks.apart import Result, apart, run
from benchmarks.bars import Bar, bars, quotient
from benchmarks.data import CACHE, load
from benchmarks.report import failures, number, ratio, table
from mf.ingest import ingest
from mf.parallel import cores
from mf.ratings.config import IngestConfig

REPEATS = 3  # in turns; the fastest counts, as others may be at work on the machine
CHUNK = 1 << 20  # rows written at once
TIMES_ARROW, PEAK_MB = 2.5, 1500


@dataclass(frozen=True)
class Case:
    """A file of the planted ratings; ids: integers, text (u17) or UUIDs for the users."""

    shuffled: bool = False
    times: bool = False
    ids: str = "integers"
    zipped: bool = False


CASES = {
    "sorted": Case(),
    "shuffled": Case(shuffled=True),
    "sorted, times": Case(times=True),
    "shuffled, times": Case(shuffled=True, times=True),
    "shuffled, text": Case(shuffled=True, ids="text"),
    "shuffled, UUIDs": Case(shuffled=True, ids="UUIDs"),
    "sorted, gzip": Case(zipped=True),
}


def section(rows: int) -> str:
    """Seconds and memory of both for ``rows`` planted ratings, as Markdown."""
    lines: list[tuple[str, ...]] = []
    reached: list[Bar] = []
    failed: dict[str, Result] = {}
    for label, case in CASES.items():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            path = f"{folder}/ratings.csv{'.gz' if case.zipped else ''}"
            written = apart(write, rows=rows, path=path, **asdict(case))
            arrow, ours = written, written
            if "error" not in written:
                arrow, ours = _in_turns(label, path)
        failed |= {f"{label}, Arrow": arrow, f"{label}, ingest": ours}
        seconds = [result.get("seconds") for result in (arrow, ours)]
        peaks = [number(result.get("peak_mb"), 0) for result in (arrow, ours)]
        reached.append(Bar(f"{label}: time / Arrow's", quotient(seconds[1], seconds[0]), at_most=TIMES_ARROW))
        reached.append(Bar(f"{label}: peak MB", ours.get("peak_mb"), at_most=PEAK_MB, digits=0))
        lines.append(
            (
                label,
                number(written.get("mb"), 0),
                *(number(value, 2) for value in seconds),
                ratio(seconds[1], seconds[0]),
                ratio(ours.get("cpu_s"), arrow.get("cpu_s")),
                *peaks,
            )
        )
    header = ("", "file MB", "Arrow s", "ingest s", "× Arrow", "× its CPU", "Arrow peak MB", "ingest peak MB")
    said = (
        f"{rows:,} planted ratings from a CSV file in the page cache to zstd Parquet, {cores()} cores, the fastest of "
        f"{REPEATS}. Arrow is `pyarrow.csv.read_csv`, with threads and the types given, and `parquet.write_table`, "
        "unchecked; ingest checks every row, finds the doubled pairs, sorts by user and movie and hashes."
    )
    return "\n\n".join(part for part in (said, table(header, lines), bars(reached), failures(failed)) if part)


def _in_turns(label: str, path: str) -> tuple[Result, Result]:
    arrow, ours = [], []
    for _ in range(REPEATS):
        arrow.append(run(f"Arrow, {label}", measure_arrow, path=path))
        ours.append(run(f"ingest, {label}", measure_ingest, path=path))
    return _fastest(arrow), _fastest(ours)


def _fastest(results: Sequence[Result]) -> Result:
    failed = [result for result in results if "error" in result]
    return failed[0] if failed else min(results, key=lambda result: float(result["seconds"]))


def write(rows: int, path: str, shuffled: bool, times: bool, ids: str, zipped: bool) -> Result:
    """Writes a case's file; gives its size in megabytes."""
    split = load(f"planted:{rows}:0")
    users, movies, ratings = (
        np.concatenate([getattr(split.test, name), getattr(split.train, name)])
        for name in ("users", "movies", "ratings")
    )
    if not shuffled:
        order = np.lexsort((movies, users))
        users, movies, ratings = users[order], movies[order], ratings[order]
    names = ["userId", "movieId", "rating", *(["timestamp"] if times else [])]
    rng = np.random.default_rng(0)
    with pa.CompressedOutputStream(path, "gzip") if zipped else pa.OSFile(path, "wb") as file:
        for start in range(0, rows, CHUNK):
            part = slice(start, min(rows, start + CHUNK))
            columns = [_ids(users[part], ids), _ids(movies[part], "integers" if ids == "UUIDs" else ids), ratings[part]]
            if times:
                columns.append(rng.integers(8 * 10**8, 16 * 10**8, part.stop - start))
            options = pacsv.WriteOptions(include_header=start == 0, quoting_style="none")
            pacsv.write_csv(pa.table(columns, names=names), file, options)
    return {"mb": Path(path).stat().st_size / 1e6}


def _ids(numbers: np.ndarray, kind: str) -> pa.Array:
    if kind == "integers":
        return pa.array(numbers)
    distinct, codes = np.unique(numbers, return_inverse=True)
    texts = [f"u{n}" if kind == "text" else str(uuid.uuid5(uuid.NAMESPACE_OID, str(n))) for n in distinct.tolist()]
    return pa.array(texts).take(pa.array(codes))


def measure_arrow(path: str) -> Result:
    """Arrow's time, from the file to Parquet."""
    with pacsv.open_csv(path) as reader:
        types = {field.name: field.type for field in reader.schema} | {"rating": pa.float32()}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter(), time.process_time()
        read = pacsv.read_csv(path, convert_options=pacsv.ConvertOptions(column_types=types))
        pq.write_table(read, f"{folder}/ratings.parquet", compression="zstd")
        return _since(started)


def measure_ingest(path: str) -> Result:
    """Ours."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter(), time.process_time()
        ingest(IngestConfig.of(ratings_csv=path), Path(folder) / "ratings.parquet", Path(folder) / "rejects.csv")
        return _since(started)


def _since(started: tuple[float, float]) -> Result:
    return {"seconds": time.perf_counter() - started[0], "cpu_s": time.process_time() - started[1]}
