"""Low-rank approximation of the mean of many samples of p·q."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

OVERSAMPLING = 10  # directions beyond the rank, so that the last singular vectors are accurate too
POWER_ITERATIONS = 3


def randomised_svd(
    times: Callable[[Tensor], Tensor],
    times_transposed: Callable[[Tensor], Tensor],
    shape: tuple[int, int],
    rank: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Truncated SVD of a matrix A given by its products only (Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1).

    Args:
        times: X float32[columns, r] to A X.
        times_transposed: Y float32[rows, r] to Aᵀ Y.
        shape: rows and columns of A.
        rank: number of singular values; fewer when A has fewer rows or columns.
        generator: for the random start, on the device to compute on.

    Returns:
        u float32[rows, rank], s float32[rank] in descending order, and v float32[columns, rank], with A ≈ u diag(s) vᵀ;
        exact when the rank of A is at most ``rank``.
    """
    width = min(rank + OVERSAMPLING, *shape)
    start = torch.randn(shape[1], width, generator=generator, device=generator.device)
    q = torch.linalg.qr(times(start))[0]
    for _ in range(POWER_ITERATIONS):
        q = torch.linalg.qr(times(torch.linalg.qr(times_transposed(q))[0]))[0]
    w, r = torch.linalg.qr(times_transposed(q))
    u, s, vt = torch.linalg.svd(r.mT)
    return q @ u[:, :rank], s[:rank], w @ vt.mT[:, :rank]


def collapse(
    samples: Sequence[tuple[Tensor, Tensor]],
    rest: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    factors: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Vectors whose products approximate A = Σ_s P_s Q_sᵀ / S + L Rᵀ, the mean of S samples and a term more.

    The best approximation of a given rank is the truncated SVD (Eckart & Young 1936). A is never formed: its product
    with a vector costs 2 (n_users + n_movies) k flops per sample.

    Args:
        samples: S pairs of P float32[n_users, k] and Q float32[n_movies, k].
        rest: L float32[n_users, r] and R float32[n_movies, r].
        weights: float32[n_users] and float32[n_movies], above 0: an error for user u and movie m has weight
            weights[u] · weights[m] in the sum of squares.
        factors: length of the vectors; padded with zeros when A has a smaller rank.
        generator: for the randomised SVD, on the samples' device.

    Returns:
        float32[n_users, factors] and float32[n_movies, factors].
    """
    roots = [w.sqrt().unsqueeze(1) for w in weights]
    shape = len(weights[0]), len(weights[1])

    def product(x: Tensor, left: int) -> Tensor:
        """A x for ``left`` 0, Aᵀ x for 1, of the weighted A."""
        right = 1 - left
        x = roots[right] * x
        total = rest[left] @ (rest[right].mT @ x)
        for sample in samples:
            total.addmm_(sample[left], sample[right].mT @ x, alpha=1 / len(samples))
        return roots[left] * total

    u, s, v = randomised_svd(lambda x: product(x, 0), lambda y: product(y, 1), shape, factors, generator)
    p, q = (basis * s.sqrt() / root for basis, root in ((u, roots[0]), (v, roots[1])))
    missing = factors - len(s)
    return torch.nn.functional.pad(p, (0, missing)), torch.nn.functional.pad(q, (0, missing))
