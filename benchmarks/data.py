"""The data sets, each divided into a training and a test part."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks import planted
from benchmarks.apart import apart

HELD_OUT = 0.1
CACHE = Path("build/benchmarks")


@dataclass(frozen=True)
class Ratings:
    """users int32[N], movies int32[N], ratings float32[N]."""

    users: npt.NDArray[np.int32]
    movies: npt.NDArray[np.int32]
    ratings: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ratings)

    def __getitem__(self, rows: slice | npt.NDArray[np.intp]) -> "Ratings":
        return Ratings(self.users[rows], self.movies[rows], self.ratings[rows])


@dataclass(frozen=True)
class Split:
    """Two parts of ratings whose ids are 0 … n_users - 1 and 0 … n_movies - 1; some may occur in one part alone."""

    train: Ratings
    test: Ratings
    n_users: int
    n_movies: int

    def rmse(self, predictions: npt.NDArray[np.floating]) -> float:
        """RMSE on the test part of predictions clipped to the range of the training ratings; where there is none (NaN)
        the mean stands for it."""
        known = np.where(np.isnan(predictions), self.train.ratings.mean(), predictions)
        clipped = np.clip(known, self.train.ratings.min(), self.train.ratings.max())
        return float(np.sqrt(np.mean((clipped - self.test.ratings) ** 2, dtype=np.float64)))


def load(name: str) -> Split:
    """The data set ``planted:ROWS:SEED``, of which the first tenth is the test part, or ``csv:FILE:SEED``: a file with
    a header and user, movie and rating in its first three columns, whose rows ``default_rng(SEED).permutation`` puts
    into order; again the first tenth is the test part."""
    kind, _, rest = name.partition(":")
    place, _, number = rest.rpartition(":")
    if kind == "csv":
        return _load_csv(Path(place), int(number))
    directory = _planted(int(place), int(number))
    columns = (np.load(directory / f"{column}.npy") for column in ("user", "movie", "rating"))
    meta = json.loads((directory / "meta.json").read_text())
    return _split(Ratings(*columns), meta["n_users"], meta["n_movies"])


def floor(name: str) -> float:
    """``floor_linear`` of a planted data set."""
    _, rows, seed = name.split(":")
    floor_linear: float = json.loads((_planted(int(rows), int(seed)) / "meta.json").read_text())["floor_linear"]
    return floor_linear


def _planted(rows: int, seed: int) -> Path:
    """The directory of a planted data set, written when it is not there: in a process of its own, since what the
    generator needs is not part of what is measured."""
    directory = CACHE / f"planted-{rows}-{seed}"
    if not (directory / "meta.json").exists():
        done = apart(planted.write, rows=rows, seed=seed, path=str(directory))
        if "error" in done:
            raise RuntimeError(f"planted ratings could not be written: {done['error']}")
    return directory


def _load_csv(path: Path, seed: int) -> Split:
    table = pd.read_csv(path, usecols=[0, 1, 2])
    users, movies = (np.unique(table.iloc[:, column], return_inverse=True)[1].astype(np.int32) for column in (0, 1))
    data = Ratings(users, movies, table.iloc[:, 2].to_numpy(np.float32, copy=True))
    order = np.random.default_rng(seed).permutation(len(data))
    return _split(data[order], int(users.max()) + 1, int(movies.max()) + 1)


def _split(data: Ratings, n_users: int, n_movies: int) -> Split:
    held_out = int(len(data) * HELD_OUT)
    return Split(data[held_out:], data[:held_out], n_users, n_movies)
