"""Several processes against one with as many threads, in one run on one machine: speed and equal results."""

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.apart import Result, run
from benchmarks.bars import Bar, bars, quotient
from benchmarks.data import Ratings, load
from benchmarks.report import NONE, failures, number, ratio, table
from mf.parallel import cores
from mf.ranking import RankingConfig
from mf.ratings.schema import MOVIE, RATING, USER
from mf.solvers import EpochReport, configure
from mf.together import Job, fit_together
from mf.train import train, train_ranking

CPU = torch.device("cpu")
LISTS = "lists"
AS_FAST = 0.9  # bound of two processes' speed, as a multiple of one process's on as many threads
# adam draws from blocks of users on both sides, as several processes do.
CASES: dict[str, dict[str, Any]] = {
    "sgd": {"epochs": 4},
    "adam": {"epochs": 3, "batch_size": 65_536, "block_users": 8192},
    "vb": {"epochs": 4, "fits": 1},
    "gibbs": {"epochs": 4, "burn_in": 1},
    LISTS: {},
}


def section(rows: int, processes: int = 2) -> str:
    """Speed of one process and of several on ``rows`` planted ratings, as Markdown."""
    data, lines = f"planted:{rows}:0", []
    results: dict[str, Result] = {}
    reached: list[Bar] = []
    for case in CASES:
        one, several = (
            run(f"{case}, {n} process{'es' if n > 1 else ''}", measure, data=data, case=case, processes=n)
            for n in (1, processes)
        )
        reached.append(
            Bar(f"× as fast per epoch, {case}", quotient(one.get("pass_s"), several.get("pass_s")), at_least=AS_FAST)
        )
        results |= {f"{case} by one process": one, f"{case} by {processes} processes": several}
        lines.append(
            (
                case,
                *(number(result.get("pass_s"), 2) for result in (one, several)),
                ratio(one.get("pass_s"), several.get("pass_s")),
                *(number(result.get("total_s"), 1) for result in (one, several)),
                ratio(one.get("total_s"), several.get("total_s")),
                *(number(result.get("cpu_s"), 0) for result in (one, several)),
                NONE if case == LISTS else f"{abs(one.get('rmse', 0) - several.get('rmse', 0)):.1e}",
            )
        )
    header = (
        "", "s per epoch, 1 process", f"{processes} processes", "× as fast",
        "s in all, 1 process", f"{processes} processes", "× as fast",
        "CPU s, 1 process", f"{processes} processes", "RMSE differs by",
    )  # fmt: skip
    explained = (
        f"{rows:,} planted ratings (`benchmarks/planted.py`); a tenth is held out for the RMSE of every epoch; "
        f"{cores()} cores, which one process uses by threads. Seconds per epoch are the shortest of a training's; of "
        "the lists, those of the whole fit and its user vectors. Seconds in all are those of a training from the "
        "tables of ratings on, the start of the processes included; CPU seconds are those of all processes."
    )
    return "\n\n".join(part for part in (explained, table(header, lines), bars(reached), failures(results)) if part)


def measure(data: str, case: str, processes: int) -> Result:
    """Trains one of ``CASES`` by some processes.

    Returns:
        pass_s: seconds of the fastest epoch, or of the fit of the lists; total_s; cpu_s, of all processes; rmse of the
            last epoch.
    """
    split = load(data)
    ratings, held_out = _table(split.train), _table(split.test)
    torch.ones(1).sum()
    started, cpu_s = time.perf_counter(), _cpu_s()
    if case == LISTS:
        if processes > 1:
            _, lists = fit_together(ratings, held_out, Job(None, RankingConfig(), False, processes))
        else:
            lists = train_ranking(ratings, RankingConfig(), device=CPU)
        assert lists is not None
        return {"pass_s": lists.metrics["seconds"], "total_s": time.perf_counter() - started, "cpu_s": _cpu_s() - cpu_s}
    epochs: list[EpochReport] = []
    options: Mapping[str, Any] = CASES[case]
    train(ratings, held_out, configure(case, options), device=CPU, callbacks=[epochs.append], processes=processes)
    total = time.perf_counter() - started
    fastest, rmse = min(epoch.seconds for epoch in epochs), epochs[-1].validation_rmse
    return {"pass_s": fastest, "total_s": total, "cpu_s": _cpu_s() - cpu_s, "rmse": rmse}


def _cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _table(ratings: Ratings) -> pa.Table:
    order = np.argsort(ratings.users, kind="stable")
    users, movies = (ids[order].astype(np.int64) for ids in (ratings.users, ratings.movies))
    return pa.table({USER: users, MOVIE: movies, RATING: ratings.ratings[order]})
