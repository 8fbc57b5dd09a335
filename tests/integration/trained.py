"""A small trained model whose users come in groups, and its lists by the library."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy.sparse import csr_array

from mf.model_directory import TrainedModel, TrainedRanking
from mf.ranking import RankingConfig
from mf.ratings.schema import MOVIE, RATING, USER
from mf.solvers.adam import AdamConfig
from mf.train import train, train_ranking

USERS, MOVIES, FACTORS = 150, 1200, 24
STRANGER, UNSEEN = 10**6, 10**6 + 1  # a user with one rating, a movie that only this user rated
CPU = torch.device("cpu")


@dataclass
class Trained:
    """A model and the ratings that it was trained on."""

    model: TrainedModel
    ratings: pa.Table

    @property
    def ranking(self) -> TrainedRanking:
        assert self.model.ranking
        return self.model.ranking

    def own(self, user: Any) -> dict[int, float]:
        """The ratings of a user by movie."""
        return {row[MOVIE]: row[RATING] for row in self.ratings.to_pylist() if row[USER] == user}

    def best(self, ratings: dict[int, float], k: int, exclude: bool = True) -> list[tuple[int, float, int | None]]:
        """The library's list for a user with ``ratings``: movie, score and the rated movie that speaks for it."""
        model, ids = self.ranking.model, self.ranking.movies.ids.to_pylist()
        rows, stars = self.ranking.movies.rows(pa.array([*ratings], pa.int64())), [*ratings.values()]
        rated = csr_array((np.ones(len(rows)), ([0] * len(rows), rows)), shape=(1, len(ids))) if exclude else None
        found, scores = model.recommend(model.user_vector(rows, stars)[None], k, rated)
        because = model.because(found[0], rows, stars)
        return [
            (ids[row], float(score), ids[why] if why >= 0 else None)
            for row, score, why in zip(found[0], scores[0], because, strict=True)
        ]


def train_groups(user_id: Callable[[int], Any] = int, users: int = USERS) -> Trained:
    """Groups of users who rate the same movies; the stranger is known to the ranking model alone."""
    rng = np.random.default_rng(0)
    group, genre = rng.integers(0, 6, users), rng.integers(0, 6, MOVIES)
    popularity = rng.exponential(size=MOVIES)
    rows = []
    for user in range(users):
        weight = popularity * np.where(genre == group[user], 8, 1)
        for movie in rng.choice(MOVIES, rng.integers(5, 120), replace=False, p=weight / weight.sum()):
            stars = np.clip(round(2 * rng.normal(3.2 + (genre[movie] == group[user]), 0.8)) / 2, 0.5, 5)
            rows.append((user_id(user + 7), int(movie) * 3, float(stars)))
    ids, movies, stars = zip(*rows, (user_id(STRANGER), UNSEEN, 4.5), strict=True)
    all_ratings = pa.table({USER: ids, MOVIE: movies, RATING: pa.array(stars, pa.float32())})
    ratings = all_ratings.slice(0, len(rows))
    model = train(ratings, ratings.slice(0, 0), AdamConfig(factors=6, epochs=2), device=CPU)
    model.ranking = train_ranking(all_ratings, RankingConfig(factors=FACTORS), device=CPU)
    return Trained(model, all_ratings)
