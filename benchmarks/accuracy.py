"""Accuracy: RMSE of the solvers and of other libraries on the same splits."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

from benchmarks import peers, solvers
from benchmarks.apart import Result, run
from benchmarks.data import floor
from benchmarks.report import NONE, failures, number, table
from mf.solvers import SOLVERS

SPLITS = (0, 1, 2)
PLANTED = {"planted, 2 M": "planted:2000000:0", "planted, 500 k": "planted:500000:3"}


def section(ratings: Path | None) -> str:
    """RMSE of all solvers and peers, as Markdown; ``ratings`` is a CSV file of MovieLens ratings."""
    measurements: dict[str, Callable[[str], Result]] = {
        **{solver: partial(_ours, solver) for solver in SOLVERS},
        **{peer: partial(_peer, peer) for peer in peers.PEERS},
    }
    rows: list[tuple[str, ...]] = []
    failed: dict[str, Result] = {}
    for name, measure in measurements.items():
        splits = [measure(f"csv:{ratings}:{seed}") for seed in SPLITS] if ratings else []
        planted = {title: measure(data) for title, data in PLANTED.items()}
        if errors := [result for result in [*splits, *planted.values()] if "error" in result]:
            failed[name] = errors[0]
        factors = (result["rmse"] / floor(PLANTED[t]) if "rmse" in result else None for t, result in planted.items())
        rows.append(
            (
                name,
                *([_mean_rmse(splits)] if ratings else []),
                *(number(factor, 4) for factor in factors),
            )
        )
    header = ["", *([ratings.name] if ratings else []), *PLANTED]
    return "\n\n".join(part for part in (_explained(ratings), table(header, rows), failures(failed)) if part)


def _mean_rmse(splits: Sequence[Result]) -> str:
    return NONE if any("error" in s for s in splits) else number(mean(s["rmse"] for s in splits), 4)


def _ours(solver: str, data: str) -> Result:
    return run(f"{solver}, {data}", solvers.measure, data=data, solver=solver, options={})


def _peer(name: str, data: str) -> Result:
    return run(f"{name}, {data}", peers.measure, data=data, name=name)


def _explained(ratings: Path | None) -> str:
    file = f"{ratings.name}: the mean of {len(SPLITS)} random splits. " if ratings else ""
    options = "; ".join(f"{name} {dict(peer.options)}" for name, peer in peers.PEERS.items())
    return (
        "RMSE of clipped predictions on a tenth of the ratings, after training on the rest; the solvers with their "
        f"defaults. {file}Planted (`benchmarks/planted.py`): the RMSE divided by that of the true parameters.\n\n"
        f"Peers' options: {options}."
    )
