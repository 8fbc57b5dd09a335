"""This library's solvers, called as ``mf.train`` calls them."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch._dynamo  # torch.optim imports it with the first optimiser: a second that is not training time

from benchmarks.apart import Result
from benchmarks.data import Ratings, load
from mf.ratings.vocabulary import Vocabulary
from mf.solvers import EpochReport, RatingTensors, configure, fit
from mf.solvers.gaussian import GaussianConfig


def measure(data: str, solver: str, options: Mapping[str, Any], validates: bool = False) -> Result:
    """Fits a solver to the training part.

    Args:
        data: name of a data set (``benchmarks.data.load``).
        solver, options: as for ``mf.solvers.configure``.
        validates: validate on the test part, for the RMSE after each epoch. For the curve only: times and the final
            RMSE come from a training without it.

    Returns:
        rmse; total_s and its part preparation_s before the first epoch (ids to rows included); epoch_s (median);
        epochs; rank, the number of fitted factors; curve, the RMSE after each epoch if ``validates``.
    """
    split, config = load(data), configure(solver, options)
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
    train = RatingTensors(*rows, torch.from_numpy(split.train.ratings.copy()), len(users), len(movies))
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
        "rank": config.fitted_rank(train) if isinstance(config, GaussianConfig) else config.model_dump()["factors"],
        "curve": [report.validation_rmse for report in reports] if validates else [],
    }


def _interactions(part: Ratings, users: Vocabulary, movies: Vocabulary) -> RatingTensors:
    def rows(vocabulary: Vocabulary, ids: npt.NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(vocabulary.rows(pa.array(ids)))

    return RatingTensors(
        rows(users, part.users),
        rows(movies, part.movies),
        torch.from_numpy(part.ratings.copy()),
        len(users),
        len(movies),
    )
