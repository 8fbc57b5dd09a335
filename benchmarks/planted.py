"""Planted ratings: shaped like MovieLens 25M, with known parameters.

python -m benchmarks.planted 2e6 planted.csv
python -m benchmarks.planted 2e6 some/directory --seed 3
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from mf.errors import ConfigError, reported
from mf.files import directory_written_aside, written_aside

Floats = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]

FULL = 23_585_165  # ratings at full size, with FULL_USERS and FULL_MOVIES
FULL_USERS, FULL_MOVIES = 160_000, 59_000
MEAN, NOISE = 3.53, 0.70
USER_BIAS, MOVIE_BIAS, TASTE, RANK = 0.40, 0.42, 0.46, 16  # standard deviations of b_u, b_m and p_u·q_m
LOWEST, HIGHEST = 0.5, 5.0
SMALLEST = 5000  # ratings: at least 200 users with more than 18 each
CHUNK = 1 << 20  # ratings per step

# Number of ratings of the movie at a popularity rank at full size, from MovieLens 25M; interpolated on logarithmic
# scales.
POPULARITY_RANK = (1, 10, 100, 1000, 3000, 5000, 10_000, 20_000, 30_000, FULL_MOVIES)
POPULARITY_COUNT = (81e3, 60e3, 30e3, 5.5e3, 1.4e3, 550, 120, 18, 7, 1.2)


@dataclass(frozen=True)
class Planted:
    """Ratings in random order: half_star(clip(score + noise)), score = mean + b_u + b_m + p_u·q_m.

    Attributes:
        users, movies: int32[N], from 0; each pair once.
        ratings: float32[N], 0.5, 1.0, … 5.0.
        scores: float32[N], the true score of each rating, not clipped.
        n_users, n_movies: number of users and of movies; a movie may have no rating.
    """

    users: Int32s
    movies: Int32s
    ratings: Float32s
    scores: Float32s
    n_users: int
    n_movies: int

    @property
    def floor_linear(self) -> float:
        """RMSE of the clipped true scores: that of a model of this form with the true parameters."""
        error = np.clip(self.scores, LOWEST, HIGHEST) - self.ratings
        return float(np.sqrt(np.mean(error**2, dtype=np.float64)))


def generate(n: int, seed: int = 0) -> Planted:
    """Generates ``n`` ratings, the same for the same ``n`` and ``seed``; the order of the draws must not change.

    Raises:
        ConfigError: ``n`` is below ``SMALLEST``.
    """
    if n < SMALLEST:
        raise ConfigError(f"planted ratings: found {n:,}, expected {SMALLEST:,} or more: give a larger number")
    rng = np.random.default_rng(seed)
    n_users = max(200, round(FULL_USERS * n / FULL))
    n_movies = min(FULL_MOVIES, max(500, round(FULL_MOVIES * (n / FULL) ** 0.55)))
    popularity = _popularity(n_movies)
    users, movies = _pairs(rng, n, _activity(rng, n, n_users, n_movies), popularity)

    b_u = rng.normal(0, USER_BIAS, n_users).astype(np.float32)
    known = np.log(popularity)  # popular movies are rated slightly higher
    known = (known - known.mean()) / known.std()
    b_m = (MOVIE_BIAS * (0.35 * known + 0.937 * rng.normal(0, 1, n_movies))).astype(np.float32)
    b_m -= np.average(b_m, weights=np.bincount(movies, minlength=n_movies))
    strength = np.arange(1, RANK + 1) ** -0.5
    strength *= TASTE / np.sqrt((strength**2).sum())
    p, q = ((rng.standard_normal((rows, RANK)) * np.sqrt(strength)).astype(np.float32) for rows in (n_users, n_movies))

    scores, ratings = np.empty(n, np.float32), np.empty(n, np.float32)
    for start in range(0, n, CHUNK):
        part = slice(start, min(n, start + CHUNK))
        u, m = users[part], movies[part]
        scores[part] = MEAN + b_u[u] + b_m[m] + np.einsum("ij,ij->i", p[u], q[m])
        noise = rng.standard_normal(len(u), dtype=np.float32) * NOISE
        ratings[part] = _half_star(scores[part] + noise)
    # Unused, but part of the sequence of draws behind the published figures.
    rng.choice(n, min(n, 2_000_000), replace=False)
    order = rng.permutation(n)
    return Planted(users[order], movies[order], ratings[order], scores[order], n_users, n_movies)


def _popularity(n_movies: int) -> Floats:
    """Share of the ratings of each movie, in descending order."""
    rank = np.maximum(np.arange(1, n_movies + 1) * (FULL_MOVIES / n_movies), 1)
    count = np.exp(np.interp(np.log(rank), np.log(POPULARITY_RANK), np.log(POPULARITY_COUNT)))
    shares: Floats = count / count.sum()
    return shares


def _activity(rng: np.random.Generator, n: int, n_users: int, n_movies: int) -> Floats:
    """Expected ratings per user: log-normal, at least 18, at most 12% of the movies."""
    activity = np.exp(rng.normal(0, 1.25, n_users))
    activity = 18 + activity * (n / n_users - 18) / activity.mean()
    capped: Floats = np.minimum(activity, n_movies * 0.12)
    return capped


def _pairs(rng: np.random.Generator, n: int, activity: Floats, popularity: Floats) -> tuple[Int32s, Int32s]:
    """``n`` distinct pairs: users and movies are drawn independently and matched at random until enough distinct pairs
    remain."""
    n_users, n_movies = len(activity), len(popularity)
    keys = np.empty(0, np.int64)
    while (missing := n - len(keys)) > 0:
        draws = int(missing * 1.18) + 1000
        user_counts = rng.multinomial(draws, activity / activity.sum())
        movie_counts = rng.multinomial(draws, popularity)
        users = np.repeat(np.arange(n_users, dtype=np.int64), user_counts)
        movies = np.repeat(np.arange(n_movies, dtype=np.int32), movie_counts)
        rng.shuffle(movies)
        keys = np.sort(np.concatenate([keys, users * n_movies + movies]), kind="stable")
        keys = keys[np.r_[True, keys[1:] != keys[:-1]]]
    if len(keys) > n:
        keys = np.delete(keys, rng.choice(len(keys), len(keys) - n, replace=False))
    return (keys // n_movies).astype(np.int32), (keys % n_movies).astype(np.int32)


def _half_star(scores: Float32s) -> Float32s:
    return np.clip(np.round(scores * 2) / 2, LOWEST, HIGHEST)


def write(rows: int, seed: int, path: str) -> dict[str, float]:
    """Writes planted ratings as CSV if ``path`` ends with ``.csv``, else as a directory of ``user.npy``, ``movie.npy``,
    ``rating.npy`` and ``meta.json``. Returns the content of ``meta.json``."""
    data = generate(rows, seed)
    meta = {
        "n": rows,
        "seed": seed,
        "n_users": data.n_users,
        "n_movies": data.n_movies,
        "floor_linear": data.floor_linear,
    }
    if path.endswith(".csv"):
        columns = {"userId": data.users, "movieId": data.movies, "rating": data.ratings}
        with written_aside(Path(path)) as aside:
            pd.DataFrame(columns).to_csv(aside, index=False)
        return meta
    with directory_written_aside(Path(path), seal="meta.json") as aside:
        for name, values in (("user", data.users), ("movie", data.movies), ("rating", data.ratings)):
            np.save(aside / f"{name}.npy", values)
        (aside / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return meta


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted", description=generate.__doc__)
    parser.add_argument("rows", type=lambda text: int(float(text)), help="number of ratings")
    parser.add_argument("path", help="a .csv file, or a directory for .npy files")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    with reported():
        print(json.dumps(write(given.rows, given.seed, given.path)))


if __name__ == "__main__":
    main()
