"""Test ratings with ids as numbers, and totals of the training part, which is read in batches."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

from mf.biases import DAMPING, BiasModel, Floats, Ints
from mf.errors import DataError
from mf.ratings.batches import Batches
from mf.ratings.hashing import id_hashes, mixed
from mf.ratings.quantiles import cuts
from mf.ratings.schema import MOVIE, RATED_AT, RATING, UNKNOWN_TIME, USER, has_ratings, times
from mf.ratings.vocabulary import Vocabulary

Part: TypeAlias = pa.Table | Batches  # ratings in memory, or read in batches

Values = TypeVar("Values", Ints, Floats)

# Test ratings that are scored, at most; of more, those of a random sample of users are, in which the RMSE has an
# interval of about ±0.001.
SCORED_RATINGS = 5_000_000
MERGED = 16  # batches whose totals are merged at a time


@dataclass(frozen=True)
class EncodedIds:
    """The users or the movies of the test part."""

    test_ids: pa.Array  # distinct, sorted
    test_index: Ints  # int32[test ratings], index into ``test_ids``
    train_counts: Ints  # int64[len(test_ids)], training ratings; 0: cold start

    @property
    def is_cold(self) -> npt.NDArray[np.bool_]:
        """bool[test ratings], those without a training rating of the same id."""
        cold: npt.NDArray[np.bool_] = (self.train_counts == 0)[self.test_index]
        return cold


@dataclass(frozen=True)
class EncodedRatings:
    """The test part, encoded, and totals of the training part."""

    users: EncodedIds
    movies: EncodedIds
    test_ratings: npt.NDArray[np.float32]  # of clicks all 1
    train: Batches
    validation: Batches | None
    catalogue: Vocabulary  # movies with a training rating
    movie_counts: Ints  # int64[catalogue], training ratings
    movie_sums: Floats  # [catalogue], sum of the training ratings, as the next one; 0 for clicks
    user_sums: Floats  # [test users]
    range: npt.NDArray[np.float32]  # lowest and highest training rating; 1 and 1 for clicks

    @classmethod
    def of(cls, train: Part, test: pa.Table, validation: Part | None = None) -> Self:
        """Encodes ``test`` and reads ``train``, both ratings as ``mf.ratings.schema`` has them.

        Raises:
            DataError: the training or the test part is empty, or their ids are of different types.
        """
        train = Batches(train)
        if len(test) == 0:
            raise DataError(f"the test part is empty (the training part has {len(train):,} ratings): raise test_size")
        if len(train) == 0:
            raise DataError(f"the training part is empty (the test part has {len(test):,} ratings): lower test_size")
        if train.has_ratings != has_ratings(test):
            named = {True: "has ratings", False: "has none"}
            parts = (("training", train.has_ratings), ("test", has_ratings(test)))
            found = " and ".join(f"the {name} part {named[rated]}" for name, rated in parts)
            raise DataError(f"{found}: name the rating column of both, or use rating_column=none for both")
        (users, user_index), (movies, movie_index) = (Vocabulary.encode(test[column]) for column in (USER, MOVIE))
        of_movies, user_counts, user_sums = [], np.zeros(len(users), np.int64), np.zeros(len(users))
        ends = [] if train.has_ratings else [(1.0, 1.0)]
        for batch in train.read(*[name for name in (USER, MOVIE, RATING) if name in train.schema.names]):
            if train.has_ratings:
                ends.append(tuple(pc.min_max(batch[RATING]).as_py().values()))
            _add(_totals(batch, USER), users, user_counts, user_sums)
            of_movies.append(_totals(batch, MOVIE))
            if len(of_movies) > MERGED:
                of_movies = [_merged(of_movies)]
        totals = _merged(of_movies)
        catalogue = Vocabulary.of(totals["id"])
        movie_counts, movie_sums = np.zeros(len(catalogue), np.int64), np.zeros(len(catalogue))
        _add(totals, catalogue, movie_counts, movie_sums)
        rows = catalogue.rows(movies.ids)
        return cls(
            EncodedIds(users.ids, user_index, user_counts),
            # Row -1 reads the appended zero.
            EncodedIds(movies.ids, movie_index, np.append(movie_counts, 0)[rows]),
            test[RATING].to_numpy() if has_ratings(test) else np.ones(len(test), np.float32),
            train,
            None if validation is None else Batches(validation),
            catalogue,
            movie_counts,
            movie_sums,
            user_sums,
            np.array([min(low for low, _ in ends), max(high for _, high in ends)], np.float32),
        )

    @property
    def has_ratings(self) -> bool:
        """Whether there are ratings; without them every test pair is relevant."""
        return self.train.has_ratings

    @cached_property
    def movie_rows(self) -> Ints:
        """int64[test ratings], row in ``catalogue``; -1: no training rating."""
        return self.catalogue.rows(self.movies.test_ids)[self.movies.test_index]

    def biases(self) -> BiasModel:
        """``BiasModel.fit`` of the training part: biases of the test users and of the movies of ``catalogue``."""
        mean = float(self.movie_sums.sum() / len(self.train))
        movie_bias = (self.movie_sums - self.movie_counts * mean) / (self.movie_counts + DAMPING)
        users = Vocabulary(self.users.test_ids)
        counts_read, of_movies = np.zeros(len(users), np.int64), np.zeros(len(users))
        for batch in self.train.read(USER, MOVIE):
            values = movie_bias[self.catalogue.rows(batch[MOVIE])]
            _add(_totals(pa.table({USER: batch[USER], RATING: values}), USER), users, counts_read, of_movies)
        counts = self.users.train_counts
        return BiasModel(mean, (self.user_sums - counts * mean - of_movies) / (counts + DAMPING), movie_bias)

    def recent_counts(self, share: float) -> tuple[Ints, int] | None:
        """int64[catalogue], training ratings among the newest ``share`` of those with a time, and the time of the
        oldest of them in microseconds; None without times."""
        if not self.train.has_times:
            return None
        unknown = sum(int(np.count_nonzero(batch == UNKNOWN_TIME)) for batch in self.train.times())
        known = len(self.train) - unknown
        if not known:
            return None
        # As NumPy's quantile by "inverted_cdf"; unknown times come first.
        position = unknown + max(0, int(np.ceil(known * (1 - share) - 1)))
        since = cuts(self.train.times, [position])[0].time
        counts = np.zeros(len(self.catalogue), np.int64)
        for batch in self.train.read(MOVIE, RATED_AT):
            newest = batch[MOVIE].filter(pa.array(times(batch) >= since))
            counts += np.bincount(self.catalogue.rows(newest), minlength=len(counts))
        return counts, since

    def in_catalogue(self, values: Values, catalogue: Vocabulary) -> Values:
        """[catalogue], ``values`` [self.catalogue] of these movies; 0 for a movie without a training rating."""
        if catalogue is self.catalogue:
            return values
        # Row -1 reads the appended zero.
        return np.append(values, np.zeros(1, values.dtype))[self.catalogue.rows(catalogue.ids)]

    def relevant(self, threshold: float, catalogue: Vocabulary) -> csr_array:
        """bool[test users, catalogue]: rated ``threshold`` or higher in the test part."""
        liked = self.test_ratings >= threshold
        columns = catalogue.rows(self.movies.test_ids)[self.movies.test_index[liked]]
        return pairs(self.users.test_index[liked], columns, (len(self.users.test_ids), len(catalogue)))

    def relevant_counts(self, threshold: float) -> Ints:
        """int64[test users], test ratings of ``threshold`` or higher, movies outside the catalogue included."""
        return np.bincount(self.users.test_index[self.test_ratings >= threshold], minlength=len(self.users.test_ids))


def _totals(ratings: pa.Table, column: str) -> pa.Table:
    """``id``, ``count`` and ``sum``: number and sum of the ratings per user or per movie; a sum of 0 for clicks."""
    sums = [(RATING, "sum")] if has_ratings(ratings) else []
    # In one thread, so that sums are the same each time.
    totals = ratings.group_by(column, use_threads=False).aggregate([([], "count_all"), *sums])
    total = totals["rating_sum"] if sums else np.zeros(len(totals))
    return pa.table({"id": totals[column], "count": totals["count_all"], "sum": total})


def _merged(parts: list[pa.Table]) -> pa.Table:
    """Several ``_totals`` as one."""
    totals = pa.concat_tables(parts).group_by("id", use_threads=False).aggregate([("count", "sum"), ("sum", "sum")])
    return totals.select(["id", "count_sum", "sum_sum"]).rename_columns(["id", "count", "sum"])


def _add(totals: pa.Table, ids: Vocabulary, counts: Ints, sums: Floats) -> None:
    """Adds ``_totals`` to the numbers of the ids that are among ``ids``."""
    rows = ids.rows(totals["id"])
    known = rows >= 0
    counts[rows[known]] += totals["count"].to_numpy()[known]
    sums[rows[known]] += totals["sum"].to_numpy()[known]


def scored_part(test: Part, seed: int) -> pa.Table:
    """The test ratings to score: all, or of more than ``SCORED_RATINGS`` about as many, by a random sample of users."""
    batches = Batches(test)
    if len(batches) <= SCORED_RATINGS:
        return batches.table()
    hashes, share = id_hashes(seed), SCORED_RATINGS / len(batches)
    drawn = (batch.filter(pa.array(mixed(hashes(batch[USER])) / 2.0**64 < share)) for batch in batches.read())
    return pa.concat_tables([batches.schema.empty_table(), *drawn])


def pairs(users: Ints, movies: Ints, shape: tuple[int, int]) -> csr_array:
    """bool[shape], true at these pairs; a pair with a -1 is left out."""
    both = (users >= 0) & (movies >= 0)
    return csr_array((np.ones(both.sum(), np.bool_), (users[both], movies[both])), shape)


def take_rows(vectors: npt.NDArray[np.float32], rows: Ints) -> npt.NDArray[np.float32]:
    """float32[len(rows), factors], these rows of ``vectors`` [n, factors]; row -1, an unknown id, is a zero vector."""
    # Row -1 reads the appended zeros.
    return np.vstack([vectors, np.zeros((1, vectors.shape[1]), np.float32)])[rows]
