"""New users: accuracy of the fold-in after a few ratings."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from benchmarks.apart import Result, run
from benchmarks.bars import Bar, bars
from benchmarks.data import load
from benchmarks.report import failures, number, table
from mf.biases import DAMPING
from mf.fold_in import fold_in, prior
from mf.ratings.schema import MOVIE, RATING, USER
from mf.solvers import SOLVERS, configure
from mf.train import train

NEW_USERS, VALIDATION = 0.2, 0.1
SHOWN = (5, 10, 20)  # first ratings of a new user


def section(ratings: Path, seeds: int = 3) -> str:
    """RMSE on the later ratings of new users, for each solver, as Markdown."""
    results = {
        solver: run(f"{solver}, new users", measure, ratings=str(ratings), solver=solver, seeds=seeds)
        for solver in SOLVERS
    }
    ways = ("movie biases", "damped bias", "fold-in")
    rows = [
        (solver, way, *(number(result["rmse"][way][str(k)], 4) for k in SHOWN))
        for solver, result in results.items()
        if "error" not in result
        for way in ways
    ]
    reached = [
        Bar(
            f"{solver}, k = {k}: fold-in's RMSE, against the damped bias's",
            result["rmse"]["fold-in"][str(k)],
            at_most=result["rmse"]["damped bias"][str(k)],
            digits=4,
        )
        for solver, result in results.items()
        if "error" not in result
        for k in SHOWN
    ]
    explained = (
        "A fifth of the users is left out of the training. RMSE on all but the first k ratings of each, in random "
        "order, for: mu + b_m, the prediction for an unseen user; that plus the user's mean deviation from it over the "
        f"k ratings, damped by {DAMPING:.0f}; and the fold-in of the k ratings. Means over {seeds} choice(s) of users."
    )
    slowest = max(
        (result for result in results.values() if "error" not in result), key=lambda r: r["fold_in_ms"], default={}
    )
    if slowest:
        explained += (
            f" A fold-in takes {slowest['fold_in_ms']:.2f} ms, {slowest['fold_in_cpu_ms']:.2f} ms of CPU time, the "
            "mean of the slowest solver."
        )
    header = ("model", "from", *(f"k = {k}" for k in SHOWN))
    return "\n\n".join(part for part in (explained, table(header, rows), bars(reached), failures(results)) if part)


def measure(ratings: str, solver: str, seeds: int) -> Result:
    """Mean RMSE by prediction and by k; fold_in_ms and fold_in_cpu_ms, means of a fold-in's wall and CPU time."""
    times: list[tuple[float, float]] = []
    each = [_measure(ratings, solver, seed, times) for seed in range(seeds)]
    wall, cpu = np.mean(times, axis=0) * 1000
    rmse = {way: {str(k): float(np.mean([one[way, k] for one in each])) for k in SHOWN} for way, _ in each[0]}
    return {"rmse": rmse, "fold_in_ms": float(wall), "fold_in_cpu_ms": float(cpu)}


def _measure(ratings: str, solver: str, seed: int, times: list[tuple[float, float]]) -> dict[tuple[str, int], float]:
    data = load(f"csv:{ratings}:{seed}")
    rng = np.random.default_rng(seed)
    users, movies, stars = (np.concatenate([getattr(part, name) for part in (data.train, data.test)])
                            for name in ("users", "movies", "ratings"))  # fmt: skip
    new = rng.permutation(data.n_users)[: int(data.n_users * NEW_USERS)]
    known = np.flatnonzero(~np.isin(users, new))
    held_out = int(len(known) * VALIDATION)
    parts = (known[held_out:], known[:held_out])
    training, validation = (
        pa.table({USER: users[rows].astype(np.int64), MOVIE: movies[rows].astype(np.int64), RATING: stars[rows]})
        for rows in parts
    )
    model = train(training, validation, configure(solver, {}), device=torch.device("cpu"))
    errors: dict[tuple[str, int], list[Any]] = {}
    for user in new:
        own = np.flatnonzero(users == user)
        rows = model.movies.rows(pa.array(movies[own].astype(np.int64)))
        for k in SHOWN:
            for way, predicted in _predictions(model, rows, stars[own], k, times).items():
                errors.setdefault((way, k), []).append((predicted - stars[own][k:]) ** 2)
    return {key: float(np.sqrt(np.mean(np.concatenate(each)))) for key, each in errors.items()}


def _predictions(
    model: Any,
    rows: npt.NDArray[np.int64],
    stars: npt.NDArray[np.float32],
    k: int,
    times: list[tuple[float, float]],
) -> dict[str, npt.NDArray[np.float64]]:
    """Clipped predictions for all but the first k ratings of a user; row -1 is an unseen movie.

    ``times`` gets the wall and the CPU seconds of the fold-in."""
    m = model.module
    q, b_m, p, b_u = (
        side.weight.detach().double().numpy() for side in (m.movie_factors, m.movie_bias, m.user_factors, m.user_bias)
    )
    mu, known = m.mu.item(), rows[:k][rows[:k] >= 0]
    q, b_m = np.vstack([q, np.zeros_like(q[:1])]), np.append(b_m, 0.0)  # row -1 reads the appended zeros
    given = stars[:k][rows[:k] >= 0]
    unseen = mu + b_m[rows[k:]]
    above = (given - mu - b_m[known]).sum() / (len(known) + DAMPING)
    covariance = prior(p, b_u.ravel(), model.metrics["validation_rmse"] ** 2)
    began = time.perf_counter(), time.process_time()
    vector, bias = fold_in(q[known], b_m[known], given, mu, covariance)
    times.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    ways = {"movie biases": unseen, "damped bias": unseen + above, "fold-in": unseen + bias + q[rows[k:]] @ vector}
    return {way: np.clip(x, m.rating_min.item(), m.rating_max.item()) for way, x in ways.items()}
