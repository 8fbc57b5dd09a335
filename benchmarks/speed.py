"""Speed: solvers, the naive loop and other libraries, in one run on one machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import limits, naive, peers, solvers
from benchmarks.apart import Result, run
from benchmarks.data import HELD_OUT, floor
from benchmarks.report import NONE, failures, number, ratio, table
from mf.parallel import cores

PEERS = ("cornac MF", "cmfrec CMF, scaled")
SHOWN = (1, 2, 3, 5, 10, 20)  # epochs whose RMSE is shown


@dataclass(frozen=True)
class Case:
    """A solver with its defaults overridden by ``options``; ``curve``: a second training, for the RMSE per epoch."""

    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    curve: bool = True


CASES = {
    "sgd": Case("sgd"),
    # Enough to reach a peer's RMSE on 23.6 million ratings: fewer epochs with a higher learning rate.
    "sgd, 7 epochs": Case("sgd", {"epochs": 7, "lr": 0.08, "row_damping": 0.15, "batch_size": 65_536}),
    "adam, batch 65,536, blocked": Case("adam", {"batch_size": 65_536, "block_users": 8192}),
    "adam, batch 2,048": Case("adam", {"batch_size": 2048, "epochs": 1}, curve=False),
    "vb": Case("vb"),
    "gibbs, 4 sweeps": Case("gibbs", {"epochs": 4, "burn_in": 1}, curve=False),
}


def section(rows: int) -> str:
    """Speed of solvers, naive loop and peers on ``rows`` planted ratings, as Markdown."""
    data = f"planted:{rows}:0"
    machine = run("the machine", limits.measure)
    loop = run("naive loop", naive.measure, data=data)
    fits = {label: _fit(label, data, case) for label, case in CASES.items()}
    curves = {
        label: _fit(f"{label}, RMSE after each epoch", data, case, validates=True)
        for label, case in CASES.items()
        if case.curve and "error" not in fits[label]
    }
    theirs = {name: run(name, peers.measure, data=data, name=name) for name in PEERS}
    parts = (
        _explained(rows, floor(data)),
        throughput(rows - int(rows * HELD_OUT), loop, fits, machine),
        _naive_explained(loop),
        "### RMSE over time",
        "Seconds (everything before and after included) and RMSE after each number of epochs:",
        over_time(fits, curves),
        "### Against other libraries",
        peers_table(theirs),
        "Seconds until a solver reaches a library's final RMSE, and how many times sooner (a dash: never):",
        against_peers(fits, curves, theirs),
        failures({"the machine's limits": machine, "the naive loop": loop, **fits, **theirs}),
    )
    return "\n\n".join(part for part in parts if part)


def _fit(label: str, data: str, case: Case, validates: bool = False) -> Result:
    options = dict(case.options)
    return run(label, solvers.measure, data=data, solver=case.solver, options=options, validates=validates)


def _explained(rows: int, lowest: float) -> str:
    return (
        f"{rows:,} planted ratings (`benchmarks/planted.py`), of which a tenth is held out; 64 factors; "
        f"{cores()} cores; the RMSE of the true parameters is {lowest:.4f}. The solvers have their defaults "
        "except as named."
    )


def _naive_explained(loop: Result) -> str:
    if "error" in loop:
        return ""
    return (
        "The naive loop (`benchmarks/naive.py`: DataLoader over TensorDataset, nn.Embedding, torch.optim.Adam, batch "
        f"{naive.BATCH:,}) took {loop['step_s'] * 1000:.0f} ms per step, measured over {loop['steps']} steps; its "
        "epoch is extrapolated from that. Shares of the machine's limits follow the counts under "
        "[What the machine can do](#what-the-machine-can-do), with all cores; a solver that finds rows in the cache "
        "can exceed 100% of the copy bandwidth."
    )


def throughput(ratings: int, loop: Result, fits: Mapping[str, Result], machine: Result) -> str:
    """Seconds per epoch, relative to the naive loop and to the machine's limits."""
    naive_s = loop.get("epoch_s")
    lines = [("naive loop", number(naive_s, 0), _rate(ratings, naive_s), "1", *[NONE] * 5, _gb(loop))]
    for label, fit in fits.items():
        seconds = fit.get("epoch_s")
        lines.append(
            (
                label,
                number(seconds, 2),
                _rate(ratings, seconds),
                ratio(naive_s, seconds),
                str(fit.get("epochs", NONE)),
                number(fit.get("total_s"), 1),
                number(fit.get("rmse"), 4),
                *_shares(CASES[label].solver, ratings, fit, machine),
                _gb(fit),
            )
        )
    header = ("", "s/epoch", "ratings/s", "× naive", "epochs", "s in all", "RMSE", "of copy", "of GEMM", "peak GB")
    return table(header, lines)


def _rate(ratings: int, seconds: float | None) -> str:
    return number(ratings / seconds, 0) if seconds else NONE


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
            *(number(result.get(key), 1) for key in ("preparation_s", "fit_s", "total_s")),
            number(result.get("rmse"), 4),
            _gb(result),
        )
        for name, result in theirs.items()
    ]
    return table(("", "version", "preparation s", "fit s", "s in all", "RMSE", "peak GB"), lines)


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
