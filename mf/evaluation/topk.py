"""The k highest-scored movies per user, less the movies that the user has already rated."""

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import pad

from mf.biases import Ints
from mf.errors import DataError
from mf.workers import Workers

# Memory for the scores of one batch of users. On a CPU a larger buffer is paged in anew at every use.
CPU_BYTES, GPU_BYTES = 32 << 20, 1 << 30
GROUP = 64  # neighbouring movies per group; the best groups are found first
SHARDS = 16  # of the batches, each the work of one core


def top_k_in_one_order(scores: npt.NDArray[np.generic], rated: csr_array, k: int) -> Ints:
    """Each user's first k movies when all users share one order, less those already rated.

    No user's scores are compared: with the positions r_0 < r_1 < … that a user has rated, the t-th position that the
    user has not rated is t plus the number of i with r_i - i ≤ t.

    Args:
        scores: [movies], the highest first; of equal scores the lower row comes first.
        rated: bool[users, movies].
        k: length of the lists.

    Returns:
        int64[users, k], rows of movies; -1 where the catalogue has no more.
    """
    users, movies = rated.shape
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    position = np.empty(movies, np.int32)
    position[order] = np.arange(movies, dtype=np.int32)
    # To the other layout and back: the fastest way to sort each row.
    own = csr_array((rated.data, position[rated.indices], rated.indptr), rated.shape).tocsc().tocsr()
    counts = np.diff(own.indptr)
    skipped = own.indices - (np.arange(own.nnz, dtype=own.indptr.dtype) - np.repeat(own.indptr[:-1], counts))
    early = skipped < k
    cells = np.repeat(np.arange(users, dtype=np.int64), counts)[early] * k + skipped[early]
    positions = np.arange(k) + np.bincount(cells, minlength=users * k).reshape(users, k).cumsum(axis=1)
    return np.where(positions < movies, order[np.minimum(positions, movies - 1)], -1)


@torch.no_grad()
def top_k_by_product(p: Tensor, q: Tensor, b_m: Tensor, rated: csr_array, k: int, budget: int | None = None) -> Ints:
    """Each user's k movies with the highest b_m + p_u·q_m, less those already rated.

    Args:
        p: float32[users, factors].
        q: float32[movies, factors], on the same device as ``p``.
        b_m: float32[movies], on the same device.
        rated: bool[users, movies].
        k: length of the lists.
        budget: bytes for the scores of one batch of users; each CPU core has one batch in work.

    Returns:
        int64[users, k], rows of movies, the highest score first; -1 where the catalogue has no more. Of equal scores
        the lower row comes first, on every device.

    Raises:
        DataError: a number of the model is not finite.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in (p, q, b_m)):
        raise DataError("the model's vectors are not finite: the training diverged, train again with a lower lr")
    # One product of [q ; b_m] and [p ; 1]. Padding rows, which complete the last group, have a bias of -inf.
    table = pad(torch.column_stack([q, b_m]), (0, 0, 0, -len(q) % GROUP))
    table[len(q) :, -1] = -torch.inf
    vectors = pad(p, (0, 1), value=1.0)
    budget = budget or (CPU_BYTES if p.device.type == "cpu" else GPU_BYTES)
    batch = max(1, min(len(p), budget // (len(table) * table.element_size())))
    # Copied once, so that a GPU is waited for only where scores are equal.
    lists = torch.full((len(p), k), -1, device=p.device)
    columns, counts = (torch.from_numpy(x).to(p.device) for x in (rated.indices, np.diff(rated.indptr)))

    def fill(shard: range) -> None:
        buffer = torch.empty(batch, len(table), device=p.device)
        for start in shard:
            users = slice(start, min(start + batch, len(p)))
            scores = torch.mm(vectors[users], table.T, out=buffer[: users.stop - start])
            first, end = int(rated.indptr[start]), int(rated.indptr[users.stop])
            rows = torch.arange(len(scores), device=p.device)
            rows = rows.repeat_interleave(counts[users], output_size=end - first)
            scores[rows, columns[first:end]] = -torch.inf
            best = top_k(scores, min(k, len(q)))
            lists[users, : best.shape[1]] = best

    starts = range(0, len(p), batch)
    threads = torch.get_num_threads()
    # PyTorch's own threads synchronise at every operation, which costs more than they gain.
    torch.set_num_threads(1)
    try:
        Workers(p.device).map(fill, (starts[i::SHARDS] for i in range(SHARDS)))
    finally:
        torch.set_num_threads(threads)
    return lists.cpu().numpy()


def top_k(scores: Tensor, k: int) -> Tensor:
    """int64[users, k], the columns of the k highest of ``scores`` [users, movies], the highest first; of equal scores
    the lower column. -1 stands for a score of -inf."""
    values, columns = _unordered_top_k(scores, min(k + 1, scores.shape[1]))
    last = values[:, k - 1]
    # Where the next score equals the last one, topk has picked arbitrarily among equal scores.
    tied = ((values[:, -1] == last) & (last > -torch.inf)).nonzero().squeeze(1)
    columns = columns[:, :k].contiguous()
    if len(tied) and values.shape[1] > k:
        rows, threshold = scores[tied], last[tied, None]
        equal, above = rows == threshold, rows > threshold
        left = k - above.sum(1, keepdim=True)
        columns[tied] = (above | (equal & (equal.cumsum(1, dtype=torch.int32) <= left))).nonzero()[:, 1].reshape(-1, k)
    columns = columns.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return columns.gather(1, order).masked_fill(values == -torch.inf, -1)


def _unordered_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores of each row and their columns; among scores equal to the k-th, any."""
    if scores.shape[1] % GROUP or scores.shape[1] <= k * GROUP:
        return scores.topk(k)
    # They are in the k groups with the highest maxima, which one pass finds in a tenth of topk's time.
    groups = scores.view(len(scores), -1, GROUP)
    best = groups.amax(2).topk(k).indices
    values, index = groups.gather(1, best[..., None].expand(-1, -1, GROUP)).flatten(1).topk(k)
    return values, best.gather(1, index // GROUP) * GROUP + index % GROUP
