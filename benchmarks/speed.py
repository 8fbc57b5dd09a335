"""Speed: solvers, the naive loop and other libraries, in one run on one machine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import limits, naive, peers, solvers
from benchmarks.apart import Result, run, twice
from benchmarks.data import HELD_OUT, floor
from benchmarks.report import NONE, REPRODUCED, failures, figure, number, ratio, table
from mf.parallel import cores
from mf.solvers.config import DEFAULT_SOLVER

PEERS = ("cornac MF", "cmfrec CMF, scaled")
SHOWN = (1, 2, 3, 5, 10, 20)  # epochs whose RMSE is shown


@dataclass(frozen=True)
class Case:
    """A solver with its defaults overridden by ``options``; ``curve``: a second training, for the RMSE per epoch."""

    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    curve: bool = True


PIPELINE = "the pipeline's defaults"  # the star model and then the ranking model
CASES = {
    "sgd": Case("sgd"),
    # Enough to reach a peer's RMSE on 23.6 million ratings: fewer epochs with a higher learning rate.
    "sgd, 7 epochs": Case("sgd", {"epochs": 7, "lr": 0.08, "row_damping": 0.15, "batch_size": 65_536}),
    "adam, batch 65,536, blocked": Case("adam", {"batch_size": 65_536, "block_users": 8192}),
    "adam, batch 2,048": Case("adam", {"batch_size": 2048, "epochs": 1}, curve=False),
    "vb": Case("vb"),
    "gibbs, 4 sweeps": Case("gibbs", {"epochs": 4, "burn_in": 1}, curve=False),
    PIPELINE: Case(DEFAULT_SOLVER, curve=False),
}


def section(rows: int) -> str:
    """Speed of solvers, naive loop and peers on ``rows`` planted ratings, as Markdown."""
    data = f"planted:{rows}:0"
    machine = run("the machine", limits.measure)
    loops = {loop: twice(loop, naive.measure, data=data, loop=loop) for loop in naive.LOOPS}
    fits = {label: _fit(label, data, case) for label, case in CASES.items()}
    curves = {
        label: _fit(f"{label}, RMSE after each epoch", data, case, validates=True)
        for label, case in CASES.items()
        if case.curve and "error" not in fits[label]
    }
    theirs = {name: twice(name, peers.measure, data=data, name=name) for name in PEERS}
    parts = (
        _explained(rows, floor(data)),
        throughput(rows - int(rows * HELD_OUT), loops, fits, machine),
        _loops_explained(loops),
        "### RMSE over time",
        "Seconds (everything before and after included) and RMSE after each number of epochs:",
        over_time(fits, curves),
        "### Against other libraries",
        peers_table(theirs),
        "Seconds until a solver reaches a library's final RMSE, and how many times sooner (a dash: never):",
        against_peers(fits, curves, theirs),
        failures({"the machine's limits": machine, **loops, **fits, **theirs}),
    )
    return "\n\n".join(part for part in parts if part)


def _fit(label: str, data: str, case: Case, validates: bool = False) -> Result:
    options = dict(case.options)
    if label == PIPELINE:
        return twice(label, solvers.measure_pipeline, data=data)
    measured = run if validates else twice
    return measured(label, solvers.measure, data=data, solver=case.solver, options=options, validates=validates)


def _explained(rows: int, lowest: float) -> str:
    return (
        f"{rows:,} planted ratings (`benchmarks/planted.py`), of which a tenth is held out; 64 factors; "
        f"{cores()} cores; the RMSE of the true parameters is {lowest:.4f}. The solvers have their defaults "
        "except as named. CPU s: of all threads together. Every figure is measured twice; where the two differ by more "
        "than 5%, both are shown."
    )


def _loops_explained(loops: Mapping[str, Result]) -> str:
    steps = "; ".join(
        f"{name} ({naive.LOOPS[name]}): {figure({**loop, 'ms': loop['step_s'] * 1000, 'again': _ms(loop)}, 'ms', 1)} ms"
        for name, loop in loops.items()
        if "error" not in loop
    )
    if not steps:
        return ""
    return (
        f"Loops of PyTorch's own parts (`benchmarks/naive.py`), batch {naive.BATCH:,}, milliseconds per step over at "
        f"most {naive.STEPS} steps or {naive.MOST_S} s: {steps}. Their epochs are extrapolated from that. "
        f'"{PIPELINE}" is what the pipeline\'s train step fits: the star model and then the ranking model, whose '
        'time is in "s in all". Shares '
        "of the machine's limits follow the counts under [What the machine can do](#what-the-machine-can-do), with all "
        "cores; a solver that finds rows in the cache can exceed 100% of the copy bandwidth."
    )


def _ms(loop: Result) -> Result:
    again = loop.get("again", {})
    return {"ms": again["step_s"] * 1000} if "step_s" in again else {}


def throughput(ratings: int, loops: Mapping[str, Result], fits: Mapping[str, Result], machine: Result) -> str:
    """Seconds per epoch, relative to the naive loop and to the machine's limits."""
    naive_loop = loops[naive.NAIVE]
    lines: list[tuple[str, ...]] = []
    for label, result in {**loops, **fits}.items():
        shares = _shares(CASES[label].solver, ratings, result, machine) if label in fits else (NONE, NONE)
        lines.append(
            (
                label,
                figure(result, "epoch_s", 2 if label in fits else 0),
                figure(result, "epoch_cpu_s", 2 if label in fits else 0),
                _range(result, lambda one: ratings / one["epoch_s"], "rate", 0),
                _times(naive_loop, result),
                str(result.get("epochs", NONE)),
                figure(result, "total_s", 1),
                figure(result, "total_cpu_s", 1),
                number(result.get("rmse"), 4),
                *shares,
                _gb(result),
            )
        )
    columns = ("s/epoch", "CPU s/epoch", "ratings/s", "× naive", "epochs", "s in all", "CPU s in all", "RMSE")
    return table(("", *columns, "of copy", "of GEMM", "peak GB"), lines)


def _range(result: Result, of: Callable[[Result], float], key: str, digits: int) -> str:
    """A value computed from a result, or the range of both runs'."""
    runs = [{key: of(one)} if one.get("epoch_s") else {} for one in (result, result.get("again", {}))]
    return figure({**runs[0], "again": runs[1]}, key, digits)


def _times(naive_loop: Result, result: Result) -> str:
    """How many times as fast as the naive loop: both first runs and both second ones."""
    seconds = [(one.get("epoch_s"), other.get("epoch_s")) for one, other in
               ((naive_loop, result), (naive_loop.get("again", {}), result.get("again", {})))]  # fmt: skip
    found = [loop / own for loop, own in seconds if loop and own]
    if len(found) < 2 or max(found) - min(found) <= REPRODUCED * max(found):
        return ratio(*seconds[0])
    return f"{ratio(min(found), 1)}–{ratio(max(found), 1)}"


def _gb(result: Result) -> str:
    return number(result["peak_mb"] / 1024, 2) if "peak_mb" in result else NONE


def _shares(solver: str, ratings: int, fit: Result, machine: Result) -> tuple[str, str]:
    """Shares of the copy bandwidth and of the GEMM rate."""
    if "error" in fit or "error" in machine:
        return NONE, NONE
    needed = limits.cost(solver, fit["rank"])
    rate = ratings / fit["epoch_s"]
    return f"{needed.bytes * rate / machine['copy_all']:.1%}", f"{needed.flops * rate / machine['gemm_all']:.1%}"


def seconds_after(fit: Result, epoch: int) -> float:
    """Seconds of the training up to ``epoch``, preparation and finishing included."""
    seconds: float = fit["total_s"] - (fit["epochs"] - epoch) * fit["epoch_s"]
    return seconds


def seconds_to(target: float, fit: Result, curve: Sequence[float]) -> float | None:
    """Seconds until the RMSE is at most ``target``; ``None`` if it never is."""
    epochs = (epoch for epoch, rmse in enumerate(curve, start=1) if rmse <= target)
    first = next(epochs, None)
    return None if first is None else seconds_after(fit, first)


def over_time(fits: Mapping[str, Result], curves: Mapping[str, Result]) -> str:
    """RMSE and seconds after some of the epochs."""
    lines = []
    for label, measured in curves.items():
        curve = measured.get("curve", [])
        cells = (
            f"{seconds_after(fits[label], epoch):.1f} s {curve[epoch - 1]:.4f}" if epoch <= len(curve) else NONE
            for epoch in SHOWN
        )
        lines.append((label, *cells))
    return table(("", *(f"epoch {epoch}" for epoch in SHOWN)), lines)


def peers_table(theirs: Mapping[str, Result]) -> str:
    """Times and RMSE of the peers."""
    lines = [
        (
            name,
            result.get("version", NONE),
            *(figure(result, key, 1) for key in ("preparation_s", "fit_s", "total_s", "total_cpu_s")),
            number(result.get("rmse"), 4),
            _gb(result),
        )
        for name, result in theirs.items()
    ]
    return table(("", "version", "preparation s", "fit s", "s in all", "CPU s", "RMSE", "peak GB"), lines)


def against_peers(fits: Mapping[str, Result], curves: Mapping[str, Result], theirs: Mapping[str, Result]) -> str:
    """Seconds until each solver reaches the final RMSE of each peer."""
    lines = []
    for label, measured in curves.items():
        cells = []
        for peer in theirs.values():
            seconds = seconds_to(peer["rmse"], fits[label], measured.get("curve", [])) if "rmse" in peer else None
            cells += [number(seconds, 1), ratio(peer.get("total_s"), seconds)]
        lines.append((label, *cells))
    return table(("", *(title for name in theirs for title in (f"{name}: s", "× sooner"))), lines)
