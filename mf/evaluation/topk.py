"""The k movies that come first for each user, of all movies but those that the user has rated."""

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import pad

from mf.biases import Ints
from mf.errors import DataError
from mf.solvers.workers import Workers

# For one block of users' scores. On a CPU what is larger is paged in anew at each use.
CPU_BYTES, GPU_BYTES = 32 << 20, 1 << 30
GROUP = 64  # neighbouring movies of which the best is found first
PARTS = 16  # of the users, each one core's work for a while


def by_order(scores: npt.NDArray[np.generic], rated: csr_array, k: int) -> Ints:
    """int64[users, k], each user's first k movies in one order for all, without those that the user has ``rated``; -1
    where there are no more.

    The order is by ``scores`` [movies], the highest first; of equal ones the first row comes first. Nothing is compared
    to anything for each user: with a user's rated places r_0 < r_1 < …, the t-th that is not among them is t plus the
    number of i with r_i - i ≤ t.
    """
    users, movies = rated.shape
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    place = np.empty(movies, np.int32)
    place[order] = np.arange(movies, dtype=np.int32)
    # Twice to the other layout: the quickest way to have each row in ascending order.
    own = csr_array((rated.data, place[rated.indices], rated.indptr), rated.shape).tocsc().tocsr()
    counts = np.diff(own.indptr)
    skipped = own.indices - (np.arange(own.nnz, dtype=own.indptr.dtype) - np.repeat(own.indptr[:-1], counts))
    early = skipped < k
    cells = np.repeat(np.arange(users, dtype=np.int64), counts)[early] * k + skipped[early]
    places = np.arange(k) + np.bincount(cells, minlength=users * k).reshape(users, k).cumsum(axis=1)
    return np.where(places < movies, order[np.minimum(places, movies - 1)], -1)


@torch.no_grad()
def by_vectors(p: Tensor, q: Tensor, b_m: Tensor, rated: csr_array, k: int, budget: int | None = None) -> Ints:
    """int64[users, k], each user's first k movies by b_m + p_u·q_m, the highest first, without those that the user has
    ``rated``; -1 where there are no more. Of equal ones the first row comes first, on every device.

    Args:
        p: float32[users, factors].
        q: float32[movies, factors], on the same device, as ``b_m``: float32[movies].
        budget: bytes for the scores of one block of users, of which each CPU core has one in work.

    Raises:
        DataError: a number of the model is not finite.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in (p, q, b_m)):
        raise DataError("the model's vectors are not finite: the training diverged, train again with a lower lr")
    # One product with [q ; b_m] and [p ; 1]; the rows that fill the last group up have a bias that is never the best.
    table = pad(torch.column_stack([q, b_m]), (0, 0, 0, -len(q) % GROUP))
    table[len(q) :, -1] = -torch.inf
    vectors = pad(p, (0, 1), value=1.0)
    budget = budget or (CPU_BYTES if p.device.type == "cpu" else GPU_BYTES)
    block = max(1, min(len(p), budget // (len(table) * table.element_size())))
    lists = np.full((len(p), k), -1, np.int64)

    def fill(part: range) -> None:
        scores = torch.empty(block, len(table), device=p.device)
        for start in part:
            users = slice(start, min(start + block, len(p)))
            here = torch.mm(vectors[users], table.T, out=scores[: users.stop - start])
            own = rated[users]
            rows = np.repeat(np.arange(len(here)), np.diff(own.indptr))
            here[torch.from_numpy(rows).to(p.device), torch.from_numpy(own.indices).to(p.device)] = -torch.inf
            best = first(here, min(k, len(q))).cpu().numpy()
            lists[users, : best.shape[1]] = best

    starts = range(0, len(p), block)
    threads = torch.get_num_threads()
    # PyTorch's own threads wait for one another at every operation, which costs more than it gains.
    torch.set_num_threads(1)
    try:
        Workers(p.device).map(fill, (starts[i::PARTS] for i in range(PARTS)))
    finally:
        torch.set_num_threads(threads)
    return lists


def first(scores: Tensor, k: int) -> Tensor:
    """int64[users, k], the columns of each row's k highest scores, the highest first; of equal ones the first column.
    -1 stands for a score of -inf."""
    values, columns = _highest(scores, min(k + 1, scores.shape[1]))
    last = values[:, k - 1]
    # Any of those that are equal to the last one may be among them.
    tied = ((values[:, -1] == last) & (last > -torch.inf)).nonzero().squeeze(1)
    columns = columns[:, :k].contiguous()
    if len(tied) and values.shape[1] > k:
        some, end = scores[tied], last[tied, None]
        equal, above = some == end, some > end
        left = k - above.sum(1, keepdim=True)
        columns[tied] = (above | (equal & (equal.cumsum(1, dtype=torch.int32) <= left))).nonzero()[:, 1].reshape(-1, k)
    columns = columns.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return columns.gather(1, order).masked_fill(values == -torch.inf, -1)


def _highest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores of each row, and their columns; of those that are equal to the last one, any."""
    if scores.shape[1] % GROUP or scores.shape[1] <= k * GROUP:
        return scores.topk(k)
    # They lie in the k groups with the highest maxima, which one pass finds in a tenth of topk's time.
    groups = scores.view(len(scores), -1, GROUP)
    best = groups.amax(2).topk(k).indices
    values, places = groups.gather(1, best[..., None].expand(-1, -1, GROUP)).flatten(1).topk(k)
    return values, best.gather(1, places // GROUP) * GROUP + places % GROUP
