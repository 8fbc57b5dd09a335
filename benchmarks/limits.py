"""Limits of the machine, and the cost of a rating for each solver."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.apart import Result, run
from benchmarks.report import table
from mf.parallel import cores

COPIED = 64 << 20  # floats: 256 MB, beyond every cache
SIDE = 4096  # of the matrices that are multiplied
ID_BYTES = 4 + 4 + 4  # a rating's user, movie and value


def measure() -> Result:
    """copy_1 and copy_all, bytes read and written per second; gemm_1 and gemm_all, float32 operations per second; with
    one thread and with one per core."""
    source, target = torch.ones(COPIED), torch.empty(COPIED)
    a, b, product = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE), torch.empty(SIDE, SIDE)
    measured = {}
    for name, threads in (("1", 1), ("all", cores())):
        torch.set_num_threads(threads)
        measured[f"copy_{name}"] = 2 * source.nbytes / _fastest(lambda: target.copy_(source))
        measured[f"gemm_{name}"] = 2 * SIDE**3 / _fastest(lambda: torch.mm(a, b, out=product))
    return measured


def _fastest(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest run, after a warm-up."""
    work()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


@dataclass(frozen=True)
class Cost:
    """Cost of a rating per epoch, with its rows read from memory and written back.

    Attributes:
        bytes: read and written.
        flops: float32 operations.
        counted: how they are counted.
    """

    bytes: int
    flops: int
    counted: str


def cost(solver: str, rank: int) -> Cost:
    """The cost for a solver with ``rank`` fitted factors."""
    if solver == "sgd":
        return Cost(ID_BYTES + 16 * rank, 6 * rank, "p and q read and written; a product, two gradients")
    if solver == "adam":
        return Cost(ID_BYTES + 48 * rank, 30 * rank, "as sgd with two moments; 12 operations per entry for the step")
    # mf.solvers.gaussian: a row of packed second moments and means, added for the user and again for the movie.
    entries = (rank + 1) * (rank + 6) // 2
    return Cost(
        2 * (ID_BYTES + 4 * entries), 2 * entries, f"{entries} entries of a table read and added, for user and movie"
    )


def section() -> str:
    """Limits and costs, as Markdown."""
    measured = run("the machine", measure)
    if "error" in measured:
        return f"Not measured: {measured['error']}"
    rows = [
        (name, *(f"{measured[f'{key}_{threads}'] / 1e9:.0f}" for threads in ("1", "all")))
        for name, key in (("copy, GB/s read and written", "copy"), ("matrix product, GFLOP/s", "gemm"))
    ]
    costs = []
    for solver, rank in (("sgd", 64), ("adam", 64), ("vb", 16), ("gibbs", 16)):
        needed = cost(solver, rank)
        costs.append((solver, rank, needed.bytes, needed.flops, needed.counted))
    return (
        table(("in float32", "one core", f"{cores()} cores"), rows)
        + "\n\nCost of a rating per epoch, without any cache:\n\n"
        + table(("solver", "factors fitted", "bytes", "operations", "counted"), costs)
    )
