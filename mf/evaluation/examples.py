"""Some users of the test part, what they like and what the model recommends to them: to be judged by eye."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mf.model_directory import TrainedModel
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER

ACTIVITY = (0.1, 0.5, 0.9)  # quantiles of the users' numbers of ratings: a light, a middling and a busy one
SHOWN = 8  # movies of each kind


@dataclass(frozen=True)
class Movie:
    """One that a user has rated, or is recommended; ratings in the unit of the ratings."""

    movie_id: int | str
    title: str | None  # where known
    actual: float | None  # the user's own rating; of a recommended one, that in the test part
    predicted: float  # clipped to the range of the ratings


@dataclass(frozen=True)
class Example:
    """A user who has ratings in the training part and in the test part."""

    user_id: int | str
    ratings: int  # in the training and the validation part
    best: tuple[Movie, ...]  # of these, the best rated first, of equal ones the newest
    recommended: tuple[Movie, ...]  # none of these, the best first


def examples(
    train: pa.Table, validation: pa.Table, test: pa.Table, model: TrainedModel, titles: Mapping[str, str]
) -> tuple[Example, ...]:
    """A few users, from the least to the most active; the same ones whatever the order of the rows.

    Args:
        train, validation, test: tables of ratings, with ids of the same types.
        model: fitted to ``train``.
        titles: of movies, by their id as text; need not have all.
    """
    chosen = _choose(train, test)
    if not chosen:
        return ()
    few = pa.array(chosen, train[USER].type)
    known = pa.concat_tables([_of(few, part) for part in (train, validation)])
    held_out = _of(few, test)
    return tuple(_example(user, _of(user, known), _of(user, held_out), model, titles) for user in chosen)


def _choose(train: pa.Table, test: pa.Table) -> list[Any]:
    counts = train[USER].value_counts()
    in_test = pc.is_in(counts.field("values"), value_set=pc.unique(test[USER]))
    users = pa.table({"user": counts.field("values"), "ratings": counts.field("counts")}).filter(in_test)
    if not len(users):
        return []
    users = users.sort_by([("ratings", "ascending"), ("user", "ascending")])
    places = sorted({int(quantile * (len(users) - 1)) for quantile in ACTIVITY})
    return list(users["user"].take(places).to_pylist())


def _of(users: Any, ratings: pa.Table) -> pa.Table:
    """The rows of ``users``, an array of them or one."""
    column = ratings[USER]
    users = users if isinstance(users, pa.Array) else pa.array([users], column.type)
    return ratings.filter(pc.is_in(column, value_set=users))


def _example(user: Any, known: pa.Table, held_out: pa.Table, model: TrainedModel, titles: Mapping[str, str]) -> Example:
    newest = [(RATED_AT, "descending")] if RATED_AT in known.column_names else []
    best = known.sort_by([(RATING, "descending"), *newest, (MOVIE, "ascending")])[:SHOWN]
    recommended = _recommended(user, known[MOVIE], model)
    actual = dict(zip(held_out[MOVIE].to_pylist(), held_out[RATING].to_pylist(), strict=True))

    def movies(ids: pa.Array | pa.ChunkedArray, own: Mapping[Any, float]) -> tuple[Movie, ...]:
        predicted = model.predict(pa.array([user] * len(ids), model.users.ids.type), ids)
        return tuple(
            Movie(movie, titles.get(str(movie)), own.get(movie), float(rating))
            for movie, rating in zip(ids.to_pylist(), predicted, strict=True)
        )

    own = dict(zip(best[MOVIE].to_pylist(), best[RATING].to_pylist(), strict=True))
    return Example(user, len(known), movies(best[MOVIE], own), movies(recommended, actual))


@torch.no_grad()
def _recommended(user: Any, known: pa.ChunkedArray, model: TrainedModel) -> pa.Array:
    """The ids of the user's best movies but for those ``known``, in the model's own order, that of predictions which
    are not clipped; of equal ones the first in the order of the ids comes first."""
    device = model.module.mu.device
    row = torch.from_numpy(model.users.rows(pa.array([user], model.users.ids.type))).to(device)
    movies = torch.arange(len(model.movies), device=device)
    scores = model.module(row.expand(len(movies)), movies).cpu().numpy()
    rated = model.movies.rows(known)
    scores[rated[rated >= 0]] = -np.inf
    best = np.argsort(-scores, kind="stable")[:SHOWN]
    return model.movies.ids.take(pa.array(best[scores[best] > -np.inf]))
