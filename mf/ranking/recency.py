"""Weights of a user's ratings by how recent they are."""

import numpy as np
import numpy.typing as npt

HALF_LIFE = 10  # ratings of the user after which a weight has halved
LEAST = 0.25  # no rating counts less


def recency_weights(users: npt.NDArray[np.int64], times: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """float32[N], max(0.25, 2^(-place / 10)).

    ``place`` is how many ratings of the user are newer, so that ratings of the same time weigh the same. (In SQL:
    ``rank() over (partition by user order by time desc) - 1``.)

    Args:
        users: int[N], in any order.
        times: int[N].
    """
    order = np.lexsort((-times, users))
    u, t = users[order], times[order]
    first_of_user = np.r_[True, u[1:] != u[:-1]] if len(u) else np.empty(0, bool)
    first_of_time = first_of_user.copy()
    first_of_time[1:] |= t[1:] != t[:-1]
    at = np.arange(len(u))
    start, tied = (np.maximum.accumulate(np.where(first, at, 0)) for first in (first_of_user, first_of_time))
    weights = np.empty(len(u), np.float32)
    weights[order] = np.maximum(LEAST, np.exp2((start - tied) / HALF_LIFE))
    return weights
