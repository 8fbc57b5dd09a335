"""Data sets, split into training and test part."""

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
    """Columns of ratings: users int32[N], movies int32[N], ratings float32[N]."""

    users: npt.NDArray[np.int32]
    movies: npt.NDArray[np.int32]
    ratings: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ratings)

    def __getitem__(self, rows: slice | npt.NDArray[np.intp]) -> "Ratings":
        return Ratings(self.users[rows], self.movies[rows], self.ratings[rows])


@dataclass(frozen=True)
class Split:
    """Training and test ratings, with ids from 0; an id may occur in only one of them."""

    train: Ratings
    test: Ratings
    n_users: int
    n_movies: int

    def rmse(self, predictions: npt.NDArray[np.floating]) -> float:
        """RMSE on the test part of ``predictions`` clipped to the range of the training ratings; NaN counts as the
        mean."""
        known = np.where(np.isnan(predictions), self.train.ratings.mean(), predictions)
        clipped = np.clip(known, self.train.ratings.min(), self.train.ratings.max())
        return float(np.sqrt(np.mean((clipped - self.test.ratings) ** 2, dtype=np.float64)))


def load(name: str) -> Split:
    """Loads ``planted:ROWS:SEED`` or ``csv:FILE:SEED``; the first tenth of the rows is the test part.

    A CSV file has a header and user, movie and rating as its first columns; ``default_rng(SEED)`` shuffles its rows."""
    kind, _, rest = name.partition(":")
    place, _, number = rest.rpartition(":")
    if kind == "csv":
        return _load_csv(Path(place), int(number))
    directory = _planted(int(place), int(number))
    columns = (np.load(directory / f"{column}.npy") for column in ("user", "movie", "rating"))
    meta = json.loads((directory / "meta.json").read_text())
    return _split(Ratings(*columns), meta["n_users"], meta["n_movies"])


def floor(name: str) -> float:
    """RMSE of the true parameters of a planted data set."""
    _, rows, seed = name.split(":")
    floor_linear: float = json.loads((_planted(int(rows), int(seed)) / "meta.json").read_text())["floor_linear"]
    return floor_linear


def _planted(rows: int, seed: int) -> Path:
    """The directory of a planted data set, generated if missing, in its own process: its memory is not part of the
    measurement."""
    directory = CACHE / f"planted-{rows}-{seed}"
    if not (directory / "meta.json").exists():
        done = apart(planted.write, rows=rows, seed=seed, path=str(directory))
        if "error" in done:
            raise RuntimeError(f"cannot write planted ratings: {done['error']}")
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
