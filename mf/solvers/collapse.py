"""Low-rank approximation of the mean of many samples of p·q."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mf.solvers.rows import Rows
from mf.workers import Workers, pieces

OVERSAMPLING = 10  # directions beyond the rank, so that the last singular vectors are accurate too
POWER_ITERATIONS = 3
SHIFT = 1e-6  # of the trace, added to a Gram matrix


def randomised_svd(
    times: Callable[[Tensor], Tensor],
    times_transposed: Callable[[Tensor], Tensor],
    sides: tuple[Rows, Rows],
    rank: int,
    generator: torch.Generator,
    workers: Workers,
) -> tuple[Tensor, Tensor, Tensor]:
    """Truncated SVD of a matrix A given by its products only (Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1).

    Args:
        times: X float32[columns, r] to A X.
        times_transposed: Y float32[rows, r] to Aᵀ Y.
        sides: rows and columns of A; a rank multiplies with its own rows or columns.
        rank: number of singular values; fewer when A has fewer rows or columns.
        generator: for the random start, on the device to compute on.

    Returns:
        u float32[rows, rank], s float32[rank] in descending order, and v float32[columns, rank], with A ≈ u diag(s) vᵀ;
        exact when the rank of A is at most ``rank``. Of u and v this rank's rows.
    """
    rows, columns = sides
    width = min(rank + OVERSAMPLING, rows.n, columns.n)
    start = torch.randn(columns.n, width, generator=generator, device=generator.device)
    table = times(columns.own(start))
    for _ in range(POWER_ITERATIONS):
        table = times_transposed(_well_conditioned(rows, table, workers))
        table = times(_well_conditioned(columns, table, workers))
    times_q, _ = rows.qr(table, workers)
    q = times_q(torch.eye(width, device=start.device))
    times_w, r = columns.qr(times_transposed(q), workers)
    u, s, vt = torch.linalg.svd(r.mT)
    return q @ u[:, :rank], s[:rank], times_w(vt.mT[:, :rank])


def _well_conditioned(side: Rows, table: Tensor, workers: Workers) -> Tensor:
    """float32[n, r], nearly orthonormal columns with the span of ``table`` (shifted Cholesky QR: Fukaya et al. 2020).

    Between two products that is as good as a QR decomposition, which takes several times as long."""
    at = pieces(len(table))
    gram = side.sum_of_rows(workers.sum(lambda part: table[part].mT @ table[part], at))
    shift = (SHIFT * gram.trace()).clamp(min=1e-30)  # below it are the rounding errors of float32
    factor = torch.linalg.cholesky(gram.diagonal_scatter(gram.diagonal() + shift))
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    turn = torch.linalg.solve_triangular(factor.mT, eye, upper=True).float()
    return torch.cat(workers.map(lambda part: table[part] @ turn, at))


def collapse(
    samples: Sequence[tuple[Tensor, Tensor]],
    rest: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    sides: tuple[Rows, Rows],
    factors: int,
    generator: torch.Generator,
    workers: Workers,
) -> tuple[Tensor, Tensor]:
    """Vectors whose products approximate A = Σ_s P_s Q_sᵀ / S + L Rᵀ, the mean of S samples and a term more.

    The best approximation of a given rank is the truncated SVD (Eckart & Young 1936). A is never formed: its product
    with a vector costs 2 (n_users + n_movies) k flops per sample.

    Args:
        samples: S pairs of P float32[n_users, k] and Q float32[n_movies, k].
        rest: L float32[n_users, r] and R float32[n_movies, r].
        weights: float32[n_users] and float32[n_movies], above 0: an error for user u and movie m has weight
            weights[u] · weights[m] in the sum of squares.
        sides: how users and movies lie on the ranks; of all tables above a rank has its own rows.
        factors: length of the vectors; padded with zeros when A has a smaller rank.
        generator: for the randomised SVD, on the samples' device.

    Returns:
        float32[n_users, factors] and float32[n_movies, factors], of which a rank has its own rows.
    """
    roots = [w.sqrt().unsqueeze(1) for w in weights]

    def product(x: Tensor, left: int) -> Tensor:
        """A x for ``left`` 0, Aᵀ x for 1, of the weighted A."""
        right = 1 - left
        x = roots[right] * x
        inner = [pair[right].mT @ x for pair in (rest, *samples)]
        summed = torch.split(sides[right].sum_of_rows(torch.cat(inner)), [len(part) for part in inner])
        total: Tensor = rest[left] @ summed[0]
        for sample, part in zip(samples, summed[1:], strict=True):
            total.addmm_(sample[left], part, alpha=1 / len(samples))
        return roots[left] * total

    u, s, v = randomised_svd(lambda x: product(x, 0), lambda y: product(y, 1), sides, factors, generator, workers)
    p, q = (basis * s.sqrt() / root for basis, root in ((u, roots[0]), (v, roots[1])))
    missing = factors - len(s)
    return torch.nn.functional.pad(p, (0, missing)), torch.nn.functional.pad(q, (0, missing))
