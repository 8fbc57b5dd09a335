"""Memory of ingest, split and evaluate on more ratings than memory holds."""

import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.apart import Result, run
from benchmarks.report import NONE, table
from mf.evaluation.judge import judge
from mf.ingest import ingest
from mf.model import MatrixFactorization
from mf.model_directory import TrainedModel, TrainedRanking
from mf.parallel import cores
from mf.ranking import RankingModel
from mf.ratings.batches import Batches
from mf.ratings.config import IngestConfig, SplitConfig
from mf.ratings.schema import MOVIE, RATED_AT, RATING, TIMESTAMP, USER
from mf.ratings.split import PARTS, split_file
from mf.ratings.vocabulary import Vocabulary

ROWS = 100_000_000
CAP_MB = 4096  # of each step
PER_USER, MOVIES, FACTORS = 150, 60_000, 64
CHUNK = 1 << 20  # ratings per file of the source
IDS = ("integers", "UUIDs")
SPLITS = ("hash", "time")


def section(rows: int = ROWS) -> str:
    """Runs the steps one after the other, each in a process of its own, for integer and for text ids of users."""
    found: list[tuple[str, str, Result]] = []
    for ids in IDS:
        with tempfile.TemporaryDirectory(prefix="mf-steps-") as scratch:

            def measured(step: str, function: Callable[..., Result], **given: str) -> None:
                found.append((ids, step, run(f"{ids}: {step}", function, folder=scratch, **given)))  # noqa: B023

            run(f"{ids}: plant {rows:,}", plant, folder=scratch, rows=rows, ids=ids)
            run(f"{ids}: make a model", make_model, folder=scratch, rows=rows, ids=ids)
            measured("ingest", measure_ingest)
            for kind in SPLITS:
                measured(f"split {kind}", measure_split, kind=kind)
                measured(f"evaluate, {kind}", measure_evaluate)
    lines = [
        (ids, step, *([NONE] * 3 if "error" in one else _numbers(one)), one.get("error", one.get("what", "")))
        for ids, step, one in found
    ]
    over = [f"{step} of {ids}" for ids, step, one in found if one.get("peak_mb", 0) > CAP_MB or "error" in one]
    verdict = f"More than {CAP_MB:,} MB, or an error: {', '.join(over)}." if over else f"None needs {CAP_MB:,} MB."
    return (
        f"{rows:,} planted ratings with times from a folder of Parquet files, {cores()} cores, each step in a process "
        f"of its own. {verdict}\n\n"
        + table(["users' ids", "step", "seconds", "CPU seconds", "peak MB", "what it did"], lines)
    )


def _numbers(one: Result) -> tuple[str, str, str]:
    return f"{one['seconds']:.0f}", f"{one['cpu_seconds']:.0f}", f"{one['peak_mb']:,.0f}"


def plant(folder: str, rows: int, ids: str) -> Result:
    """A folder of Parquet files: users in random order, popular movies, half stars around a movie's own mean."""
    rng = np.random.default_rng(0)
    names, bias = user_ids(rows, ids), movie_bias()
    source = Path(folder) / "source"
    source.mkdir()
    for start in range(0, rows, CHUNK):
        n = min(CHUNK, rows - start)
        users = (len(names) * rng.random(n) ** 1.5).astype(np.int64)
        movies = (MOVIES * rng.random(n) ** 3).astype(np.int64)
        stars = np.clip(np.round((3.5 + bias[movies] + rng.normal(0, 0.9, n)) * 2) / 2, 0.5, 5).astype(np.float32)
        seconds = 1_400_000_000 + rng.integers(0, 300_000_000, n)
        columns = {
            USER: names.take(pa.array(users)),
            MOVIE: pa.array(movies),
            RATING: pa.array(stars),
            RATED_AT: pa.array(seconds * 1_000_000).cast(TIMESTAMP),
        }
        pq.write_table(pa.table(columns), source / f"part-{start:012}.parquet", compression="zstd")
    return {"files": len(list(source.iterdir()))}


def user_ids(rows: int, ids: str) -> pa.Array:
    """One id per user, in no order."""
    numbers = np.random.default_rng(1).permutation(max(1, rows // PER_USER))
    if ids == "integers":
        return pa.array(numbers)
    return pa.array([str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))) for number in numbers])


def movie_bias() -> npt.NDArray[np.float32]:
    """float32[movies]."""
    return np.random.default_rng(2).normal(0, 0.5, MOVIES).astype(np.float32)


def make_model(folder: str, rows: int, ids: str) -> Result:
    """A model with the movies' planted biases and random vectors, for all users, with a ranking model."""
    users, movies = Vocabulary.of(user_ids(rows, ids)), Vocabulary(pa.array(np.arange(MOVIES)))
    generator = torch.Generator().manual_seed(0)
    module = MatrixFactorization(len(users), MOVIES, FACTORS, rating_min=0.5, rating_max=5, mu=3.5)
    with torch.no_grad():
        module.user_factors.weight.normal_(0, 0.05, generator=generator)
        module.movie_factors.weight.normal_(0, 0.05, generator=generator)
        module.movie_bias.weight.copy_(torch.from_numpy(movie_bias())[:, None])
    vectors = module.movie_factors.weight.detach().numpy()
    lists = RankingModel(
        np.linspace(1, 0, MOVIES, dtype=np.float32), vectors, vectors, vectors,
        mu=3.5, sd=1.0, rho=0.5, regularization=1.0, teacher_rank=FACTORS, energy_beyond=0.0, relevance_threshold=4.0,
    )  # fmt: skip
    ranking = TrainedRanking(lists, users, movies, module.user_factors.weight.detach().numpy(), {}, {"seconds": 0.0})
    model = TrainedModel(module, users, movies, "planted", "vb", {}, {"train": rows, "validation": 0}, ranking=ranking)
    model.save(Path(folder) / "model")
    return {"users": len(users)}


def measure_ingest(folder: str) -> Result:
    """From the folder of files to one sorted file."""
    place, started = Path(folder), time.perf_counter()
    config = IngestConfig(ratings_csv=str(place / "source"))
    provenance = ingest(config, place / "ratings.parquet", place / "rejects.csv")
    shutil.rmtree(place / "source")
    return {"seconds": time.perf_counter() - started, "what": f"kept {provenance.rows_kept:,}"}


def measure_split(folder: str, kind: str) -> Result:
    """Into the three parts."""
    place, started = Path(folder), time.perf_counter()
    written = split_file(place / "ratings.parquet", _parts(folder), SplitConfig.of(split=kind))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "what": ", ".join(f"{n:,} {name}" for n, name in zip(written.rows, PARTS, strict=True))}


def measure_evaluate(folder: str) -> Result:
    """As the evaluate step does, without a database."""
    place, started = Path(folder), time.perf_counter()
    train, validation, test = map(Batches, _parts(folder))
    model = TrainedModel.load(place / "model")
    judged = judge(model, train, test, validation, html=place / "report.html", document=place / "report.json")
    found = judged.evaluation
    what = f"RMSE {found.model['rmse']:.4f} on {found.test_rows:,} test ratings, lists of {found.ranking.users:,} users"
    return {"seconds": time.perf_counter() - started, "what": what}


def _parts(folder: str) -> list[Path]:
    return [Path(folder) / f"{part}.parquet" for part in PARTS]
