"""Fold-in: vector and bias of a new user from a few ratings, without training."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
BLOCK = 1 << 15  # users per step


def prior(vectors: npt.ArrayLike, bias: npt.ArrayLike, noise_variance: float) -> Floats:
    """Prior covariance of a new user over the noise: the second moment of the trained users.

    The prior's mean is 0, not that of the trained users (which predicts hardly better), so that a user without ratings
    gets the model's prediction for an unseen user.

    Args:
        vectors: p of the trained users, float[n_users, factors].
        bias: b_u of the trained users, float[n_users].
        noise_variance: variance of a rating around the model's prediction, in squared rating units.

    Returns:
        E[w wᵀ] / noise_variance for w = [p ; b_u], float64[factors + 1, factors + 1].
    """
    p, b = np.asarray(vectors), np.asarray(bias)
    moment: Floats = np.zeros((p.shape[1] + 1, p.shape[1] + 1))
    # Block by block: all users in float64 would take twice the memory of the model.
    for start in range(0, len(p), BLOCK):
        w = np.column_stack([p[start : start + BLOCK], b[start : start + BLOCK]]).astype(np.float64)
        moment += w.T @ w
    return moment / (len(p) * noise_variance)


def fold_in(
    vectors: npt.ArrayLike, bias: npt.ArrayLike, ratings: npt.ArrayLike, mu: float, covariance: Floats
) -> tuple[Floats, float]:
    """Most probable vector and bias of a user with ``ratings`` (ridge regression).

    With w = [p ; b_u] from N(0, noise_variance · covariance) and r = mu + b_m + b_u + p·q + noise, they minimise

        Σ (r - mu - b_m - w·[q ; 1])² + wᵀ covariance⁻¹ w.

    The SQL function ``recommend_from_ratings`` computes the same.

    Args:
        vectors: q of the k rated movies, float[k, factors].
        bias: b_m of the rated movies, float[k].
        ratings: float[k], in rating units.
        mu: global mean of the model.
        covariance: from ``prior``; may be singular.

    Returns:
        p float64[factors] and b_u.
    """
    q = np.asarray(vectors, np.float64)
    x = np.column_stack([q, np.ones(len(q))])
    y = np.asarray(ratings, np.float64) - mu - np.asarray(bias, np.float64)
    # The k × k form of the solution: the factors × factors form needs the inverse of the covariance.
    w = covariance @ x.T @ np.linalg.solve(x @ covariance @ x.T + np.eye(len(x)), y)
    return w[:-1], float(w[-1])
