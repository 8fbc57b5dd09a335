"""The whole of ``make run`` beside a straight-line script: seconds, CPU seconds and memory of each process."""

import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.apart import Result, apart
from benchmarks.bars import Bar, bars
from benchmarks.csv_ingest import write
from benchmarks.data import CACHE
from benchmarks.planted import FULL
from benchmarks.report import NONE, number, table
from benchmarks.sampled import Finished, Seen, watch
from mf.parallel import cores

SIZES = (250_000, 4_000_000, FULL)
STEPS = ("ingest", "split", "train", "evaluate", "refit", "export")
COLD_S, WARM_S = 45.0, 35.0  # beside the fits, at full size
STEP = re.compile(r"--function_to_execute ([\w-]+)")
# What a process is called, by a part of its command line; the first that fits.
NAMES = {
    "-m pipelines run": "command",
    "watchdog.py": "watchdog",
    "postgrest": "PostgREST",
    "postgres": "PostgreSQL",
}


def section(rows: int) -> str:
    """Waterfalls of a first and a second run, and the straight line, at every size up to ``rows``, as Markdown."""
    parts = [_explained()]
    reached: list[Bar] = []
    for size in [size for size in SIZES if size <= rows] or [rows]:
        parts.append(f"### {size:,} ratings")
        cold, warm, straight = _measure(size)
        parts += [waterfall("First run", cold), waterfall("Second run", warm), straight_table(straight)]
        parts.append(_beside(cold, warm, straight))
        if size == FULL:
            reached = [
                Bar("first run beside the fits, s", cold.get("beside_s"), at_most=COLD_S, digits=1),
                Bar("second run beside the fits, s", warm.get("beside_s"), at_most=WARM_S, digits=1),
            ]
    return "\n\n".join([*parts, *([bars(reached)] if reached else [])])


def _explained() -> str:
    return (
        f"`make run RATINGS=…` of planted ratings in random order (`benchmarks/planted.py`), {cores()} cores, with the "
        "pipeline's defaults: vb and the ranking model, fitted again to all ratings, published to the embedded "
        "Supabase. The first run of a file in a new home creates the database; the second finds the file unchanged and "
        "compares with the published run. The file is in the page cache. Beside it a straight line of Arrow, the same "
        "two fits, once, and files of vectors: no checks, no evaluation, no second fit, no database. Processes are "
        "looked at every tenth of a second."
    )


def _measure(rows: int) -> tuple[Result, Result, Result]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        file = f"{folder}/ratings.csv"
        written = apart(write, rows=rows, path=file, shuffled=True, times=False, ids="integers", zipped=False)
        if "error" in written:
            return written, written, written
        home = Path(folder) / "home"
        try:
            results = [_run(f"{rows:,} ratings, {name} run", home, file) for name in ("first", "second")]
        finally:
            shutil.rmtree(home, ignore_errors=True)
        straight = _straight(f"{rows:,} ratings, straight line", file, folder)
    return results[0], results[1], straight


def _run(label: str, home: Path, file: str) -> Result:
    """A run of the pipeline: seconds, CPU seconds, the fits' seconds, and the processes by step or name."""
    print(f"{label}:", end=" ", flush=True)
    done = watch([sys.executable, "-m", "pipelines", "run", "--home", str(home), "--ratings", file])
    print(f"{done.seconds:.1f} s", flush=True)
    if done.status:
        return {"error": done.output.strip().splitlines()[-1]}
    outputs = max(home.glob("runs/*/mf-training-*"))
    fits = {step: _fit_seconds(outputs / step / "model" / "model.json") for step in ("train", "refit")}
    beside = done.seconds - sum(sum(fit) for fit in fits.values())
    return {"seconds": done.seconds, "fits": fits, "beside_s": beside, "lines": grouped(done)}


def _fit_seconds(card: Path) -> tuple[float, float]:
    """Seconds of the star model's and of the ranking model's fit."""
    model = json.loads(card.read_text())
    return model["metrics"]["seconds"], model["ranking"]["metrics"]["seconds"]


def grouped(done: Finished) -> dict[str, Result]:
    """Start, seconds, CPU seconds and the largest process's MB of each step, then of the other processes by name."""
    groups: dict[str, list[Seen]] = {}
    for seen in done.processes:
        groups.setdefault(_name(seen), []).append(seen)
    found = {
        name: {
            "started_s": min(seen.started_s for seen in them),
            "seconds": max(seen.ended_s for seen in them) - min(seen.started_s for seen in them),
            "cpu_s": sum(seen.cpu_s for seen in them),
            "peak_mb": max(seen.peak_mb for seen in them),
        }
        for name, them in groups.items()
    }
    order = [*STEPS, *NAMES.values()]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def _name(seen: Seen) -> str:
    command = " ".join(seen.words)
    if step := STEP.search(command):
        return step[1]
    return next((name for part, name in NAMES.items() if part in command), "others")


def waterfall(title: str, run: Result) -> str:
    """The steps and servers of a run, one row each."""
    if "error" in run:
        return f"- {title} was not measured: {run['error']}"
    lines = []
    for name, line in run["lines"].items():
        fits = run["fits"].get(name, (None, None))
        cells = (line["started_s"], line["seconds"], *fits, line["cpu_s"])
        lines.append((name, *(number(cell, 1) for cell in cells), number(line["peak_mb"], 0)))
    cpu = sum(line["cpu_s"] for line in run["lines"].values())
    both = (sum(fit[i] for fit in run["fits"].values()) for i in range(2))
    lines.append(("all", "0.0", number(run["seconds"], 1), *(number(fit, 1) for fit in both), number(cpu, 1), NONE))
    header = (title, "starts at s", "s", "stars s", "ranking s", "CPU s", "peak MB")
    return table(header, lines)


def _straight(label: str, file: str, folder: str) -> Result:
    print(f"{label}:", end=" ", flush=True)
    started = time.perf_counter()
    result = apart(straight_line, file=file, folder=folder)
    result["seconds"] = time.perf_counter() - started
    print(result.get("error") or f"{result['seconds']:.1f} s", flush=True)
    if "error" not in result:
        result["beside_s"] = result["seconds"] - result["stages"]["stars"] - result["stages"]["ranking"]
    return result


def straight_line(file: str, folder: str) -> Result:
    """Reads a CSV file, holds a tenth out, fits both models to the rest and writes their vectors.

    Returns:
        stages: seconds of each stage, by name.
    """
    began = time.perf_counter()
    stages: dict[str, float] = {}

    def ended(stage: str) -> None:
        stages[stage] = time.perf_counter() - began - sum(stages.values())

    import numpy as np
    import pandas as pd
    import torch
    from pyarrow import csv

    from mf.ranking import Interactions
    from mf.ranking import configure as configure_ranking
    from mf.ranking.config import DEFAULT_RANKING
    from mf.ranking.fit import fit as fit_ranking
    from mf.solvers import RatingTensors, configure, fit

    ended("imports")
    columns = csv.read_csv(file)
    users, movies, ratings = (columns[name].to_numpy() for name in ("userId", "movieId", "rating"))
    ended("read")
    kept = np.random.default_rng(0).random(len(ratings)) >= 0.1
    rows, ids = zip(*(pd.factorize(column[kept]) for column in (users, movies)), strict=True)
    data: Any = [torch.from_numpy(column.astype(np.int32)) for column in rows]
    data += [torch.from_numpy(ratings[kept].astype(np.float32)), len(ids[0]), len(ids[1])]
    ended("split, ids to rows")
    train = RatingTensors(*data)
    nothing = RatingTensors(*(column[:0] for column in data[:3]), *data[3:])
    stars = fit(train, nothing, configure("vb", {}), torch.device("cpu"))
    ended("stars")
    lists = configure_ranking(DEFAULT_RANKING, {}, {"seed": 0})
    assert lists
    interactions = Interactions(*data)
    ranking = fit_ranking(interactions, lists, torch.device("cpu"))
    vectors = ranking.user_vectors(interactions)
    ended("ranking")
    torch.save(stars.state_dict(), f"{folder}/model.pt")
    np.savez(f"{folder}/lists.npz", p=vectors, q=ranking.embedding, users=ids[0], movies=ids[1])
    ended("write")
    return {"stages": stages}


def straight_table(result: Result) -> str:
    """Stages of the straight line in one row."""
    if "error" in result:
        return f"- the straight line was not measured: {result['error']}"
    cells = (*result["stages"].values(), result["seconds"], result["cpu_seconds"])
    header = ("Straight line", *(f"{stage} s" for stage in result["stages"]), "in all s", "CPU s", "peak MB")
    return table(header, [("", *(number(cell, 1) for cell in cells), number(result["peak_mb"], 0))])


def _beside(cold: Result, warm: Result, straight: Result) -> str:
    named = {"first run": cold, "second run": warm, "straight line": straight}
    found = (f"{name} {number(result.get('beside_s'), 1)} s" for name, result in named.items())
    return f"Beside the fits: {', '.join(found)}."
