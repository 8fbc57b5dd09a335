"""This library's solvers, called as ``mf.train`` calls them."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch._dynamo  # torch.optim imports it with the first optimiser: a second that is not training time

from benchmarks.apart import Result
from benchmarks.data import Ratings, load
from mf.ranking import configure as configure_ranking
from mf.ranking.config import DEFAULT_RANKING
from mf.ratings.schema import MOVIE, RATING, USER
from mf.ratings.vocabulary import Vocabulary
from mf.solvers import EpochReport, RatingTensors, configure, fit
from mf.solvers.config import DEFAULT_SOLVER, GaussianConfig
from mf.train import train as train_model


def measure(data: str, solver: str, options: Mapping[str, Any], validates: bool = False) -> Result:
    """Fits a solver to the training part.

    Args:
        data: name of a data set (``benchmarks.data.load``).
        solver, options: as for ``mf.solvers.configure``.
        validates: validate on the test part, for the RMSE after each epoch. For the curve only: times and the final
            RMSE come from a training without it.

    Returns:
        rmse; total_s and its part preparation_s before the first epoch (ids to rows included); epoch_s and its CPU time
        epoch_cpu_s (medians); total_cpu_s; epochs; rank, the number of fitted factors; curve, the RMSE after each epoch
        if ``validates``.
    """
    split, config = load(data), configure(solver, options)
    reports: list[EpochReport] = []
    ends: list[float] = []
    cpu: list[float] = []

    def note(report: EpochReport) -> None:
        reports.append(report)
        ends.append(time.perf_counter())
        cpu.append(time.process_time())

    started, started_cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(2) as pool:
        encoded = pool.map(Vocabulary.encode, map(pa.array, (split.train.users, split.train.movies)))
    (users, user_rows), (movies, movie_rows) = encoded
    rows = torch.from_numpy(user_rows), torch.from_numpy(movie_rows)
    train = RatingTensors(*rows, torch.from_numpy(split.train.ratings.copy()), len(users), len(movies))
    validation = _interactions(split.test if validates else split.test[:0], users, movies)
    model = fit(train, validation, config, torch.device("cpu"), [note])
    total, total_cpu = time.perf_counter() - started, time.process_time() - started_cpu
    test = _interactions(split.test, users, movies)
    rank = config.model_dump()["factors"]
    if isinstance(config, GaussianConfig):
        rank = config.fitted_rank(len(train), train.n_users + train.n_movies)
    return {
        "rmse": split.rmse(model.predict(test.users, test.movies).numpy()),
        "total_s": total,
        "preparation_s": ends[0] - reports[0].seconds - started,
        "epoch_s": median(report.seconds for report in reports),
        # The first epoch's cannot be told from the preparation's.
        "epoch_cpu_s": median(later - earlier for earlier, later in pairwise(cpu)) if len(cpu) > 1 else None,
        "total_cpu_s": total_cpu,
        "epochs": len(reports),
        "rank": rank,
        "curve": [report.validation_rmse for report in reports] if validates else [],
    }


def measure_pipeline(data: str) -> Result:
    """Trains what the pipeline's train step trains with its defaults: the star model, then the ranking model.

    Returns:
        As ``measure``, of the star model; total_s and total_cpu_s of both models.
    """
    split = load(data)
    columns = (split.train.users.astype(np.int64), split.train.movies.astype(np.int64), split.train.ratings)
    ratings = pa.table(dict(zip((USER, MOVIE, RATING), columns, strict=True)))
    config, lists = configure(DEFAULT_SOLVER, {}), configure_ranking(DEFAULT_RANKING, {}, {"seed": 0})
    assert isinstance(config, GaussianConfig)
    started, started_cpu = time.perf_counter(), time.process_time()
    model = train_model(ratings, ratings.slice(0, 0), config, device=torch.device("cpu"), ranking=lists)
    total, total_cpu = time.perf_counter() - started, time.process_time() - started_cpu
    epochs = model.metrics["epochs"]
    predicted = model.predict(pa.array(split.test.users.astype(np.int64)), pa.array(split.test.movies.astype(np.int64)))
    return {
        "rmse": split.rmse(predicted),
        "total_s": total,
        "total_cpu_s": total_cpu,
        "epoch_s": median(epoch["seconds"] for epoch in epochs),
        "epochs": len(epochs),
        "rank": config.fitted_rank(len(ratings), len(model.users) + len(model.movies)),
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
