"""A user whom training has not seen, from a few ratings and the movies of a model."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
BLOCK = 1 << 15  # users


def prior(vectors: npt.ArrayLike, bias: npt.ArrayLike, noise_variance: float) -> Floats:
    """What is known of a user before the first rating: the second moment of the known ones, over the noise.

    The mean is 0, and not that of the known users (which predicts hardly better), so that somebody without ratings gets
    the model's own answer for an unseen user.

    Args:
        vectors: p of the known users, float[n_users, factors].
        bias: b_u of the known users, float[n_users].
        noise_variance: the variance of a rating around the model's prediction, in squared stars.

    Returns:
        E[w wᵀ] / noise_variance for w = [p ; b_u], float64[factors + 1, factors + 1].
    """
    p, b = np.asarray(vectors), np.asarray(bias)
    moment: Floats = np.zeros((p.shape[1] + 1, p.shape[1] + 1))
    # Block by block: in float64 all of them would take twice the memory of the model.
    for start in range(0, len(p), BLOCK):
        w = np.column_stack([p[start : start + BLOCK], b[start : start + BLOCK]]).astype(np.float64)
        moment += w.T @ w
    return moment / (len(p) * noise_variance)


def fold_in(
    vectors: npt.ArrayLike, bias: npt.ArrayLike, ratings: npt.ArrayLike, mu: float, covariance: Floats
) -> tuple[Floats, float]:
    """The most probable vector and bias of a user who gave ``ratings``, when w = [p ; b_u] is drawn from
    N(0, noise_variance · covariance) and a rating is mu + b_m + p·q + b_u + noise. They minimise

        Σ (r - mu - b_m - w·[q ; 1])² + wᵀ covariance⁻¹ w.

    ``recommend_from_ratings`` of the migration does the same in SQL.

    Args:
        vectors: q of the k rated movies, float[k, factors].
        bias: b_m of the rated movies, float[k].
        ratings: float[k], in stars.
        mu: the model's global mean.
        covariance: ``prior``'s; it may be singular.

    Returns:
        p float64[factors] and b_u.
    """
    q = np.asarray(vectors, np.float64)
    x = np.column_stack([q, np.ones(len(q))])
    y = np.asarray(ratings, np.float64) - mu - np.asarray(bias, np.float64)
    # The normal equations of the k ratings, not of the factors: these need the covariance's inverse.
    w = covariance @ x.T @ np.linalg.solve(x @ covariance @ x.T + np.eye(len(x)), y)
    return w[:-1], float(w[-1])
