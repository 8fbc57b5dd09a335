"""Example users for the report: their best-rated movies and the model's recommendations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mf.evaluation.encoded import Part, take_rows
from mf.model_directory import TrainedModel
from mf.ratings.batches import Batches
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER, has_ratings
from mf.ratings.vocabulary import Vocabulary

ACTIVITY = (0.1, 0.5, 0.9)  # quantiles of the users' numbers of ratings: a light, a median and a heavy user
SHOWN = 8  # movies per list


@dataclass(frozen=True)
class Movie:
    """A movie that a user has rated (or clicked, where there are no ratings), or is recommended."""

    movie_id: int | str
    title: str | None  # None where unknown
    actual: float | None  # the user's rating; of a recommended movie the test rating, if there is one; 1 for a click
    predicted: float | None  # clipped to the rating range; None for clicks


@dataclass(frozen=True)
class Example:
    """A user with ratings in the training part and in the test part."""

    user_id: int | str
    ratings: int  # in the training and the validation part
    best: tuple[Movie, ...]  # the highest of these; of equal ratings, or of clicks, the newest first
    recommended: tuple[Movie, ...]  # movies not rated in either part, the best first


def examples(
    train: Part, validation: Part | None, test: pa.Table, model: TrainedModel, titles: Mapping[str, str]
) -> tuple[Example, ...]:
    """A light, a median and a heavy user; the same ones whatever the order of the rows.

    Args:
        train, validation, test: ratings with ids of the same types; validation may be None.
        model: trained on ``train``.
        titles: movie titles by id as text; may be incomplete.
    """
    parts = [Batches(part) for part in (train, validation) if part is not None]
    chosen = _choose_users(parts[0], test)
    if not chosen:
        return ()
    users = pa.array(chosen, test[USER].type)
    rated = pa.concat_tables([part.of_users(users) for part in parts])
    test = Batches(test).of_users(users)

    def of(user: Any, ratings: pa.Table) -> pa.Table:
        return Batches(ratings).of_users(pa.array([user], users.type))

    return tuple(_example(user, of(user, rated), of(user, test), model, titles) for user in chosen)


def _choose_users(train: Batches, test: pa.Table) -> list[Any]:
    """Users at the quantiles ``ACTIVITY`` among those in both parts, by number of training ratings."""
    found = Vocabulary.of(test[USER])
    counts = np.zeros(len(found), np.int64)
    for batch in train.read(USER):
        rows = found.rows(batch[USER])
        counts += np.bincount(rows[rows >= 0], minlength=len(counts))
    # Of equal counts the lower id comes first.
    users = np.argsort(counts, kind="stable")[np.count_nonzero(counts == 0) :]
    if not len(users):
        return []
    chosen = sorted({int(quantile * (len(users) - 1)) for quantile in ACTIVITY})
    return list(found.ids.take(pa.array(users[chosen])).to_pylist())


def _example(user: Any, rated: pa.Table, test: pa.Table, model: TrainedModel, titles: Mapping[str, str]) -> Example:
    newest_first = [(RATED_AT, "descending")] if RATED_AT in rated.column_names else []
    highest_first = [(RATING, "descending")] if has_ratings(rated) else []
    best = rated.sort_by([*highest_first, *newest_first, (MOVIE, "ascending")])[:SHOWN]
    recommended = _recommended(user, rated[MOVIE], model)

    def movies(ids: pa.Array | pa.ChunkedArray, ratings: pa.Table) -> tuple[Movie, ...]:
        known = ratings[MOVIE].to_pylist()
        stars = ratings[RATING].to_pylist() if has_ratings(ratings) else [1.0] * len(known)
        actual = dict(zip(known, stars, strict=True))
        predicted: Sequence[Any] = [None] * len(ids)
        if model.module:
            predicted = model.predict(pa.array([user] * len(ids), model.users.ids.type), ids).tolist()
        return tuple(
            Movie(movie, titles.get(str(movie)), actual.get(movie), rating)
            for movie, rating in zip(ids.to_pylist(), predicted, strict=True)
        )

    return Example(user, len(rated), movies(best[MOVIE], best), movies(recommended, test))


@torch.no_grad()
def _recommended(user: Any, rated: pa.ChunkedArray, model: TrainedModel) -> pa.Array:
    """Ids of the movies with the highest ranking scores or, without a ranking model, unclipped predictions, less those
    ``rated``; of equal ones the lower id."""
    who = pa.array([user], model.users.ids.type)
    if model.ranking:
        catalogue, vectors = model.ranking.movies, take_rows(model.ranking.vectors, model.ranking.users.rows(who))
        scores = model.ranking.model.scores(vectors)[0]
    else:
        device, catalogue, module = model.device, model.movies, model.star_model()
        movies = torch.arange(len(catalogue), device=device)
        user_row = torch.from_numpy(model.users.rows(who)).to(device)
        scores = module(user_row.expand(len(movies)), movies).cpu().numpy()
    rated_rows = catalogue.rows(rated)
    scores[rated_rows[rated_rows >= 0]] = -np.inf
    best = np.argsort(-scores, kind="stable")[:SHOWN]
    return catalogue.ids.take(pa.array(best[scores[best] > -np.inf]))
