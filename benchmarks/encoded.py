"""Training and test ratings with user and movie ids encoded as row numbers."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import csr_array

from mf.biases import Ints
from mf.errors import DataError
from mf.ratings.schema import MOVIE, RATING, USER, has_ratings
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

    def already_rated(self, catalogue: Vocabulary) -> csr_array:
        """bool[test users, catalogue]: rated in the training or the validation part."""
        index = np.full(len(self.users.vocabulary), -1, np.int32)  # training user -> test user
        in_train = self.users.test_id_rows >= 0
        index[self.users.test_id_rows[in_train]] = np.flatnonzero(in_train)
        users, movies = index[self.users.train_rows], catalogue.rows(self.movies.vocabulary.ids)[self.movies.train_rows]
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
