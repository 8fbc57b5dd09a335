"""Training and test ratings with user and movie ids encoded as row numbers."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import csr_array

from mf.biases import Floats, Ints
from mf.errors import DataError
from mf.ratings.schema import MOVIE, RATED_AT, RATING, UNKNOWN_TIME, USER, has_ratings, times
from mf.ratings.vocabulary import Vocabulary


@dataclass(frozen=True)
class EncodedIds:
    """One id column (users or movies) of the training and the test part."""

    vocabulary: Vocabulary  # distinct ids of the training part
    train_rows: Ints  # int32[training ratings], row in ``vocabulary``
    test_ids: pa.Array  # distinct ids of the test part, sorted
    test_index: Ints  # int32[test ratings], index into ``test_ids``
    test_id_rows: Ints  # int64[len(test_ids)], row in ``vocabulary``; -1: cold start, no training rating

    @classmethod
    def of(cls, train: pa.ChunkedArray, test: pa.ChunkedArray) -> Self:
        """Encodes the id column of both parts.

        Raises:
            DataError: one part has integer ids and the other has text.
        """
        vocabulary, train_rows = Vocabulary.encode(train)
        in_test, test_index = Vocabulary.encode(test)
        return cls(vocabulary, train_rows, in_test.ids, test_index, vocabulary.rows(in_test.ids))

    @property
    def test_rows(self) -> Ints:
        """int64[test ratings], row in ``vocabulary``; -1: cold start."""
        return self.test_id_rows[self.test_index]

    @property
    def train_counts(self) -> Ints:
        """int64[len(test_ids)], number of training ratings per test id."""
        # Row -1 reads the appended zero.
        return np.append(np.bincount(self.train_rows, minlength=len(self.vocabulary)), 0)[self.test_id_rows]


@dataclass(frozen=True)
class EncodedRatings:
    """Training and test part, encoded, and their tables."""

    users: EncodedIds
    movies: EncodedIds
    train_ratings: npt.NDArray[np.float32]  # of clicks all 1, as the next one
    test_ratings: npt.NDArray[np.float32]
    train: pa.Table  # as it came
    validation: pa.Table | None

    @classmethod
    def of(cls, train: pa.Table, test: pa.Table, validation: pa.Table | None = None) -> Self:
        """Encodes tables of ratings (``mf.ratings.schema``).

        Raises:
            DataError: the training or the test part is empty, or their ids are of different types.
        """
        if len(test) == 0:
            raise DataError(f"the test part is empty (the training part has {len(train):,} ratings): raise test_size")
        if len(train) == 0:
            raise DataError(f"the training part is empty (the test part has {len(test):,} ratings): lower test_size")
        users, movies = (EncodedIds.of(train[column], test[column]) for column in (USER, MOVIE))
        if has_ratings(train) != has_ratings(test):
            named = {True: "has ratings", False: "has none"}
            parts = (
                f"the {name} part {named[has_ratings(part)]}" for name, part in (("training", train), ("test", test))
            )
            raise DataError(
                f"{' and '.join(parts)}: name the rating column of both, or use rating_column=none for both"
            )
        return cls(users, movies, _ratings(train), _ratings(test), train, validation)

    @property
    def has_ratings(self) -> bool:
        """Whether there are ratings; without them every test pair is relevant."""
        return has_ratings(self.train)

    def train_times(self) -> npt.NDArray[np.int64] | None:
        """int64[training ratings], microseconds, ``UNKNOWN_TIME`` where unknown; None where all are unknown."""
        if RATED_AT not in self.train.column_names:
            return None
        found = times(self.train)
        return None if (found == UNKNOWN_TIME).all() else found

    def known(self) -> pa.Table:
        """The ratings of the training and the validation part."""
        return self.train if self.validation is None else pa.concat_tables([self.train, self.validation])

    def train_columns(self, catalogue: Vocabulary) -> Ints:
        """[training ratings], row in ``catalogue`` of each training rating's movie; -1: not in it."""
        if catalogue is self.movies.vocabulary:
            return self.movies.train_rows
        return catalogue.rows(self.movies.vocabulary.ids)[self.movies.train_rows]

    def of_train_movies(self, values: Floats, catalogue: Vocabulary) -> Floats:
        """float64[catalogue], ``values`` [training movies]; 0 for a movie without a training rating."""
        # Row -1 reads the appended zero.
        return (
            values
            if catalogue is self.movies.vocabulary
            else np.append(values, 0.0)[self.movies.vocabulary.rows(catalogue.ids)]
        )

    def already_rated(self, catalogue: Vocabulary) -> csr_array:
        """bool[test users, catalogue]: rated in the training or the validation part."""
        index = np.full(len(self.users.vocabulary), -1, np.int32)  # training user -> test user
        in_train = self.users.test_id_rows >= 0
        index[self.users.test_id_rows[in_train]] = np.flatnonzero(in_train)
        users, movies = index[self.users.train_rows], self.train_columns(catalogue)
        if self.validation is not None:
            more = Vocabulary(self.users.test_ids).rows(self.validation[USER])
            users = np.concatenate([users, more])
            movies = np.concatenate([movies, catalogue.rows(self.validation[MOVIE])])
        return self._matrix(users, movies, catalogue)

    def relevant(self, threshold: float, catalogue: Vocabulary) -> csr_array:
        """bool[test users, catalogue]: rated ``threshold`` or higher in the test part."""
        liked = self.test_ratings >= threshold
        columns = catalogue.rows(self.movies.test_ids)[self.movies.test_index[liked]]
        return self._matrix(self.users.test_index[liked], columns, catalogue)

    def relevant_counts(self, threshold: float) -> Ints:
        """int64[test users], test ratings of ``threshold`` or higher, movies outside the catalogue included."""
        return np.bincount(self.users.test_index[self.test_ratings >= threshold], minlength=len(self.users.test_ids))

    def _matrix(self, users: Ints, movies: Ints, catalogue: Vocabulary) -> csr_array:
        """bool[test users, catalogue], true at these pairs; a pair with a -1 is left out."""
        both = (users >= 0) & (movies >= 0)
        shape = len(self.users.test_ids), len(catalogue)
        return csr_array((np.ones(both.sum(), np.bool_), (users[both], movies[both])), shape)


def _ratings(table: pa.Table) -> npt.NDArray[np.float32]:
    if not has_ratings(table):
        return np.ones(len(table), np.float32)
    values: npt.NDArray[np.float32] = table[RATING].to_numpy()
    return values


def take_rows(vectors: npt.NDArray[np.float32], rows: Ints) -> npt.NDArray[np.float32]:
    """float32[len(rows), factors], these rows of ``vectors`` [n, factors]; row -1, an unknown id, is a zero vector."""
    # Row -1 reads the appended zeros.
    return np.vstack([vectors, np.zeros((1, vectors.shape[1]), np.float32)])[rows]
