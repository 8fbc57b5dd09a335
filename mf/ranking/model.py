"""The fitted ranking model: scores, lists, and user vectors as plain sums."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array

from mf.errors import DataError
from mf.ranking.interactions import Floats, Int64s, Interactions, UserRows
from mf.ranking.matrix import segment_sums
from mf.ranking.recency import recency_weights
from mf.workers import Workers, pieces

SUMMED = 128  # ratings that are added up in float32; these sums are then added up in float64
USERS = 8192  # per block of user vectors
SCORES = 8 << 20  # per block of lists

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RankingModel:
    """score = p_u . q_m + b_m, with p_u = sum over the user's ratings of (history_m + like x liking_m).

    like = rho (r - mu) / sd, and 0 where ratings are not looked at. An unseen user has p_u = 0 and gets the order of
    the biases. A row is a movie, in the order of the training's row numbers.

    Attributes:
        bias: float32[movies], b.
        embedding: float32[movies, factors], q.
        history, liking: float32[movies, factors].
        mu, sd: mean and standard deviation of the training ratings; ``None`` where ratings are not looked at.
        rho: weight of the liking.
        regularization: lambda of the full model.
        teacher_rank: singular vectors that the full model was computed from.
        energy_beyond: share of the squared inputs that these leave out, 0 to 1.
        relevance_threshold: rating from which a movie counted as liked; ``None`` where ratings are not looked at.
        recency: whether a user's ratings are weighted by their place in time (``mf.ranking.recency``).
    """

    bias: Floats
    embedding: Floats
    history: Floats
    liking: Floats
    mu: float | None
    sd: float | None
    rho: float
    regularization: float
    teacher_rank: int
    energy_beyond: float
    relevance_threshold: float | None
    recency: bool = False

    def user_vector(
        self, movies: npt.ArrayLike, ratings: npt.ArrayLike | None = None, times: npt.ArrayLike | None = None
    ) -> Floats:
        """float32[factors], p of one user from any ratings, new or known: a sum in float64, exact without training.

        Args:
            movies: int[n], rows of the rated movies; -1, a movie unseen in training, counts nothing.
            ratings: float[n]; may be absent only where the model does not look at them.
            times: int[n], when they were given; only the recency option reads it, and weights all alike without it.

        Raises:
            DataError: ratings are missing, not finite, or not one per movie, or a row is out of range.
        """
        rows, history, liking = self._weights(movies, ratings, times)
        summed = history @ self.history[rows].astype(np.float64) + liking @ self.liking[rows].astype(np.float64)
        return np.asarray(summed, dtype=np.float32)

    def user_vectors(self, interactions: Interactions, threads: int | None = None) -> Floats:
        """float32[users, factors], p of all users; a user without ratings has zeros.

        Partial sums of 128 ratings in float32 are added up in float64, which agrees with ``user_vector`` to 1e-6 of the
        largest entry, for users with 10,000 ratings too. The bits do not depend on ``threads``.

        Raises:
            DataError: as ``user_vector``.
        """
        rows = UserRows.of(interactions)
        if interactions.n_movies > len(self.bias):
            raise DataError(
                f"user vectors: found {interactions.n_movies:,} movies, expected at most {len(self.bias):,}"
            )
        weights = recency_weights(rows.users, rows.times) if self.recency and rows.times is not None else None
        values: list[tuple[Floats, Floats | None]] = [(self.history, weights)]
        if self.mu is not None:
            like = self._like(self._given(rows.ratings, len(rows.movies)))
            values.append((self.liking, like if weights is None else like * weights))
        out = np.zeros((interactions.n_users, self.embedding.shape[1]), np.float32)

        def fill(users: slice) -> None:
            start, end = rows.offsets[users.start], rows.offsets[users.stop]
            edges = rows.offsets[users.start : users.stop + 1] - start
            parts = -(-np.diff(edges) // SUMMED)  # partial sums of each user
            firsts = np.r_[0, np.cumsum(parts)]
            number = np.arange(firsts[-1]) - np.repeat(firsts[:-1], parts)
            offsets = np.r_[np.repeat(edges[:-1], parts) + SUMMED * number, edges[-1]].astype(np.int32)
            movies, total = torch.from_numpy(rows.movies[start:end]), None
            for table, w in values:
                weight = None if w is None else torch.from_numpy(w[start:end])
                part = segment_sums(torch.from_numpy(table), movies, torch.from_numpy(offsets), weight).double()
                total = part if total is None else total.add_(part)
            assert total is not None
            if len(total):
                summed = torch.segment_reduce(total, "sum", lengths=torch.from_numpy(parts), axis=0)
                out[users] = summed.numpy()

        with Workers(torch.device("cpu"), threads) as workers:
            workers.map(fill, pieces(interactions.n_users, USERS))
        return out

    def scores(self, vectors: Floats) -> Floats:
        """float32[n, movies], scores of every movie for user vectors float32[n, factors]."""
        return np.asarray(vectors @ self.embedding.T + self.bias, dtype=np.float32)

    def recommend(self, vectors: Floats, k: int = 10, exclude: csr_array | None = None) -> tuple[Ints, Floats]:
        """The k movies with the highest scores per user, the highest first; of equal ones the first row comes first.

        Args:
            vectors: float32[n, factors], user vectors.
            k: length of a list.
            exclude: [n, movies], whose entries are left out (what the user has rated).

        Returns:
            int64[n, k] movie rows, -1 where there are no more, and float32[n, k] scores, there -inf.
        """
        k_there = min(k, len(self.bias))
        rows = np.full((len(vectors), k), -1, np.int64)
        scores = np.full((len(vectors), k), -np.inf, np.float32)
        for at in pieces(len(vectors), max(1, SCORES // len(self.bias))):
            own = self.scores(vectors[at])
            if exclude is not None:
                left_out = exclude[at]
                own[np.repeat(np.arange(len(own)), np.diff(left_out.indptr)), left_out.indices] = -np.inf
            best = _highest(own, k_there)
            found = np.take_along_axis(own, best, 1)
            rows[at, :k_there] = np.where(found > -np.inf, best, -1)
            scores[at, :k_there] = found
        return rows, scores

    def because(
        self,
        recommended: Sequence[int] | Ints,
        movies: npt.ArrayLike,
        ratings: npt.ArrayLike | None = None,
        times: npt.ArrayLike | None = None,
    ) -> Ints:
        """int64[k], for each recommended movie the rated one that speaks most for it; -1 where there is none.

        That is, among the user's ratings at or above mu (all, where ratings are not looked at), the one whose term of
        p_u . q_m is the largest; of equal ones the movie with the first row.

        Args:
            recommended: int[k], movie rows.
            movies, ratings, times: the user's ratings, as for ``user_vector``.

        Raises:
            DataError: as ``user_vector``.
        """
        rows, liking, terms = self.terms(recommended, movies, ratings, times)
        if self.mu is not None:
            liked = liking >= 0
            rows, terms = rows[liked], terms[liked]
        if not len(rows):
            return np.full(terms.shape[1], -1, np.int64)
        order = np.argsort(rows, kind="stable")
        best: Ints = rows[order][np.argmax(terms[order], axis=0)]
        return best

    def terms(
        self,
        recommended: Sequence[int] | Ints,
        movies: npt.ArrayLike,
        ratings: npt.ArrayLike | None = None,
        times: npt.ArrayLike | None = None,
    ) -> tuple[Int64s, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """What each of a user's ratings adds to the scores of some movies: score = b_m + the sum over the ratings.

        Args:
            recommended: int[k], movie rows.
            movies, ratings, times: the user's n ratings, as for ``user_vector``.

        Returns:
            int64[n], the rows of the rated movies that are known; float64[n], the weights of their liking vectors,
            negative for ratings below mu; float64[n, k], the terms.

        Raises:
            DataError: as ``user_vector``.
        """
        rows, history, liking = self._weights(movies, ratings, times)
        vectors = history[:, None] * self.history[rows] + liking[:, None] * self.liking[rows]
        wanted = np.asarray(recommended, dtype=np.int64)
        return rows, liking, vectors @ self.embedding[wanted].astype(np.float64).T

    def _like(self, ratings: Floats) -> Floats:
        """float32[n], rho (r - mu) / sd."""
        assert self.mu is not None
        assert self.sd is not None
        return np.asarray(self.rho / self.sd * (ratings.astype(np.float64) - self.mu), dtype=np.float32)

    def _given(self, ratings: Floats | None, n: int) -> Floats:
        if ratings is None:
            raise DataError("ranking: found no ratings, expected one per movie: this model was trained on ratings")
        if len(ratings) != n:
            raise DataError(f"ranking: found {len(ratings):,} ratings, expected {n:,}, one per movie")
        if not np.isfinite(ratings).all():
            raise DataError("ranking: found a rating that is not finite, expected numbers: remove it")
        return ratings

    def _weights(
        self, movies: npt.ArrayLike, ratings: npt.ArrayLike | None, times: npt.ArrayLike | None
    ) -> tuple[Int64s, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Rows of the movies that are known, and float64 weights of their history and liking vectors."""
        rows = np.asarray(movies, dtype=np.int64)
        if len(rows) and not (rows.min() >= -1 and rows.max() < len(self.bias)):
            raise DataError(
                f"ranking: found movie rows {rows.min()} to {rows.max()}, expected -1 to {len(self.bias) - 1}"
            )
        like = np.zeros(len(rows))
        if self.mu is not None:
            given = self._given(None if ratings is None else np.asarray(ratings, dtype=np.float32), len(rows))
            like = self._like(given).astype(np.float64)
        weight = np.ones(len(rows))
        known = rows >= 0
        if self.recency and times is not None:
            when = np.asarray(times, dtype=np.int64)
            weight[known] = recency_weights(np.zeros(int(known.sum()), np.int64), when[known])
        return rows[known], weight[known], (weight * like)[known]


def _highest(scores: Floats, k: int) -> Ints:
    """int64[n, k], columns of the k highest scores of each row, the highest first; of equal ones the first column."""
    columns = scores.shape[1]
    last = np.partition(scores, columns - k, axis=1)[:, columns - k, None]
    chosen = scores >= last
    tied = np.flatnonzero(chosen.sum(1) > k)
    above, equal = scores[tied] > last[tied], scores[tied] == last[tied]
    chosen[tied] = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdims=True)))
    best = np.nonzero(chosen)[1].reshape(len(scores), k)
    order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
    return np.take_along_axis(best, order, 1)
