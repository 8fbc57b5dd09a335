"""The training and the test part as numbers: users and movies counted from 0."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import csr_array

from mf.biases import Ints
from mf.errors import DataError
from mf.ratings.schema import MOVIE, RATING, USER
from mf.ratings.vocabulary import Vocabulary


@dataclass(frozen=True)
class Side:
    """The users of both parts, or the movies."""

    seen: Vocabulary  # ids of the training part; their rows are those of all that is fitted to it
    train: Ints  # of each training rating, the row of its user
    ids: pa.Array  # of the test part, each once
    test: Ints  # of each test rating, the place of its user in ``ids``
    rows: Ints  # of each of ``ids``, the row among ``seen``, -1 when unseen

    @classmethod
    def of(cls, train: pa.ChunkedArray, test: pa.ChunkedArray) -> Self:
        seen, rows = Vocabulary.encode(train)
        found, places = Vocabulary.encode(test)
        return cls(seen, rows, found.ids, places, seen.rows(found.ids))

    @property
    def test_rows(self) -> Ints:
        """Of each test rating, the row of its user, -1 when unseen."""
        return self.rows[self.test]

    @property
    def ratings(self) -> Ints:
        """Of each of ``ids``, how many training ratings it has."""
        # Row -1 reads the zero that is appended.
        return np.append(np.bincount(self.train, minlength=len(self.seen)), 0)[self.rows]


@dataclass(frozen=True)
class Parts:
    """Both parts, and what users have rated beside the training part."""

    users: Side
    movies: Side
    train_ratings: npt.NDArray[np.float32]
    test_ratings: npt.NDArray[np.float32]
    validation: pa.Table | None

    @classmethod
    def of(cls, train: pa.Table, test: pa.Table, validation: pa.Table | None = None) -> Self:
        """Raises:
        DataError: a part is empty, or its ids are of other types.
        """
        if len(test) == 0:
            raise DataError(f"the test part is empty (the training part has {len(train):,} ratings): raise test_size")
        if len(train) == 0:
            raise DataError(f"the training part is empty (the test part has {len(test):,} ratings): lower test_size")
        users, movies = (Side.of(train[column], test[column]) for column in (USER, MOVIE))
        return cls(users, movies, train[RATING].to_numpy(), test[RATING].to_numpy(), validation)

    def rated(self) -> csr_array:
        """Test users × movies of the training part: what each has rated in the training and the validation part."""
        # Of each user of the training part, the place among the test part's.
        places = np.full(len(self.users.seen), -1, np.int32)
        known = self.users.rows >= 0
        places[self.users.rows[known]] = np.flatnonzero(known)
        users, movies = places[self.users.train], self.movies.train
        if self.validation is not None:
            more = Vocabulary(self.users.ids).rows(self.validation[USER])
            users = np.concatenate([users, more])
            movies = np.concatenate([movies, self.movies.seen.rows(self.validation[MOVIE])])
        return self._pairs(users, movies)

    def relevant(self, threshold: float) -> csr_array:
        """Test users × movies of the training part: what each has rated ``threshold`` or higher in the test part."""
        liked = self.test_ratings >= threshold
        return self._pairs(self.users.test[liked], self.movies.test_rows[liked])

    def wanted(self, threshold: float) -> Ints:
        """Of each test user, the test ratings of ``threshold`` or higher, those of unseen movies included."""
        return np.bincount(self.users.test[self.test_ratings >= threshold], minlength=len(self.users.ids))

    def _pairs(self, users: Ints, movies: Ints) -> csr_array:
        both = (users >= 0) & (movies >= 0)
        shape = len(self.users.ids), len(self.movies.seen)
        return csr_array((np.ones(both.sum(), np.bool_), (users[both], movies[both])), shape)
