"""Cost of an evaluation: errors, top lists of all test users, confidence intervals."""

import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.apart import Result, run
from benchmarks.bars import Bar, bars
from benchmarks.data import CACHE, Ratings, load
from benchmarks.report import failures, number, table
from mf.evaluation.evaluate import evaluate
from mf.evaluation.metrics import LIST_METRICS, plain
from mf.model_directory import TrainedModel
from mf.parallel import cores
from mf.ratings.schema import MOVIE, RATING, USER
from mf.solvers import configure
from mf.train import train

METRICS = [metric.name for metric in LIST_METRICS]
RANKERS = {"model": "model", "user_movie_bias": "movie biases", "popularity": "popularity"}
MINUTES, PEAK_MB = 5, 4000
EPOCHS = 7  # of sgd: any reasonable model will do


def section(rows: int) -> str:
    """Seconds, memory and ranking metrics on ``rows`` planted ratings, as Markdown."""
    data = f"planted:{rows}:0"
    directory = CACHE / "ranking-model"
    fitted = run("a model to evaluate", fit, data=data, directory=str(directory))
    measured = run("evaluation", measure, data=data, directory=str(directory)) if "error" not in fitted else fitted
    shutil.rmtree(directory, ignore_errors=True)
    if "error" in measured:
        return failures({"the evaluation": measured})
    ranking = measured["ranking"]
    said = (
        f"`evaluate` of an sgd model of 64 factors on the test tenth of {rows:,} planted ratings, {cores()} cores: the "
        f"errors, the lists of all {ranking['users']:,} users with a relevant test movie out of {ranking['movies']:,} "
        f"movies, by the model and by two baselines, and all intervals. It took {measured['seconds']:.0f} s "
        f"({measured['cpu_s']:.0f} s of CPU time) and at most "
        f"{measured['peak_mb']:,.0f} MB, of which the ratings are {measured['ratings_mb']:,.0f} MB; the scores of all "
        f"users and movies would be {measured['matrix_gb']:.1f} GB. The model's RMSE is "
        f"{measured['model']['rmse']:.4f}, that of user + movie biases {measured['user_movie_bias']['rmse']:.4f}."
    )
    lines = [
        (label, *(_with_interval(ranking[ranker], metric) for metric in METRICS), f"{ranking[ranker]['coverage']:.2%}")
        for ranker, label in RANKERS.items()
    ]
    header = ("order by", *(f"{metric}@{ranking['k']}" for metric in METRICS), "coverage")
    why = (
        "What planted users have rated does not depend on what they like, as it does for people, so that popularity "
        "has the better lists by construction."
    )
    reached = bars(
        [
            Bar("minutes", measured["seconds"] / 60, at_most=MINUTES),
            Bar("peak MB", measured["peak_mb"], at_most=PEAK_MB, digits=0),
        ]
    )
    return "\n\n".join([said, table(header, lines), why, reached])


def fit(data: str, directory: str) -> Result:
    """Trains a model and saves it."""
    training = _table(load(data).train)
    config = configure("sgd", {"epochs": EPOCHS})
    train(training, training[:0], config, device=torch.device("cpu")).save(Path(directory))
    return {}


def measure(data: str, directory: str) -> Result:
    """Seconds and CPU seconds of the evaluation, and its results."""
    split, model = load(data), TrainedModel.load(Path(directory))
    training, test = _table(split.train), _table(split.test)
    del split
    started, started_cpu = time.perf_counter(), time.process_time()
    found = evaluate(training, test, model)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "ratings_mb": (training.nbytes + test.nbytes) / 1e6,
        "matrix_gb": 4 * found.ranking.users * found.ranking.movies / 1e9,
        "ranking": plain(found.ranking),
        "model": plain(found.model),
        "user_movie_bias": plain(found.user_movie_bias),
    }


def _table(part: Ratings) -> pa.Table:
    ids = {name: ids.astype(np.int64) for name, ids in ((USER, part.users), (MOVIE, part.movies))}
    return pa.table({**ids, RATING: part.ratings})


def _with_interval(score: Result, metric: str) -> str:
    interval = score[f"{metric}_interval"]
    return f"{number(score[metric], 4)} ({number(interval['low'], 4)}–{number(interval['high'], 4)})"
