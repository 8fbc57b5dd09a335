"""The randomised SVD and the collapse against dense linear algebra in float64."""

import pytest
import torch
from torch import Tensor

from mf.ranks import Ranks
from mf.solvers.collapse import collapse, randomised_svd
from mf.solvers.rows import MovieRows, UserRows
from mf.workers import Workers

# No product more.
NOTHING = torch.zeros(60, 0), torch.zeros(40, 0)
WORKERS = Workers(torch.device("cpu"), 1)


def sides(users: int, movies: int) -> tuple[UserRows, MovieRows]:
    """Users in two lanes, as on one process, and movies."""
    alone = Ranks.alone()
    return UserRows(users, alone, 0, [slice(0, 4), slice(4, users)]), MovieRows(movies, alone)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(n: int, users: int = 60, movies: int = 40, k: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Samples around one product, as a sampler gives them: the same but for noise, each turned in its own way."""
    g = generator(1)
    p, q = torch.randn(users, k, generator=g), torch.randn(movies, k, generator=g)
    turns = [torch.linalg.qr(torch.randn(k, k, generator=g))[0] for _ in range(n)]
    return [
        (
            (p + 0.3 * torch.randn(users, k, generator=g)) @ turn,
            (q + 0.3 * torch.randn(movies, k, generator=g)) @ turn,
        )
        for turn in turns
    ]


def mean_product(drawn: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([p.double() @ q.double().T for p, q in drawn]).mean(0)


def weighted_error(p: Tensor, q: Tensor, mean: Tensor, weights: tuple[Tensor, Tensor]) -> float:
    squares = (p.double() @ q.double().T - mean).square()
    return float(weights[0].double() @ squares @ weights[1].double())


def test_the_randomised_svd_finds_the_first_singular_vectors_of_a_slowly_decaying_matrix() -> None:
    g = generator()
    u, v = (torch.linalg.qr(torch.randn(n, 80, generator=g, dtype=torch.float64))[0] for n in (300, 200))
    s = torch.arange(1, 81, dtype=torch.float64).rsqrt()
    a = (u * s @ v.T).float()
    left, values, right = randomised_svd(lambda x: a @ x, lambda y: a.T @ y, sides(300, 200), 8, g, WORKERS)
    torch.testing.assert_close(values.double(), s[:8], rtol=5e-3, atol=0)
    torch.testing.assert_close(left.T @ left, torch.eye(8), atol=3e-5, rtol=0)
    best = float(s[8:].square().sum())
    assert float((left * values @ right.T - a).square().sum()) < 1.01 * best


def test_the_randomised_svd_is_exact_when_the_rank_is_no_smaller_than_the_matrix() -> None:
    a = torch.randn(7, 30, generator=generator())
    left, values, right = randomised_svd(lambda x: a @ x, lambda y: a.T @ y, sides(7, 30), 20, generator(), WORKERS)
    assert values.shape == (7,)
    torch.testing.assert_close(left * values @ right.T, a, atol=3e-5, rtol=0)


@pytest.mark.parametrize("factors", [16, 24])
def test_enough_factors_reproduce_the_mean_of_the_samples_products(factors: int) -> None:
    drawn = samples(4)  # 4 samples of 4 factors: a mean product of rank 16
    p, q = collapse(drawn, NOTHING, (torch.ones(60), torch.ones(40)), sides(60, 40), factors, generator(), WORKERS)
    assert p.shape == (60, factors)
    assert q.shape == (40, factors)
    torch.testing.assert_close(p.double() @ q.double().T, mean_product(drawn), atol=3e-5, rtol=0)


def test_another_product_is_added_to_the_mean() -> None:
    drawn, more = samples(4), samples(1, k=2)[0]
    p, q = collapse(drawn, more, (torch.ones(60), torch.ones(40)), sides(60, 40), 18, generator(), WORKERS)
    expected = mean_product(drawn) + more[0].double() @ more[1].double().T
    torch.testing.assert_close(p.double() @ q.double().T, expected, atol=3e-5, rtol=0)


def test_vectors_longer_than_a_side_has_rows_are_padded_with_zeros() -> None:
    drawn = samples(3, users=60, movies=5)
    p, q = collapse(
        drawn, (NOTHING[0], NOTHING[1][:5]), (torch.ones(60), torch.ones(5)), sides(60, 5), 12, generator(), WORKERS
    )
    assert p.shape == (60, 12)
    assert not p[:, 5:].any()
    assert not q[:, 5:].any()
    torch.testing.assert_close(p.double() @ q.double().T, mean_product(drawn), atol=3e-5, rtol=0)


def test_fewer_factors_leave_the_error_of_the_truncated_svd_and_no_more() -> None:
    drawn = samples(10)
    mean = mean_product(drawn)
    p, q = collapse(drawn, NOTHING, (torch.ones(60), torch.ones(40)), sides(60, 40), 6, generator(), WORKERS)
    best = float(torch.linalg.svdvals(mean)[6:].square().sum())
    assert best > 0
    assert best * 0.9999 < float((p.double() @ q.double().T - mean).square().sum()) < best * 1.01


def test_large_weights_reduce_the_error() -> None:
    drawn = samples(10)
    mean = mean_product(drawn)
    weights = torch.linspace(0.01, 4, 60), torch.linspace(0.01, 4, 40)
    p, q = collapse(drawn, NOTHING, weights, sides(60, 40), 6, generator(), WORKERS)
    roots = [w.double().sqrt().unsqueeze(1) for w in weights]
    best = float(torch.linalg.svdvals(roots[0] * mean * roots[1].T)[6:].square().sum())
    plain = collapse(drawn, NOTHING, (torch.ones(60), torch.ones(40)), sides(60, 40), 6, generator(), WORKERS)
    assert weighted_error(p, q, mean, weights) < 1.01 * best
    assert weighted_error(*plain, mean, weights) > 1.1 * best
