"""What tells a movie's high ratings from its low ones: one ridge regression per movie."""

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import embedding, pad

from mf.ranking.interactions import Floats, Int32s, Int64s
from mf.ranking.matrix import LIKING, RATED, RatingMatrix
from mf.ranks import Ranks
from mf.workers import pieces

RIDGE = 1.0  # added to z'z, whose terms are of length about 1
DAMPING = 5  # ratings of zero added to a movie's and a user's mean
RATERS = 2048  # of one movie that are looked at: 64 unknowns need no more
GOLDEN = 0.6180339887498949
PANEL = 8192  # raters per piece of work
PANEL_MOVIES = 1024
Panel = tuple[int, Tensor]  # the largest number of raters of a movie, and the movies' rows
SAMPLE = 500  # users on whom the spread of scores is measured


def taste_vectors(
    matrix: RatingMatrix, p: Tensor, q: Tensor, inputs: dict[str, Tensor], unit: float, weight: float
) -> Tensor:
    """float32[movies, K], what to add to q so that a list has what is likely to be rated *and* liked.

    With z_um = (p_u less what movie m itself adds to it) / |p_u| and e_um what the damped biases leave of the rating,

        c_m minimises  sum over its raters of (e_um - z_um . c)² + |c|²

    All c_m are scaled alike, so that z_u . c_m spreads over the movies ``weight`` times as wide as z_u . q_m. Each
    process solves for its share of the movies.

    Args:
        p: float32[users, K], sums of ``inputs`` over each entry of this process's users.
        inputs: float32[movies, K] per channel, which must include "liking".
        unit: rating units of a 1 in the channel "liking".
    """
    movies, k = q.shape
    device = q.device
    liked = matrix.transposed(1 / matrix.scale[:, None], [LIKING], whole=[LIKING])[LIKING]
    movie_mean = liked[:, 0] * unit / (matrix.movie_counts + DAMPING)
    tables = {LIKING: torch.full((movies, 1), unit, device=device), RATED: -movie_mean[:, None]}
    user_mean = matrix.times(tables, 1 / (matrix.user_counts + DAMPING))[:, 0]
    matrix.drop_blocks()
    raters, liking, offsets, panels = _raters(matrix)
    # Of all users: those of a movie's raters that are another process's come from there. The row after the last user
    # pads panels of movies that have not quite the same number of raters.
    length = 1 / p.norm(dim=1).clamp(min=1e-9)
    end = int(matrix.first_user + matrix.users == matrix.all_users)
    directions, lengths, user_means = (
        matrix.ranks.gather(pad(x, (0, 0, 0, end))) for x in (p * length[:, None], length[:, None], user_mean[:, None])
    )
    own = torch.stack([inputs[RATED], inputs[LIKING]], 1)
    out = torch.zeros(movies, k, device=device)

    def solve(panel: Panel) -> None:
        most, at = panel
        step, start = torch.arange(most, device=device), offsets[at, None]
        there = step < offsets[at + 1, None] - start
        place = (start + step).where(there, 0)
        who = torch.where(there, raters[place], matrix.all_users)
        like, over = liking[place], lengths[who][..., 0]
        z = torch.baddbmm(embedding(who, directions), torch.stack([over, over * like], 2), own[at], alpha=-1)
        left = ((like * unit - movie_mean[at, None] - user_means[who][..., 0]) * there)[..., None]
        if most < k:  # the same by a system of the raters' size
            kernel = z @ z.mT + RIDGE * torch.eye(most, device=device)
            out[at] = (z.mT @ torch.cholesky_solve(left, torch.linalg.cholesky(kernel)))[..., 0]
        else:
            square = z.mT @ z + RIDGE * torch.eye(k, device=device)
            out[at] = torch.cholesky_solve(z.mT @ left, torch.linalg.cholesky(square))[..., 0]

    matrix.workers.map(solve, panels)
    matrix.ranks.sum(out)
    every = max(1, matrix.all_users // SAMPLE)
    some = directions[matrix.first_user :][: matrix.users][-matrix.first_user % every :: every]
    spreads = [(some @ vectors.T).std(1, correction=0).sum(dtype=torch.float64) for vectors in (q, out)]
    wide, narrow = matrix.ranks.sum(torch.stack(spreads)).float()
    spread: Tensor = wide / narrow.clamp(min=1e-12)
    return out * (weight * spread)


def _raters(matrix: RatingMatrix) -> tuple[Tensor, Tensor, Tensor, list[Panel]]:
    """Panels of this process's movies; the users that rated them, int32[n], and their liking, float32[n], by movie; and
    where each movie's start, int64[movies + 1].

    Of a movie with more than ``RATERS`` ratings about as many are taken: those of the users whose multiple of the
    golden ratio has a small enough fraction, which spreads them evenly over the user rows.
    """
    liking, ranks = matrix.values[LIKING], matrix.ranks
    assert liking is not None
    values, movies, edges = (x.cpu().numpy() for x in (liking, matrix.index, matrix.offsets))
    place = (np.arange(matrix.first_user, matrix.first_user + matrix.users) * GOLDEN % 1).astype(np.float32)
    share = (RATERS / matrix.movie_counts.clamp(min=1)).float().cpu().numpy()

    def take(users: slice) -> tuple[Int64s, Int32s, Floats]:
        start, end = edges[users.start], edges[users.stop]
        own, counts = movies[start:end], np.diff(edges[users.start : users.stop + 1])
        taken = np.repeat(place[users], counts) < share[own]
        ends = np.r_[0, np.cumsum(taken)][edges[users.start + 1 : users.stop + 1] - start]
        return np.diff(ends, prepend=0), own[taken], values[start:end][taken]

    taken = matrix.workers.map(take, pieces(matrix.users))
    counts, index, liked = (np.concatenate(x) for x in zip(*taken, strict=True))
    of_movies = ranks.sum(torch.from_numpy(np.bincount(index, minlength=matrix.movies)))
    panels = _panels(of_movies)
    if ranks.world > 1:
        owner = np.zeros(matrix.movies, np.int32)
        for n, (_, at) in enumerate(panels):
            owner[at.numpy()] = n % ranks.world
        panels = panels[ranks.rank :: ranks.world]
        counts, index, liked = _to_owners(owner, counts, index, liked, ranks)
    offsets = np.r_[0, np.cumsum(counts)]
    by_movie = csr_array((liked, index, offsets), shape=(matrix.all_users, matrix.movies)).tocsc()
    found = (by_movie.indices, by_movie.data, by_movie.indptr.astype(np.int64))
    raters, likings, starts = (torch.from_numpy(x).to(matrix.device) for x in found)
    return raters, likings, starts, [(most, at.to(matrix.device)) for most, at in panels]


def _to_owners(
    owner: Int32s, counts: Int64s, movies: Int32s, liking: Floats, ranks: Ranks
) -> tuple[Int64s, Int32s, Floats]:
    """Sends each entry to the process ``owner[movie]``; returns the entries of this process's movies by the users of
    all processes, and how many each user has.

    Args:
        counts: int64[users], entries of each of this process's users.
        movies, liking: of each entry, by user.
    """
    owners, users = owner[movies], np.repeat(np.arange(len(counts)), counts)
    here = [np.flatnonzero(owners == r) for r in range(ranks.world)]
    order = np.concatenate(here)
    per_user = [np.bincount(users[at], minlength=len(counts)).astype(np.int32) for at in here]
    lengths = [len(at) for at in here]
    given = ranks.exchange(torch.from_numpy(np.concatenate(per_user)), [len(counts)] * ranks.world).numpy()
    index, liked = (ranks.exchange(torch.from_numpy(x[order]), lengths).numpy() for x in (movies, liking))
    return given.astype(np.int64), index, liked


def _panels(counts: Tensor) -> list[Panel]:
    """Movies with about as many raters each, at least one; ``counts``: int64[movies]."""
    order = torch.argsort(counts, descending=True, stable=True)
    most, panels, start = counts[order].tolist(), [], 0
    while start < len(most) and most[start]:
        size = max(1, min(PANEL_MOVIES, PANEL // most[start]))
        panels.append((most[start], order[start : start + size]))
        start += size
    return panels
