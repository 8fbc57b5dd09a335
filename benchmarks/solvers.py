"""Our solvers, as ``mf.train`` calls them."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch._dynamo  # torch.optim does at the first optimiser: a second that is not the training's

from benchmarks.apart import Result
from benchmarks.data import Ratings, load
from mf.ratings.vocabulary import Vocabulary
from mf.solvers import EpochReport, Interactions, configure, fit
from mf.solvers.gaussian import inner_rank


def measure(data: str, solver: str, options: Mapping[str, Any], tuned: bool = False, validates: bool = False) -> Result:
    """Fits a solver to the training part.

    Args:
        data: the name of a data set.
        solver, options, tuned: what ``mf.solvers.configure`` takes.
        validates: the solver is given the test part as its validation part, for the RMSE after each epoch. Only for a
            curve: times and the final RMSE are those of a training that does not see it.

    Returns:
        rmse; total_s, of that preparation_s (ids to rows included) before the first epoch; epoch_s (median); epochs;
        rank, the factors that are fitted; curve, the RMSE after each epoch when it ``validates``.
    """
    split, config = load(data), configure(solver, options, tuned)
    reports: list[EpochReport] = []
    ends: list[float] = []

    def note(report: EpochReport) -> None:
        reports.append(report)
        ends.append(time.perf_counter())

    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        encoded = pool.map(Vocabulary.encode, map(pa.array, (split.train.users, split.train.movies)))
    (users, user_rows), (movies, movie_rows) = encoded
    rows = torch.from_numpy(user_rows), torch.from_numpy(movie_rows)
    train = Interactions(*rows, torch.from_numpy(split.train.ratings.copy()), len(users), len(movies))
    validation = _interactions(split.test if validates else split.test[:0], users, movies)
    model = fit(train, validation, config, torch.device("cpu"), [note])
    total = time.perf_counter() - started
    test = _interactions(split.test, users, movies)
    return {
        "rmse": split.rmse(model.predict(test.users, test.movies).numpy()),
        "total_s": total,
        "preparation_s": ends[0] - reports[0].seconds - started,
        "epoch_s": median(report.seconds for report in reports),
        "epochs": len(reports),
        "rank": _rank(config.model_dump(), train),
        "curve": [report.validation_rmse for report in reports] if validates else [],
    }


def _rank(config: Mapping[str, Any], train: Interactions) -> int:
    factors: int = config["factors"]
    rank: int | None = config.get("rank", factors)
    return rank or inner_rank(train, factors)


def _interactions(part: Ratings, users: Vocabulary, movies: Vocabulary) -> Interactions:
    def rows(vocabulary: Vocabulary, ids: npt.NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(vocabulary.rows(pa.array(ids)))

    return Interactions(
        rows(users, part.users),
        rows(movies, part.movies),
        torch.from_numpy(part.ratings.copy()),
        len(users),
        len(movies),
    )
