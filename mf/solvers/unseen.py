"""What a model answers where a user or a movie has no training ratings: the damped bias model's own answer."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mf.biases import BiasModel
from mf.model import MatrixFactorization
from mf.solvers.base import Interactions

# Beside so many factors that were fitted the two that the exact answer takes cost known pairs nothing: what real
# ratings have in common fits into fewer.
ENOUGH_FACTORS = 32


class BiasFallback:
    """Makes models whose mu and biases are the damped bias model's (``mf.biases``), beside which whatever a solver has
    fitted stands in the products. An unseen row has a bias of 0 and a zero vector, so its pairs get the bias model's
    answer, exactly.

    With β the damped biases and mu the mean rating, what was fitted is

        b_u + b_m + p·q = β_u + β_m + [p, b_u - β_u, 1]·[q, 1, b_m - β_m].

    Where the vectors have no room for two factors more, see ``near``.

    Args:
        train: every row of both sides has a rating in it.
        validation: may be empty; only its largest and smallest rating are taken, for the range.
    """

    def __init__(self, train: Interactions, validation: Interactions) -> None:
        ends = [r for part in (train, validation) if len(part) for r in part.ratings.aminmax()]
        self.range = {"rating_min": min(ends).item(), "rating_max": max(ends).item()}
        self.device = train.ratings.device
        users, movies, ratings = (x.cpu().numpy() for x in (train.users, train.movies, train.ratings))
        with np.errstate(invalid="ignore"):  # of ratings that are not finite; the first epoch says so
            biases = BiasModel.fit(users, movies, ratings, train.n_users, train.n_movies)
        self.mu = biases.mean
        self.user_bias, self.movie_bias = (
            torch.from_numpy(b).float().to(self.device) for b in (biases.user_bias, biases.movie_bias)
        )
        user_counts, movie_counts = train.counts()
        self.counts = user_counts.clamp(min=1).float(), movie_counts.clamp(min=1).float()

    def finished(
        self, p: Tensor, q: Tensor, b_u: Tensor, b_m: Tensor, factors: int, fitted: int = ENOUGH_FACTORS
    ) -> MatrixFactorization:
        """mean + b_u + b_m + p·q as a model with vectors of ``factors`` entries: exact beside an unseen row when they
        have room for two more than the ``fitted`` ones that matter, and near otherwise.

        Args:
            p, q: float32[n_users, k] and float32[n_movies, k].
            b_u, b_m: float32[n_users] and float32[n_movies], to be added to the mean rating.
        """
        if self.has_room(fitted, factors) or p.shape[1] > factors:
            return self.cut(self.exact(p, q, b_u, b_m), factors)
        missing = (0, factors - p.shape[1])
        return self.near(pad(p, missing), pad(q, missing), b_u, b_m)

    @staticmethod
    def has_room(fitted: int, factors: int) -> bool:
        return fitted + 2 <= factors

    def rest(self, b_u: Tensor, b_m: Tensor) -> tuple[Tensor, Tensor]:
        """[b_u - β_u, 1] float32[n_users, 2] and [1, b_m - β_m] float32[n_movies, 2]."""
        users, movies = b_u - self.user_bias, b_m - self.movie_bias
        return torch.stack([users, torch.ones_like(users)], 1), torch.stack([torch.ones_like(movies), movies], 1)

    def exact(self, p: Tensor, q: Tensor, b_u: Tensor, b_m: Tensor) -> MatrixFactorization:
        """mean + b_u + b_m + p·q as such a model, with two factors more than p and q have."""
        users, movies = self.rest(b_u, b_m)
        return self.model(torch.cat([p, users], 1), torch.cat([q, movies], 1))

    def cut(self, model: MatrixFactorization, factors: int) -> MatrixFactorization:
        """``model`` with vectors of ``factors`` entries that do not depend on the solver's own axes: orthogonal and of
        the same length on both sides, the weightiest first. The products are the best approximation of that rank
        (Eckart & Young 1936), where an error counts by how many ratings the user and the movie have; they are the same
        when ``model`` has no more factors than that."""
        tables = [side.weight.detach() for side in (model.user_factors, model.movie_factors)]
        roots = [counts.sqrt().unsqueeze(1) for counts in self.counts]
        (left, r_left), (right, r_right) = (torch.linalg.qr(r * table) for r, table in zip(roots, tables, strict=True))
        # In float64: it is small, and what is weak beside the first factors shall be exact as well.
        u, s, vt = torch.linalg.svd(r_left.double() @ r_right.double().mT, full_matrices=False)
        turns = [(side[:, :factors] * s[:factors].sqrt()).float() for side in (u, vt.mT)]
        sides = [basis @ turn / root for basis, turn, root in zip((left, right), turns, roots, strict=True)]
        return self.model(*(pad(side, (0, factors - side.shape[1])) for side in sides))

    def near(self, p: Tensor, q: Tensor, b_u: Tensor, b_m: Tensor) -> MatrixFactorization:
        """mean + b_u + b_m + p·q with no factor more, and biases as near to β as they come without changing the answer
        for a known pair: p·q = (p - d)·(q - c) + p·c + d·q - d·c for any c and d, so p·c can go to b_u and d·q to b_m.
        """
        p, q, b_u, b_m = (x.double() for x in (p, q, b_u, b_m))
        c, b_u, shift_u = _drawn_near(self.user_bias.double(), b_u, p, self.counts[0].double())
        d, b_m, shift_m = _drawn_near(self.movie_bias.double(), b_m, q, self.counts[1].double())
        model = self.model((p - d).float(), (q - c).float(), b_u.float(), b_m.float())
        model.mu.sub_(shift_u + shift_m + (d @ c).item())
        return model

    def model(self, p: Tensor, q: Tensor, b_u: Tensor | None = None, b_m: Tensor | None = None) -> MatrixFactorization:
        """These vectors and biases, without biases the bias model's, and its mu."""
        model = MatrixFactorization(len(p), len(q), p.shape[1], mu=self.mu, **self.range).to(self.device)
        for table, values in (
            (model.user_factors, p),
            (model.movie_factors, q),
            (model.user_bias, (self.user_bias if b_u is None else b_u).unsqueeze(1)),
            (model.movie_bias, (self.movie_bias if b_m is None else b_m).unsqueeze(1)),
        ):
            table.weight.data = values.contiguous()
        return model.eval()


def _drawn_near(target: Tensor, bias: Tensor, vectors: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, float]:
    """c float64[k] and a such that bias + vectors·c + a is as near to ``target`` as can be, a row counting by its
    ratings; and that sum float64[n]."""
    columns = torch.cat([vectors, torch.ones_like(bias).unsqueeze(1)], 1)
    weighted = columns * counts.unsqueeze(1)
    found = torch.linalg.pinv(columns.mT @ weighted, hermitian=True, rtol=1e-10) @ (weighted.mT @ (target - bias))
    return found[:-1], bias + columns @ found, found[-1].item()
