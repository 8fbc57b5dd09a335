"""How far a figure could be from what other users would have given: the bootstrap, users drawn as a whole."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mf.biases import Floats, Ints

LEVEL = 0.95
SAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """Where 95% of the resamples lie, from the 2.5th to the 97.5th percentile; in the figure's own unit."""

    low: float
    high: float


def resampled(sums: Floats, weights: Floats, samples: int, seed: int) -> Floats:
    """Ratios Σ sums / Σ weights over users drawn with replacement, as many as there are, ``samples`` times.

    The nonparametric bootstrap of Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979). A user's ratings
    are not independent of one another, so that users are drawn and not ratings (a cluster bootstrap: Davison and
    Hinkley, "Bootstrap Methods and Their Application", 1997, section 3.8). Since a user enters by sums alone, a
    resample is a product of these sums with how often each user was drawn: time and memory do not grow with the number
    of ratings. All columns share the draws, which makes comparisons between them paired.

    Args:
        sums: [users, columns], what each user adds to a numerator: a sum of squared errors, an NDCG.
        weights: [users], above 0, what each adds to the denominator: its ratings, or 1.

    Returns:
        [samples, columns].
    """
    users = len(weights)
    rng = np.random.default_rng(seed)
    table = np.vstack([sums.T, weights])  # a column's numbers side by side: the product takes a fifth of the time
    totals = np.empty((samples, len(table)))
    for total in totals:
        drawn = np.bincount(rng.integers(users, size=users, dtype=np.int32), minlength=users)
        total[:] = table @ drawn.astype(np.float64)
    ratios: Floats = totals[:, :-1] / totals[:, -1:]
    return ratios


def interval(draws: Floats, users: int) -> Interval | None:
    """The percentile interval (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13) of draws
    from ``users`` users; ``None`` when there are no draws, or one user alone, which says nothing of others."""
    if users < 2 or not len(draws):
        return None
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def paired_difference(
    users: Ints, a: npt.NDArray[np.floating], b: npt.NDArray[np.floating], seed: int, samples: int = SAMPLES
) -> Interval | None:
    """The interval of RMSE(a) - RMSE(b), both taken over the same draws of users: below 0 where ``a`` is the better.

    Args:
        users: int[N], a number for the user of each rating.
        a, b: [N], the errors (predicted - actual) of two models on these N ≥ 1 ratings.
        seed: of the draws.
        samples: how often users are drawn.

    Returns:
        ``None`` when there is one user alone.
    """
    _, rows = np.unique(users, return_inverse=True)
    squares = np.column_stack([per_user(rows, np.square(errors, dtype=np.float64)) for errors in (a, b)])
    weights = per_user(rows)
    draws = np.sqrt(resampled(squares, weights, samples, seed))
    return interval(draws[:, 0] - draws[:, 1], len(weights))


def per_user(rows: Ints, values: Floats | None = None) -> Floats:
    """[users], the sum of each user's ``values``, or how many ratings it has; ``rows`` are 0 … users - 1."""
    return np.bincount(rows, values).astype(np.float64)
