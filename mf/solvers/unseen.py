"""Cold start: predictions for unseen users and movies are those of the damped bias model."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from mf.biases import DAMPING
from mf.model import MatrixFactorization, batches
from mf.solvers.base import RatingTensors, Share, rmse
from mf.solvers.dots import plain_dots
from mf.solvers.gaussian import Block, Equations, PosteriorMoments, RatingsByRow, by_user_and_movie, each_block
from mf.solvers.rows import Rows, summable
from mf.workers import Workers

# With this many fitted factors, giving two to the biases costs known pairs nothing: what real ratings have in common
# fits into fewer.
ENOUGH_FACTORS = 32
# With fewer, vectors are refitted when the training RMSE rises by more, in standard deviations of the ratings.
ALLOWED_LOSS = 0.005
# Largest number of training ratings, evenly spaced, for a training RMSE: accurate to a thousandth or two.
RMSE_SAMPLE = 1 << 18
# Sweeps of a refit, and the weight of its prior at the vectors before the sweep, in ratings of an average row. The
# weight makes a sweep move the vectors a little: they stay near the solver's, which overfit less than least squares.
REFIT_SWEEPS, PRIOR_WEIGHT = 10, 2.0
LEAST_GAIN = 0.1  # share of the excess loss that a sweep must remove to be kept
# Columns depend on each other linearly where an eigenvalue of their correlations is smaller beside the largest one.
DEPENDENT = 1e-13

Columns = tuple[Tensor, ...]  # of one table, side by side


class BiasFallback:
    """Makes models whose mu and biases are the damped bias model's (``mf.biases``).

    All else that a solver has fitted goes into the vectors. An unseen row has a bias of 0 and a zero vector, so its
    predictions are exactly the bias model's. With β the damped biases and mu the mean rating:

        b_u + b_m + p·q = β_u + β_m + [p, b_u - β_u, 1]·[q, 1, b_m - β_m]

    The sum has two factors more than the solver's vectors, and is then truncated to ``factors``. Where few factors make
    that cost training RMSE, the truncated vectors are refitted: see ``reduced``.

    Args:
        train: the training ratings; every row has at least one.
        validation: this rank's; may be empty; only its smallest and largest rating are used, for the rating range.

    Attributes:
        mu: mean of the training ratings.
        user_bias, movie_bias: float32, the damped biases of this rank's users and of all movies.
        counts: float32, training ratings of each of this rank's users and of each movie, at least 1.
        range: rating_min and rating_max.
        sample: this rank's part of evenly spaced training ratings, for training RMSEs.
    """

    def __init__(self, train: Share, validation: RatingTensors) -> None:
        extremes = torch.stack([r for data in (train.own, validation) if len(data) for r in data.ratings.aminmax()])
        both = train.ranks.gather(torch.stack(extremes.aminmax()))
        self.range = {"rating_min": both.min().item(), "rating_max": both.max().item()}
        self.device, self.train = train.device, train
        self.workers = Workers(self.device)
        self.by_row: tuple[RatingsByRow, RatingsByRow] | None = None
        self.sample = train.evenly_spaced(RMSE_SAMPLE)
        self.allowed_loss = ALLOWED_LOSS * train.std
        self.mu = train.mean
        user_bias, movie_bias = _damped_biases(train, both.max().item() - both.min().item())
        self.user_bias, self.movie_bias = user_bias.float(), movie_bias.float()
        self.counts = train.user_counts.clamp(min=1).float(), train.movie_counts.clamp(min=1).float()

    def to_model(
        self, p: Tensor, q: Tensor, b_u: Tensor, b_m: Tensor, factors: int, fitted: int = ENOUGH_FACTORS
    ) -> MatrixFactorization:
        """The model nearest to mu + b_u + b_m + p·q with the damped biases and vectors of ``factors`` entries.

        Args:
            p, q: float32[n_users, k] and float32[n_movies, k].
            b_u, b_m: float32[n_users] and float32[n_movies].
            fitted: number of factors that must be kept; with room for two more the model is not refitted.
        """
        widened = self.widened_model(p, q, b_u, b_m)
        return self.truncated(widened, factors) if self.has_room(fitted, factors) else self.reduced(widened, factors)

    @staticmethod
    def has_room(fitted: int, factors: int) -> bool:
        """Whether vectors of ``factors`` entries hold ``fitted`` factors and two more."""
        return fitted + 2 <= factors

    def bias_factors(self, b_u: Tensor, b_m: Tensor) -> tuple[Tensor, Tensor]:
        """[b_u - β_u, 1] float32[n_users, 2] and [1, b_m - β_m] float32[n_movies, 2]."""
        users, movies = b_u - self.user_bias, b_m - self.movie_bias
        return torch.stack([users, torch.ones_like(users)], 1), torch.stack([torch.ones_like(movies), movies], 1)

    def widened_model(self, p: Tensor, q: Tensor, b_u: Tensor, b_m: Tensor) -> MatrixFactorization:
        """mu + b_u + b_m + p·q with the damped biases, and two factors more than p and q have."""
        users, movies = self.bias_factors(b_u, b_m)
        return self.model(torch.cat([p, users], 1), torch.cat([q, movies], 1))

    def truncated(self, model: MatrixFactorization, factors: int) -> MatrixFactorization:
        """``model`` with vectors of ``factors`` entries: a truncated SVD of its products.

        It is the best approximation of that rank (Eckart & Young 1936) when an error is weighted by the ratings of the
        user and of the movie, and exact when ``model`` has no more factors. The result does not depend on the solver's
        own axes: factors are orthogonal, of equal length for users and movies, in descending order of weight.
        """
        users, movies = ((table.weight.detach(),) for table in (model.user_factors, model.movie_factors))
        sides = self.train.users, self.train.movies
        vectors = [
            side.times(columns, turn[:, :factors], self.workers)
            for side, columns, turn in zip(sides, (users, movies), self._turns(users, movies), strict=True)
        ]
        return self.model(*(pad(v, (0, factors - v.shape[1])) for v in vectors))

    def _turns(self, users: Columns, movies: Columns) -> tuple[Tensor, Tensor]:
        """float64[k, k] T_u and T_m such that (users T_u)·(movies T_m) are the same products, and the first j columns
        are the truncated SVD of rank j that ``truncated`` describes.

        Args:
            users, movies: float32[n_users, k] and float32[n_movies, k], as columns side by side.
        """
        # With A = Q R, of which only AᵀA = RᵀR is needed, and R_u R_mᵀ = U S Vᵀ: T_u = R_u⁻¹ U S^½, T_m = R_m⁻¹ V S^½.
        # In float64, so that factors that are weak beside the first ones are exact as well.
        sides = self.train.users, self.train.movies
        grams = (
            side.gram(columns, counts, self.workers)
            for side, columns, counts in zip(sides, (users, movies), self.counts, strict=True)
        )
        (r_users, users_inverse), (r_movies, movies_inverse) = (_root(gram) for gram in grams)
        u, s, vt = torch.linalg.svd(r_users @ r_movies.mT)
        return users_inverse @ (u * s.sqrt()), movies_inverse @ (vt.mT * s.sqrt())

    def predictor(self, p: Tensor, q: Tensor, b_u: Tensor, b_m: Tensor, factors: int) -> "FinishedPredictions | None":
        """Predicts as ``to_model`` would, which is not made; ``None`` where that has to be refitted."""
        extra = self.bias_factors(b_u, b_m)
        tables, sides = ((p, extra[0]), (q, extra[1])), (self.train.users, self.train.movies)
        x, y = (
            side.times(columns, turn[:, factors:], self.workers)
            for side, columns, turn in zip(sides, tables, self._turns(*tables), strict=True)
        )
        rest = torch.column_stack([extra[0], -x]), torch.column_stack([extra[1], y])
        found = FinishedPredictions(self, (p, q), rest)
        if not self.has_room(ENOUGH_FACTORS, factors):
            both = (found, FinishedPredictions(self, (p, q), extra))
            loss, allowed = (rmse(each, self.sample, self.workers, self.train.ranks) for each in both)
            if loss > allowed + self.allowed_loss:
                return None
        return found

    def reduced(self, model: MatrixFactorization, factors: int) -> MatrixFactorization:
        """``model`` truncated, and refitted to the training ratings if that costs more than ``ALLOWED_LOSS`` of RMSE.

        A sweep of ridge regressions updates all movies given the users, then all users given the movies (alternating
        least squares). Sweeps end when the loss is small enough or hardly falls: there may be no vectors of ``factors``
        entries with a smaller loss. The axes are those of ``truncated``.
        """
        best = self.truncated(model, factors)
        ranks = self.train.ranks
        allowed, loss = (rmse(m, self.sample, ranks=ranks) for m in (model, best))
        allowed += self.allowed_loss
        for _ in range(REFIT_SWEEPS):
            if not loss > allowed:
                break
            by_user, by_movie = self.residuals_by_row(factors)
            p, q = best.user_factors.weight.detach(), best.movie_factors.weight.detach()
            q = _ridge_regressions(by_movie, q, p, self.train.users, self.counts[0], self.workers)
            p = _ridge_regressions(by_user, p, q, self.train.movies, self.counts[1], self.workers)
            refitted = self.truncated(self.model(p, q), factors)
            gain = loss - rmse(refitted, self.sample, ranks=ranks)
            if not gain > LEAST_GAIN * (loss - allowed):
                break
            best, loss = refitted, loss - gain
        return best

    def residuals_by_row(self, factors: int) -> tuple[RatingsByRow, RatingsByRow]:
        """The training ratings less mu and the damped biases, by user and by movie; kept for later epochs."""
        if self.by_row is None:
            own = self.train.own
            values = own.ratings - self.mu - self.user_bias[own.users] - self.movie_bias[own.movies]
            self.by_row = by_user_and_movie(self.train, values, factors, self.workers)
        return self.by_row

    def model(self, p: Tensor, q: Tensor, b_u: Tensor | None = None, b_m: Tensor | None = None) -> MatrixFactorization:
        """A model of these parameters; default biases: the damped ones."""
        model = MatrixFactorization(len(p), len(q), p.shape[1], mu=self.mu, **self.range).to(self.device)
        for table, values in (
            (model.user_factors, p),
            (model.movie_factors, q),
            (model.user_bias, (self.user_bias if b_u is None else b_u).unsqueeze(1)),
            (model.movie_bias, (self.movie_bias if b_m is None else b_m).unsqueeze(1)),
        ):
            table.weight.data = values.contiguous()
        return model.eval()


@dataclass(frozen=True)
class FinishedPredictions:
    """Predictions of a finished model without its vectors: mu + β_u + β_m + p·q + rest_u·rest_m, clipped.

    Attributes:
        fallback: has mu and the damped biases β.
        vectors: p float32[n_users, k] and q float32[n_movies, k].
        rest: float32[n_users, r] and float32[n_movies, r]: other biases, less what the truncation drops.
    """

    fallback: BiasFallback
    vectors: tuple[Tensor, Tensor]
    rest: tuple[Tensor, Tensor]

    def predict(self, users: Tensor, movies: Tensor) -> Tensor:
        """As ``MatrixFactorization.predict``."""
        return torch.cat([self._predict_batch(*batch) for batch in batches(users, movies)])

    def _predict_batch(self, users: Tensor, movies: Tensor) -> Tensor:
        known = users >= 0, movies >= 0
        rows = users.clamp(min=0), movies.clamp(min=0)
        biases = self.fallback.user_bias, self.fallback.movie_bias
        b_u, b_m = (bias.index_select(0, row) * seen for bias, row, seen in zip(biases, rows, known, strict=True))
        dots = plain_dots(*self.vectors, *rows) + plain_dots(*self.rest, *rows)
        score = self.fallback.mu + b_u + b_m + dots * (known[0] & known[1])
        return score.clamp(*self.fallback.range.values())

    @property
    def spread(self) -> float:
        """Largest difference between two predictions."""
        low, high = self.fallback.range.values()
        return high - low


def _root(gram: Tensor) -> tuple[Tensor, Tensor]:
    """R float64[k, k] with RᵀR = ``gram``, and its (pseudo-)inverse.

    Raises:
        torch.linalg.LinAlgError: a value is not finite.
    """
    scale = gram.diagonal().sqrt()
    scale = scale.where(scale > 0, 1)
    values, vectors = torch.linalg.eigh(gram / scale / scale.unsqueeze(1))
    full = values > DEPENDENT * values[-1]
    root = values.where(full, 1).sqrt()
    return (root * full).unsqueeze(1) * vectors.mT * scale, vectors * (full / root) / scale.unsqueeze(1)


def _ridge_regressions(
    ratings: RatingsByRow, rows: Tensor, others: Tensor, side: Rows, counts: Tensor, workers: Workers
) -> Tensor:
    """New vectors of this rank's users given the movies, or of all movies given the users, float32[n, k].

    A row's vector v minimises Σ (y - v·x)² + w·E[((v - v₀)·x)²] over its ratings y of rows with vectors x, where v₀ is
    its vector now, the mean E is over all ratings, and w is ``PRIOR_WEIGHT`` times the mean number of ratings per row.

    Args:
        rows: float32[n, k], v₀.
        others: float32[n_others, k].
        side: how the others lie on the ranks.
        counts: float32[n_others], ratings of each.
    """
    k = rows.shape[1]
    moments = PosteriorMoments(pad(others, (0, 1)))  # with biases of 0
    weighted = (others * counts.unsqueeze(1)).double()
    prior = PRIOR_WEIGHT / ratings.side.n * side.sum_of_rows(weighted.mT @ others.double())
    # For factors that are 0 in all rows.
    prior += (1e-9 * prior.trace() + 1e-30) * torch.eye(k, dtype=prior.dtype, device=prior.device)

    found = rows.new_empty(rows.shape)

    def work(block: Block, equations: Equations) -> None:
        gram, linear, start = equations.gram[:, :k, :k].double(), equations.linear[:, :k].double(), rows[block.rows]
        start = start.double()
        gradient = linear - (gram @ start.unsqueeze(2)).squeeze(2)
        factor, _ = torch.linalg.cholesky_ex(gram + prior)  # a failure leaves NaN, which ``truncated`` raises at
        found[block.rows] = (start + torch.cholesky_solve(gradient.unsqueeze(2), factor).squeeze(2)).float()

    each_block(work, ratings, moments, workers, written=(found,))
    return found


def _damped_biases(train: Share, spread: float) -> tuple[Tensor, Tensor]:
    """``mf.biases.BiasModel`` of the ratings of all ranks, on their device: float64, of this rank's users and of all
    movies; the same bits with any number of ranks.

    Args:
        spread: largest difference between two ratings.
    """
    own, n = train.own, len(train)
    deviations = summable(own.ratings.double().sub_(train.mean), spread, n)
    by_movie = torch.zeros(train.n_movies, dtype=torch.float64, device=train.device)
    by_movie.index_add_(0, own.movies, deviations)
    movie_bias = train.movies.sum_of_ratings(by_movie) / (train.movie_counts + DAMPING)
    deviations = summable(deviations - movie_bias.index_select(0, own.movies), 2 * spread, n)
    by_user = torch.segment_reduce(deviations, "sum", lengths=train.user_counts)
    return by_user / (train.user_counts + DAMPING), movie_bias
