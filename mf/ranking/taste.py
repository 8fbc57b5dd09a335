"""What tells a movie's high ratings from its low ones: one ridge regression per movie."""

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import embedding, pad

from mf.ranking.interactions import Floats, Int32s, Int64s
from mf.ranking.matrix import LIKING, RATED, RatingMatrix
from mf.workers import pieces

RIDGE = 1.0  # added to z'z, whose terms are of length about 1
DAMPING = 5  # ratings of zero added to a movie's and a user's mean
RATERS = 2048  # of one movie that are looked at: 64 unknowns need no more
GOLDEN = 0.6180339887498949
PANEL = 8192  # raters per piece of work
PANEL_MOVIES = 1024
# The largest number of raters of a movie, the same of this process's raters, and the movies' rows.
Panel = tuple[int, int, Tensor]
PANELS = 64  # that are worked on together: 128 MB of raters
SAMPLE = 500  # users on whom the spread of scores is measured


def taste_vectors(
    matrix: RatingMatrix, p: Tensor, q: Tensor, inputs: dict[str, Tensor], unit: float, weight: float
) -> Tensor:
    """float32[movies, K], what to add to q so that a list has what is likely to be rated *and* liked.

    With z_um = (p_u less what movie m itself adds to it) / |p_u| and e_um what the damped biases leave of the rating,

        c_m minimises  sum over its raters of (e_um - z_um . c)² + |c|²

    All c_m are scaled alike, so that z_u . c_m spreads over the movies ``weight`` times as wide as z_u . q_m.

    Args:
        p: float32[users, K], sums of ``inputs`` over each entry of this process's users.
        inputs: float32[movies, K] per channel, which must include "liking".
        unit: rating units of a 1 in the channel "liking".
    """
    movies, k = q.shape
    device = q.device
    liked = matrix.transposed(1 / matrix.scale[:, None], [LIKING])[LIKING]
    movie_mean = liked[:, 0] * unit / (matrix.movie_counts + DAMPING)
    tables = {LIKING: torch.full((movies, 1), unit, device=device), RATED: -movie_mean[:, None]}
    user_mean = matrix.times(tables, 1 / (matrix.user_counts + DAMPING))[:, 0]
    matrix.drop_blocks()
    raters, liking, offsets = _raters(matrix)
    here = offsets.diff()
    counts = matrix.ranks.sum(here.clone())
    length = 1 / p.norm(dim=1).clamp(min=1e-9)
    # The row after the last user pads panels of movies that have not quite the same number of raters.
    directions, length, user_mean = (
        pad(x, (*(0,) * (2 * x.dim() - 1), 1)) for x in (p * length[:, None], length, user_mean)
    )
    own = torch.stack([inputs[RATED], inputs[LIKING]], 1)
    out = torch.zeros(movies, k, device=device)

    def equations(panel: Panel) -> Tensor:
        """z and e of this process's raters, float32[panel, raters, k + 1]; z'z and z'e, [panel, k, k + 1], where there
        are at least k raters."""
        n, most, at = panel
        step = torch.arange(most, device=device)
        there = step < here[at, None]
        place = (offsets[at, None] + step).where(there, 0)
        who = torch.where(there, raters[place], matrix.users)
        like, over = liking[place], length[who]
        z = torch.baddbmm(embedding(who, directions), torch.stack([over, over * like], 2), own[at], alpha=-1)
        left = ((like * unit - movie_mean[at, None] - user_mean[who]) * there)[..., None]
        found: Tensor = torch.cat([z, left] if n < k else [z.mT @ z, z.mT @ left], 2)
        return found

    def solve(task: tuple[Panel, list[Tensor]]) -> None:
        (n, _, at), parts = task
        if n < k:  # the same by a system of the raters' size
            both = torch.cat(parts, 1)
            z, left = both[..., :k], both[..., k:]
            kernel = z @ z.mT + RIDGE * torch.eye(z.shape[1], device=device)
            out[at] = (z.mT @ torch.cholesky_solve(left, torch.linalg.cholesky(kernel)))[..., 0]
        else:
            square, right = parts[0][..., :k], parts[0][..., k:]
            ridge = RIDGE * torch.eye(k, device=device)
            out[at] = torch.cholesky_solve(right, torch.linalg.cholesky(square + ridge))[..., 0]

    ranks = matrix.ranks
    panels = _panels(counts, here)
    for some_panels in (panels[at] for at in pieces(len(panels), PANELS)):
        parts = matrix.workers.map(equations, some_panels)
        shared = [
            ranks.gather(part) if n < k else [ranks.sum(part)]
            for (n, _, _), part in zip(some_panels, parts, strict=True)
        ]
        tasks = list(zip(some_panels, shared, strict=True))
        matrix.workers.map(solve, tasks[ranks.rank :: ranks.world])
    ranks.sum(out)
    every = max(1, matrix.all_users // SAMPLE)
    some = directions[-matrix.first_user % every : matrix.users : every]
    spreads = [(some @ vectors.T).std(1, correction=0).sum(dtype=torch.float64) for vectors in (q, out)]
    wide, narrow = ranks.sum(torch.stack(spreads)).float()
    spread: Tensor = wide / narrow.clamp(min=1e-12)
    return out * (weight * spread)


def _raters(matrix: RatingMatrix) -> tuple[Tensor, Tensor, Tensor]:
    """This process's users, int32[n], and their liking, float32[n], by movie; and where each movie's start,
    int64[movies + 1].

    Of a movie with more than ``RATERS`` ratings about as many are taken: those of the users whose multiple of the
    golden ratio has a small enough fraction, which spreads them evenly over the user rows.
    """
    liking = matrix.values[LIKING]
    assert liking is not None
    values, movies, edges = (x.cpu().numpy() for x in (liking, matrix.index, matrix.offsets))
    place = (np.arange(matrix.first_user, matrix.first_user + matrix.users) * GOLDEN % 1).astype(np.float32)
    share = (RATERS / matrix.movie_counts.clamp(min=1)).float().cpu().numpy()

    def take(users: slice) -> tuple[Int64s, Int32s, Floats]:
        start, end = edges[users.start], edges[users.stop]
        own, counts = movies[start:end], np.diff(edges[users.start : users.stop + 1])
        taken = np.repeat(place[users], counts) < share[own]
        ends = np.r_[0, np.cumsum(taken)][edges[users.start + 1 : users.stop + 1] - start]
        return ends, own[taken], values[start:end][taken]

    offsets = [np.zeros(1, np.int64)]
    taken = matrix.workers.map(take, pieces(matrix.users))
    for ends, _, _ in taken:
        offsets.append(offsets[-1][-1] + ends)
    _, index, liked = (np.concatenate(x) for x in zip(*taken, strict=True))
    by_movie = csr_array((liked, index, np.concatenate(offsets)), shape=(matrix.users, matrix.movies)).tocsc()
    found = (by_movie.indices, by_movie.data, by_movie.indptr.astype(np.int64))
    raters, likings, starts = (torch.from_numpy(x).to(matrix.device) for x in found)
    return raters, likings, starts


def _panels(counts: Tensor, here: Tensor) -> list[Panel]:
    """Movies with about as many raters each, at least one.

    Args:
        counts, here: int64[movies], raters of each movie, and those of this process.
    """
    order = torch.argsort(counts, descending=True, stable=True)
    most, panels, start = counts[order].tolist(), [], 0
    while start < len(most) and most[start]:
        size = max(1, min(PANEL_MOVIES, PANEL // most[start]))
        panels.append((most[start], order[start : start + size]))
        start += size
    own = torch.stack([here[at].max() for _, at in panels]).tolist() if panels else []
    return [(n, m, at) for (n, at), m in zip(panels, own, strict=True)]
