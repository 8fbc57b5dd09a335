"""What tells a movie's high ratings from its low ones: one ridge regression per movie."""

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import embedding, pad

from mf.ranking.matrix import LIKING, RATED, RatingMatrix

RIDGE = 1.0  # added to z'z, whose terms are of length about 1
DAMPING = 5  # ratings of zero added to a movie's and a user's mean
RATERS = 2048  # of one movie that are looked at, evenly spaced: 64 unknowns need no more
PANEL = 8192  # raters per piece of work
PANEL_MOVIES = 1024
SAMPLE = 500  # users on whom the spread of scores is measured


def taste_vectors(
    matrix: RatingMatrix, p: Tensor, q: Tensor, inputs: dict[str, Tensor], unit: float, weight: float
) -> Tensor:
    """float32[movies, K], what to add to the movies' vectors q so that a list has what is likely to be rated *and* liked.

    With z_um = (p_u less what movie m itself adds to it) / |p_u| and e_um what the damped biases leave of the rating,

        c_m minimises  sum over its raters of (e_um - z_um . c)² + |c|²

    All c_m are scaled alike, so that z_u . c_m spreads over the movies ``weight`` times as wide as z_u . q_m.

    Args:
        p: float32[users, K], sums of ``inputs`` over each user's entries.
        inputs: float32[movies, K] per channel, which must include "liking".
        unit: rating units of a 1 in the channel "liking".
    """
    movies, k = q.shape
    device = q.device
    flat = torch.ones(matrix.users, 1, device=device)
    movie_mean = matrix.transposed(flat, [LIKING])[LIKING][:, 0] * unit / (matrix.movie_counts + DAMPING)
    tables = {LIKING: torch.full((movies, 1), unit, device=device), RATED: -movie_mean[:, None]}
    user_mean = matrix.times(tables, 1 / (matrix.user_counts + DAMPING))[:, 0]
    matrix.drop_blocks()
    raters, liking, ends = _by_movie(matrix)
    length = 1 / p.norm(dim=1).clamp(min=1e-9)
    # The row after the last user pads panels of movies that have not quite the same number of raters.
    directions, length, user_mean = (
        pad(x, (*(0,) * (2 * x.dim() - 1), 1)) for x in (p * length[:, None], length, user_mean)
    )
    own = torch.stack([inputs[RATED], inputs[LIKING]], 1)
    taken = matrix.movie_counts.clamp(max=RATERS)
    out = torch.zeros(movies, k, device=device)
    ridge = RIDGE * torch.eye(k, device=device)

    def solve(panel: tuple[int, Tensor]) -> None:
        n, at = panel
        counts, counted = matrix.movie_counts[at, None], taken[at, None].clamp(min=1)
        step = torch.arange(n, device=device)
        place = ends[at, None] - counts + step * counts // counted
        there = step < taken[at, None]
        who = torch.where(there, raters[place.where(there, 0)], matrix.users)
        like, over = liking[place.where(there, 0)], length[who]
        z = torch.baddbmm(embedding(who, directions), torch.stack([over, over * like], 2), own[at], alpha=-1)
        left = ((like * unit - movie_mean[at, None] - user_mean[who]) * there)[..., None]
        if n < k:  # the same by a system of the raters' size
            kernel = z @ z.mT + RIDGE * torch.eye(n, device=device)
            out[at] = (z.mT @ torch.cholesky_solve(left, torch.linalg.cholesky(kernel)))[..., 0]
        else:
            out[at] = torch.cholesky_solve(z.mT @ left, torch.linalg.cholesky(z.mT @ z + ridge))[..., 0]

    matrix.workers.map(solve, _panels(taken))
    some = directions[: matrix.users : max(1, matrix.users // SAMPLE)]
    wide, narrow = ((some @ vectors.T).std(1, correction=0).mean() for vectors in (q, out))
    return out * (weight * wide / narrow.clamp(min=1e-12))


def _by_movie(matrix: RatingMatrix) -> tuple[Tensor, Tensor, Tensor]:
    """int32[N] users and float32[N] liking, both by movie, and int64[movies] where each movie's entries end."""
    liking = matrix.values[LIKING]
    assert liking is not None
    arrays = tuple(x.cpu().numpy() for x in (liking, matrix.index, matrix.offsets))
    by_movie = csr_array(arrays, shape=(matrix.users, matrix.movies)).tocsc()
    found = (by_movie.indices, by_movie.data, by_movie.indptr[1:].astype(np.int64))
    raters, values, ends = (torch.from_numpy(x).to(matrix.device) for x in found)
    return raters, values, ends


def _panels(counts: Tensor) -> list[tuple[int, Tensor]]:
    """Movies with about as many raters each: their largest number and their rows; movies without a rater are left out."""
    order = torch.argsort(counts, descending=True, stable=True)
    most, panels, start = counts[order].tolist(), [], 0
    while start < len(most) and most[start]:
        size = max(1, min(PANEL_MOVIES, PANEL // most[start]))
        panels.append((most[start], order[start : start + size]))
        start += size
    return panels
