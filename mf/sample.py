"""Small planted ratings: a sample with a known noise floor."""

import csv
import itertools
import json
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mf.files import directory_written_aside

Floats = npt.NDArray[np.float64]

USERS, MOVIES, RATINGS, RANK = 320, 240, 11_000, 2
MEAN, NOISE = 3.4, 0.55
USER_BIAS, MOVIE_BIAS, TASTE = 0.35, 0.45, 0.70  # standard deviations of b_u, b_m and p_u·q_m
# Users rate what they like: the chance that a pair is rated is multiplied by exp(CHOICE · p_u·q_m), 2.9 between a
# movie one standard deviation above a user's mean taste and one as far below. With 0 lists hardly beat popularity; with
# 1 popular movies are those of the common taste, and the biases leave the model too little.
CHOICE = 0.75
FIRST_SECOND, SECONDS = 1_577_836_800, 4 * 365 * 86_400  # four years from 2020-01-01

TITLE_WORDS = (
    "Silent Broken Golden Last Hidden Crimson Distant Burning Little Lonely Frozen Endless Paper Midnight Wild",
    "Harbour Garden Orchestra Letter Summer Lighthouse Stranger River Kingdom Mirror Train Island Promise Winter",
    "Rising Returns Forever Calling Dancing Waiting Sings Remembers",
)
GENRES = ("Comedy", "Romance", "Drama", "Mystery", "Thriller", "Horror", "Fantasy", "Adventure")  # around a circle


@dataclass(frozen=True)
class Sample:
    """Files of the sample, its titles, and the lowest RMSE that a predictor can reach."""

    ratings_csv: Path
    titles: dict[int, str]
    noise_floor: float


def write_sample(directory: Path, seed: int = 0) -> Sample:
    """Writes ``ratings.csv`` (userId, movieId, rating, timestamp; a few hundred KB), ``movies.csv`` (movieId, title,
    genres) and ``truth.json`` to ``directory``.

    A rating is mu + b_u + b_m + p_u·q_m + noise, rounded to half stars and clipped to 0.5 … 5. A few users and movies
    have most of the ratings, and users rate rather what suits their taste p_u·q_m, so that a list can be better than
    the most popular movies. The noise floor is the RMSE of the conditional mean of the rounded rating, given the true
    parameters.
    """
    rng = np.random.default_rng(seed)
    p, q = (rng.normal(size=(n, RANK)) * np.sqrt(TASTE / np.sqrt(RANK)) for n in (USERS, MOVIES))
    taste = p @ q.T
    users, movies = _rated_pairs(rng, taste)
    b_u, b_m = rng.normal(0, USER_BIAS, USERS), rng.normal(0, MOVIE_BIAS, MOVIES)
    score = MEAN + b_u[users] + b_m[movies] + taste[users, movies]
    ratings = np.clip(np.round((score + rng.normal(0, NOISE, len(score))) * 2) / 2, 0.5, 5.0)
    times = FIRST_SECOND + rng.integers(0, SECONDS, len(score))
    names = [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(USERS)]
    titles = _titles(rng)
    floor = float(np.sqrt(np.mean((ratings - _expected_rating(score)) ** 2)))

    with directory_written_aside(directory, seal="truth.json") as aside:
        with (aside / "ratings.csv").open("w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["userId", "movieId", "rating", "timestamp"])
            rows.writerows(zip((names[u] for u in users), movies + 1, ratings, times, strict=True))
        with (aside / "movies.csv").open("w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["movieId", "title", "genres"])
            rows.writerows((*title, genres) for title, genres in zip(titles.items(), _genres(q), strict=True))
        (aside / "truth.json").write_text(json.dumps({"noise_floor": floor, "seed": seed}) + "\n")
    return Sample(directory / "ratings.csv", titles, floor)


def _rated_pairs(rng: np.random.Generator, taste: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct pairs in random order; activity of users is log-normal, popularity of movies a power law, and the chance
    grows with ``taste`` float64[users, movies]."""
    activity = rng.lognormal(0, 0.7, USERS)
    popularity = 1 / (np.arange(MOVIES) + 8) ** 0.7
    chance = (np.outer(activity, rng.permutation(popularity)) * np.exp(CHOICE * taste)).ravel()
    pairs = rng.choice(USERS * MOVIES, RATINGS, replace=False, p=chance / chance.sum())
    return pairs // MOVIES, pairs % MOVIES


def _expected_rating(score: Floats) -> Floats:
    """E[clip(round(score + noise))] = 0.5 + Σ 0.5 · P(rating ≥ level) over the half-star levels above 0.5."""
    from scipy.special import ndtr  # half a second to import, and most runs need no sample

    levels = np.arange(1.0, 5.01, 0.5)
    expected: Floats = 0.5 + 0.5 * ndtr((score[:, None] - (levels - 0.25)) / NOISE).sum(1)
    return expected


def _titles(rng: np.random.Generator) -> dict[int, str]:
    """A distinct title for every movie id, from 1."""
    names = [" ".join(words) for words in itertools.product(*(words.split() for words in TITLE_WORDS))]
    chosen = rng.choice(len(names), MOVIES, replace=False)
    return {i + 1: f"The {names[n]} ({rng.integers(1950, 2025)})" for i, n in enumerate(chosen)}


def _genres(q: Floats) -> list[str]:
    """Two genres per movie, ``Comedy|Drama``, from the direction of its vector, its taste."""
    angle = np.arctan2(q[:, 1], q[:, 0]) / (2 * np.pi) * len(GENRES)
    first = np.floor(angle).astype(int) % len(GENRES)
    second = (first + np.where(angle % 1 < 0.5, -1, 1)) % len(GENRES)
    return [f"{GENRES[a]}|{GENRES[b]}" for a, b in zip(first, second, strict=True)]
