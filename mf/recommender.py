"""Recommendations of a trained model: lists, similar movies, explanations, new users."""

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.sparse import csr_array

from mf.calls import path_of, public
from mf.config import did_you_mean
from mf.errors import ConfigError, DataError
from mf.evaluation.topk import top_k_by_product
from mf.files import written_aside
from mf.fold_in import fold_in, prior
from mf.model_directory import TrainedModel, noise_variance
from mf.progress import Progress
from mf.ranking import Interactions
from mf.ranking.interactions import UserRows
from mf.ratings.config import IngestConfig
from mf.ratings.frame import Frame, one_id, pairs_of, some_ids
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER, has_ratings, times
from mf.ratings.vocabulary import Vocabulary

# What models of other libraries have, and where it is here.
ELSEWHERE = {
    "fit": "; mf.fit(ratings) trains a model",
    "partial_fit": "; mf.fit(ratings, init_from=model) trains on from a model",
    "get_params": "; the options are in Model.trained.config, and mf.fit(ratings, trials=20) searches for better ones",
    "set_params": "; options are given to mf.fit",
    "score": "; did you mean .evaluate?",
    "test": "; did you mean .evaluate?",
    "transform": "; did you mean .fold_in or .user_factors?",
    "similar_items": "; did you mean .similar?",
    "similar_users": "; it compares movies: .similar",
    "rank_items": "; did you mean .recommend with only_ids?",
    "recalculate_user": "; did you mean .fold_in?",
    "item_factors": "; did you mean .movie_factors?",
    "item_bias": "; did you mean .movie_bias?",
    "components_": "; did you mean .movie_factors?",
}
BLOCK = 1 << 16  # places of lists that are computed at a time

Id = Any  # an integer, a text or a UUID
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Recommendation(NamedTuple):
    """One movie of a list, as ``recommend_movies`` gives it in SQL."""

    movie_id: int | str
    score: float  # of the ranking model; without one the predicted rating before clipping
    predicted_rating: float | None  # clipped to the range of the ratings; None without a star model (clicks)
    because: int | str | None  # the rated movie that speaks most for it; None: there is none, or no ratings are known


class Similar(NamedTuple):
    """A movie similar to another."""

    movie_id: int | str
    similarity: float  # cosine


class Term(NamedTuple):
    """What one of a user's ratings adds to a score."""

    movie_id: int | str
    rating: float | None  # None for clicks
    term: float


@dataclass(frozen=True)
class Explanation:
    """Why a movie has its score for a user: score = popularity + the sum of the terms."""

    movie_id: int | str
    score: float
    popularity: float  # the part that is the same for everybody
    terms: tuple[Term, ...]  # of the user's ratings, the largest first; empty without a ranking model
    because: int | str | None  # the movie of the largest term among the ratings at or above the mean
    predicted_rating: float | None
    stars: Mapping[str, float]  # mean, user, movie, taste: their sum is the predicted rating before clipping


@dataclass(frozen=True)
class User:
    """A user's vectors: of a trained one, or of a new one from ``Model.fold_in``."""

    ranking: Floats | None  # [ranking factors]; None without a ranking model
    stars: Floats | None  # [factors]; None, as the next one, without a star model
    bias: float | None
    rated: "Rated | None"  # None: not known


@dataclass(frozen=True)
class Rated:
    """A user's ratings: ``movies`` int64[n], rows of the catalogue; ``ratings`` float32[n]; ``times`` int64[n]."""

    movies: Ints
    ratings: Floats | None
    times: Ints | None


class Recommender:
    """A trained model and, where they are known, the users' ratings.

    Attributes:
        trained: the model as ``mf.train.train`` returned it.
        ratings: ``user_id``, ``movie_id``, ``rating`` and, if there were times, ``rated_at``; None: not known.
    """

    def __init__(self, trained: TrainedModel, ratings: pa.Table | None = None) -> None:
        self.trained, self.ratings = trained, ratings

    def __getattr__(self, name: str) -> Any:
        # Only reached for names that are not here. hasattr and copy ask for many that begin with "_".
        hint = "" if name.startswith("_") else ELSEWHERE.get(name) or did_you_mean(name, dir(type(self)), ".")
        raise AttributeError(f"mf.Model has no {name}{hint}", name=name, obj=self)

    @property
    def users(self) -> pa.Array:
        """The ids of the known users, int64 or string, sorted."""
        return self._users.ids

    @property
    def movies(self) -> pa.Array:
        """The ids of the movies that lists are made of, int64 or string, sorted."""
        return self._catalogue.ids

    @property
    def user_factors(self) -> Floats:
        """float32[users, factors], p of the star model; its users are ``trained.users``."""
        return self._weights("user_factors")

    @property
    def movie_factors(self) -> Floats:
        """float32[movies, factors], q of the star model; its movies are ``trained.movies``."""
        return self._weights("movie_factors")

    @property
    def user_bias(self) -> Floats:
        """float32[users], b_u of the star model."""
        return self._weights("user_bias").ravel()

    @property
    def movie_bias(self) -> Floats:
        """float32[movies], b_m of the star model."""
        return self._weights("movie_bias").ravel()

    @property
    def mu(self) -> float:
        """Global mean rating."""
        return self.trained.star_model().mu.item()

    @public
    def knows(self, user: Id) -> bool:
        """Whether the user was trained on.

        Raises:
            DataError: the id is of another type than the model's.
        """
        return bool(self._users.rows(one_id(user, self.users.type, "user"))[0] >= 0)

    @public
    def predict(self, pairs: "Frame | Sequence[tuple[Id, Id]] | Any", **columns: Any) -> Floats:
        """Predicted ratings float32[N] of N pairs, clipped to the range of the ratings.

        Args:
            pairs: a data frame with columns of users and movies, or pairs (user, movie). An unknown user or movie has
                bias 0 and a zero vector, as everywhere.
            columns: ``user_column`` and ``movie_column``, where they are not recognised by name.

        Raises:
            DataError: it is neither, or its ids are of another type than the model's.
        """
        config = IngestConfig.of(**columns)
        users, movies = self.trained.users.ids.type, self.trained.movies.ids.type
        return self.trained.predict(*pairs_of(pairs, config, users, movies))

    @public
    def recommend(
        self,
        user: "Id | Mapping[Id, float] | User",
        k: int = 10,
        exclude_seen: bool = True,
        *,
        without_ids: Iterable[Id] = (),
        only_ids: Iterable[Id] | None = None,
        skip: int = 0,
    ) -> list[Recommendation]:
        """The ``k`` movies with the highest score for a user, best first; of equal scores the lower id.

        Args:
            user: an id; ratings by movie id, or a ``User``, for a new user. An unknown id gets the popular movies.
            k: length of the list.
            exclude_seen: leave out the movies that the user has rated.
            without_ids: movies to leave out.
            only_ids: the movies to choose from; unknown ones are passed over.
            skip: movies to pass over, for the next page.

        Raises:
            DataError: ``exclude_seen`` without known ratings, or an id of another type than the model's.
        """
        _check_list(k, skip)
        profile = self._profile(user)
        scores = self._scores(profile).astype(np.float64)
        if only_ids is not None:
            chosen = np.zeros(len(scores), np.bool_)
            chosen[self._rows(only_ids, "only_ids")] = True
            scores[~chosen] = -np.inf
        scores[self._rows(without_ids, "without_ids")] = -np.inf
        if exclude_seen:
            scores[self._known(profile, "exclude_seen=False lists all movies").movies] = -np.inf
        best = np.argsort(-scores, kind="stable")[skip : skip + k]
        best = best[scores[best] > -np.inf]
        ids, predicted = self.movies.take(pa.array(best)).to_pylist(), self._predicted(profile, best)
        because = self._because(profile, best)
        values = zip(ids, scores[best].tolist(), predicted, because, strict=True)
        return [Recommendation(*value) for value in values]

    @public
    def recommend_all(self, path: str | Path, k: int = 10, exclude_seen: bool = True) -> int:
        """Writes the lists of all known users to a Parquet file, block by block; returns the number of users.

        The file has one row per user and place: ``user_id``, ``place`` (from 1), ``movie_id``, ``score`` and
        ``predicted_rating``. It is written atomically. Scores of a block of users are in memory at a time.

        Args:
            path: the file to write.
            k: length of the lists; they are shorter where fewer movies are left.
            exclude_seen: leave out the movies that the user has rated.

        Raises:
            ConfigError: ``path`` is a directory.
            DataError: ``exclude_seen`` without known ratings.
        """
        _check_list(k, 0)
        path, count = path_of(path, "path"), len(self.users)
        if path.is_dir():
            raise ConfigError(f"path: found the directory {path}, expected the name of a file, such as lists.parquet")
        seen = self._seen_or_raise("exclude_seen=False lists all movies") if exclude_seen else None
        fields = [(USER, self.users.type), ("place", pa.int32()), (MOVIE, self.movies.type)]
        schema = pa.schema([*fields, ("score", pa.float32()), ("predicted_rating", pa.float32())])
        step = max(1, BLOCK // k)
        with (
            written_aside(path) as aside,
            pq.ParquetWriter(aside, schema, compression="zstd") as writer,
            Progress(f"write {path}", count, "users") as progress,
        ):
            for start in range(0, count, step):
                users = self.users.slice(start, step)
                writer.write_table(self._lists(users, k, seen).cast(schema))
                progress.advance(len(users))
        return count

    @public
    def similar(
        self, movie: Id, k: int = 10, *, without_ids: Iterable[Id] = (), only_ids: Iterable[Id] | None = None
    ) -> list[Similar]:
        """The ``k`` movies most similar to a movie, most similar first; of equal ones the lower id.

        Similarity is the cosine of the ranking model's history vectors, as in SQL, or without a ranking model of the
        star model's vectors. Empty for an unknown movie.

        Raises:
            DataError: an id is of another type than the model's.
        """
        _check_list(k, 0)
        rows = self._catalogue_row(movie)
        if not len(rows):
            return []
        vectors = (self.trained.ranking.model.history if self.trained.ranking else self.movie_factors).astype(
            np.float64
        )
        lengths = np.linalg.norm(vectors, axis=1)
        products = vectors @ vectors[rows[0]]
        length = lengths * lengths[rows[0]]
        cosines = np.divide(products, length, out=np.zeros_like(products), where=length > 0)
        if only_ids is not None:
            chosen = np.zeros(len(cosines), np.bool_)
            chosen[self._rows(only_ids, "only_ids")] = True
            cosines[~chosen] = -np.inf
        cosines[self._rows(without_ids, "without_ids")] = cosines[rows[0]] = -np.inf
        best = np.argsort(-cosines, kind="stable")[:k]
        best = best[cosines[best] > -np.inf]
        ids = self.movies.take(pa.array(best)).to_pylist()
        return [Similar(*pair) for pair in zip(ids, cosines[best].tolist(), strict=True)]

    @public
    def fold_in(self, ratings: Mapping[Id, float] | Collection[Id]) -> User:
        """The vectors of a new user, from ratings by movie id, without training; as ``recommend_from_ratings`` in SQL.

        Movies that the model does not know, and ratings that it ignores (``ignore_ratings``), count nothing.
        ``recommend`` and ``explain`` take the result.

        Args:
            ratings: ratings by movie id; of a model of clicks, the ids of the chosen movies are enough.

        Raises:
            DataError: a rating is missing, no number or out of the range of the model's ratings, or an id is of another
                type than the model's.
        """
        m = self.trained.module
        if m is not None and not isinstance(ratings, Mapping):
            found = type(ratings).__name__
            raise DataError(
                f"fold_in: found {found} without ratings, expected one rating per movie: {{movie: rating, …}}, "
                "for example Series.to_dict()"
            )
        values: list[float] | None = None
        if m is not None and isinstance(ratings, Mapping):
            ignored = self.trained.ignore_ratings  # they mean "not rated"
            ratings = {movie: value for movie, value in ratings.items() if value not in ignored}
            limits = m.rating_min.item(), m.rating_max.item()
            values = [_number(movie, rating, *limits) for movie, rating in ratings.items()]
        rows = self._catalogue.rows(some_ids(ratings, self.movies.type, "fold_in"))
        known = rows >= 0
        return self._folded(Rated(rows[known], None if values is None else np.array(values, np.float32)[known], None))

    @public
    def explain(self, user: "Id | Mapping[Id, float] | User", movie: Id) -> Explanation:
        """The terms of a movie's score for a user.

        Args:
            user: as for ``recommend``.
            movie: a known movie.

        Raises:
            DataError: the movie is unknown, the user's ratings are not known, or an id is of another type.
        """
        rows = self._catalogue_row(movie)
        if not len(rows):
            raise DataError(f"explain: found movie {movie!r}, expected one that the model knows")
        profile = self._profile(user)
        score = float(self._scores(profile)[rows[0]])
        stars = self._star_terms(profile, int(rows[0]))
        terms: tuple[Term, ...] = ()
        popularity, because = score, None
        if ranking := self.trained.ranking:
            rated = self._known(profile, "only its ratings explain a score")
            found, _, amounts = ranking.model.terms(rows, rated.movies, rated.ratings, rated.times)
            order = np.argsort(-amounts[:, 0], kind="stable")
            of_row = dict(zip(rated.movies.tolist(), _or_none(rated.ratings, len(rated.movies)), strict=True))
            ids = self.movies.take(pa.array(found[order])).to_pylist()
            terms = tuple(
                Term(movie_id, of_row[row], amount)
                for movie_id, row, amount in zip(ids, found[order].tolist(), amounts[order, 0].tolist(), strict=True)
            )
            popularity = float(ranking.model.bias[rows[0]])
            because = self._because(profile, rows)[0]
        predicted = self._predicted(profile, rows)[0]
        (movie_id,) = self.movies.take(pa.array(rows)).to_pylist()
        return Explanation(movie_id, score, popularity, terms, because, predicted, MappingProxyType(stars))

    @functools.cached_property
    def _catalogue(self) -> Vocabulary:
        return self.trained.ranking.movies if self.trained.ranking else self.trained.movies

    @functools.cached_property
    def _users(self) -> Vocabulary:
        return self.trained.ranking.users if self.trained.ranking else self.trained.users

    @functools.cached_property
    def _star_rows(self) -> Ints:
        """int64[catalogue], row of each movie in the star model; -1: it does not know the movie."""
        return self.trained.movies.rows(self._catalogue.ids)

    @functools.cached_property
    def _star_movies(self) -> tuple[Floats, Floats]:
        """q float32[catalogue, factors] and b_m float32[catalogue]; zeros where the star model lacks the movie."""
        known = self._star_rows >= 0
        q, bias = self.movie_factors[self._star_rows], self.movie_bias[self._star_rows]
        return q * known[:, None], bias * known

    @functools.cached_property
    def _prior(self) -> npt.NDArray[np.float64]:
        m = self.trained.star_model()
        noise = noise_variance(self.trained.metrics, m.rating_min.item(), m.rating_max.item())
        return prior(self.user_factors, self.user_bias, noise)

    @functools.cached_property
    def _seen(self) -> "_Seen | None":
        return None if self.ratings is None else _Seen.of(self.ratings, self._catalogue)

    def _trained_on(self, test: pa.Table) -> int:
        """How many pairs of ``test`` are among the ratings that the model was trained on."""
        if self._seen is None:
            return 0
        users, movies = self._seen.users.rows(test[USER]), self._catalogue.rows(test[MOVIE])
        both = (users >= 0) & (movies >= 0)
        width = len(self._catalogue)
        known = self._seen.rows.users * width + self._seen.rows.movies
        return int(np.isin(users[both] * width + movies[both], known, assume_unique=True).sum())

    def _seen_or_raise(self, way_out: str) -> "_Seen":
        self._ratings(way_out)
        assert self._seen is not None
        return self._seen

    def _ratings(self, why: str) -> pa.Table:
        if self.ratings is None:
            raise DataError(
                f"model {self.trained.run_id}: the users' ratings are not known, expected them ({why}): give them to "
                "mf.load(directory, ratings=…)"
            )
        return self.ratings

    def _known(self, profile: User, way_out: str) -> Rated:
        if profile.rated is None:
            self._ratings(way_out)
        assert profile.rated is not None
        return profile.rated

    def _weights(self, name: str) -> Floats:
        weights: Floats = getattr(self.trained.star_model(), name).weight.detach().cpu().numpy()
        return weights

    def _rows(self, movies: Iterable[Id], what: str) -> Ints:
        """Catalogue rows of the movies that are known; ``what``: name of the argument, for errors."""
        rows = self._catalogue.rows(some_ids(movies, self.movies.type, what))
        return rows[rows >= 0]

    def _catalogue_row(self, movie: Id) -> Ints:
        """The row of a movie; empty if it is unknown."""
        rows = self._catalogue.rows(one_id(movie, self.movies.type, "movie"))
        return rows[rows >= 0]

    def _profile(self, user: "Id | Mapping[Id, float] | User") -> User:
        if isinstance(user, User):
            return user
        if isinstance(user, Mapping):
            return self.fold_in(user)
        ids = one_id(user, self.users.type, "user")
        rated = self._seen.of_user(ids) if self._seen else None
        known = self._users.rows(ids)[0]
        if known < 0 and rated is not None and len(rated.movies):
            return self._folded(rated)  # in the ratings that mf.load was given, not in the training
        ranking, row = self.trained.ranking, self.trained.users.rows(ids)[0]
        p = None
        if ranking:
            p = ranking.vectors[known] if known >= 0 else np.zeros(ranking.factors, np.float32)
        if self.trained.module is None:
            return User(p, None, None, rated)
        factors = self.user_factors
        stars = factors[row] if row >= 0 else np.zeros(factors.shape[1], np.float32)
        return User(p, stars, float(self.user_bias[row]) if row >= 0 else 0.0, rated)

    def _folded(self, rated: Rated) -> User:
        ranking = self.trained.ranking
        p = ranking.model.user_vector(rated.movies, rated.ratings, rated.times) if ranking else None
        if self.trained.module is None:
            return User(p, None, None, rated)
        rows = self._star_rows[rated.movies]
        known = rows >= 0
        assert rated.ratings is not None
        stars, bias = fold_in(
            self.movie_factors[rows[known]], self.movie_bias[rows[known]], rated.ratings[known], self.mu, self._prior
        )
        return User(p, stars.astype(np.float32), bias, rated)

    def _unclipped(self, profile: User, rows: Ints | slice) -> Floats:
        q, bias = self._star_movies
        assert profile.stars is not None
        assert profile.bias is not None
        return np.asarray(self.mu + profile.bias + bias[rows] + q[rows] @ profile.stars, np.float32)

    def _predicted(self, profile: User, rows: Ints) -> Sequence[float | None]:
        """Predicted ratings of some movies of the catalogue, clipped; None without a star model."""
        if (m := self.trained.module) is None:
            return [None] * len(rows)
        clipped: list[float] = np.clip(
            self._unclipped(profile, rows), m.rating_min.item(), m.rating_max.item()
        ).tolist()
        return clipped

    def _scores(self, profile: User) -> Floats:
        """float32[catalogue], by which lists are ordered."""
        if self.trained.ranking is None:
            return self._unclipped(profile, slice(None))
        assert profile.ranking is not None
        scores: Floats = self.trained.ranking.model.scores(profile.ranking[None])[0]
        return scores

    def _star_terms(self, profile: User, row: int) -> dict[str, float]:
        if profile.stars is None or profile.bias is None:
            return {}
        q, bias = self._star_movies
        taste = float(q[row].astype(np.float64) @ profile.stars.astype(np.float64))
        return {"mean": self.mu, "user": profile.bias, "movie": float(bias[row]), "taste": taste}

    def _because(self, profile: User, rows: Ints) -> list[Any]:
        if self.trained.ranking is None or profile.rated is None:
            return [None] * len(rows)
        rated = profile.rated
        found = self.trained.ranking.model.because(rows, rated.movies, rated.ratings, rated.times)
        ids = self.movies.take(pa.array(np.maximum(found, 0))).to_pylist()
        return [movie if row >= 0 else None for movie, row in zip(ids, found.tolist(), strict=True)]

    def _lists(self, users: pa.Array, k: int, seen: "_Seen | None") -> pa.Table:
        """The lists of some known users: one row per user and place."""
        ranking, m, stars = self.trained.ranking, self.trained.module, None
        if m is not None:
            rows, (q, b_m) = self.trained.users.rows(users), self._star_movies
            known = rows >= 0
            p, b_u = self.user_factors[rows] * known[:, None], self.user_bias[rows] * known
        if ranking:
            vectors = ranking.vectors[ranking.users.rows(users)]
            embedding, bias = ranking.model.embedding, ranking.model.bias
        else:
            vectors, embedding, bias = p, q, b_m
        rated = seen.matrix(users) if seen else csr_array((len(users), len(self.movies)), dtype=np.bool_)
        # Copies, since PyTorch warns of arrays that cannot be written.
        best = top_k_by_product(torch.tensor(vectors), torch.tensor(embedding), torch.tensor(bias), rated, k)
        owner, place = np.nonzero(best >= 0)
        movie = best[owner, place]
        score = np.einsum("ij,ij->i", vectors[owner], embedding[movie]) + bias[movie]
        if m is not None:
            stars = self.mu + b_u[owner] + b_m[movie] + np.einsum("ij,ij->i", p[owner], q[movie])
            score = score if ranking else stars
            stars = np.clip(stars, m.rating_min.item(), m.rating_max.item())
        columns = {
            USER: users.take(pa.array(owner)),
            "place": place + 1,
            MOVIE: self.movies.take(pa.array(movie)),
            "score": score,
            "predicted_rating": pa.nulls(len(owner), pa.float32()) if stars is None else stars,
        }
        return pa.table(columns)


@dataclass(frozen=True)
class _Seen:
    """The ratings by user."""

    users: Vocabulary
    rows: UserRows
    catalogue: Vocabulary

    @classmethod
    def of(cls, ratings: pa.Table, catalogue: Vocabulary) -> "_Seen":
        users, user_rows = Vocabulary.encode(ratings[USER])
        interactions = Interactions(
            torch.from_numpy(user_rows),
            torch.from_numpy(catalogue.rows(ratings[MOVIE])),
            torch.tensor(ratings[RATING].to_numpy()) if has_ratings(ratings) else None,
            len(users),
            len(catalogue),
            torch.tensor(times(ratings)) if RATED_AT in ratings.column_names else None,
        )
        return cls(users, UserRows.of(interactions), catalogue)

    def of_user(self, ids: pa.Array) -> Rated:
        """The ratings of the first of ``ids``; none for an unknown user."""
        row = int(self.users.rows(ids)[0])
        at = slice(*self.rows.offsets[row : row + 2]) if row >= 0 else slice(0)
        ratings, when = self.rows.ratings, self.rows.times
        movies = self.rows.movies[at].astype(np.int64)
        return Rated(movies, None if ratings is None else ratings[at], None if when is None else when[at])

    def matrix(self, users: pa.Array) -> csr_array:
        """bool[users, catalogue], rated."""
        rows = self.users.rows(users)
        parts = [self.rows.movies[slice(*self.rows.offsets[row : row + 2])] if row >= 0 else _NONE for row in rows]
        offsets = np.cumsum([0, *map(len, parts)])
        movies = np.concatenate(parts) if parts else _NONE
        return csr_array((np.ones(len(movies), np.bool_), movies, offsets), (len(users), len(self.catalogue)))


_NONE = np.zeros(0, np.int32)


def _check_list(k: int, skip: int) -> None:
    for name, value, least in (("k", k, 1), ("skip", skip, 0)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            found = repr(value) if isinstance(value, str | float | int) else type(value).__name__
            raise ConfigError(f"{name}: found {found}, expected an integer of {least} or more")


def _number(movie: Id, rating: Any, least: float, most: float) -> float:
    try:
        number = float(rating)
    except (TypeError, ValueError):
        number = np.nan
    if not least <= np.float32(number) <= most:  # as recommend_from_ratings in SQL
        expected = f"a rating from {least:g} to {most:g}" if np.isfinite(number) else "a finite number"
        raise DataError(f"fold_in: found the rating {rating!r} of movie {movie!r}, expected {expected}")
    return number


def _or_none(ratings: Floats | None, n: int) -> list[float | None]:
    return [None] * n if ratings is None else ratings.tolist()
