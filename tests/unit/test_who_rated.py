"""The basis of who-rated-what against dense linear algebra in float64."""

import torch
from torch import Tensor

from mf.solvers.gaussian import RatingsByRow
from mf.solvers.who_rated import Basis, who_rated
from mf.workers import Workers

USERS, MOVIES = 50, 30


def rated() -> Tensor:
    """bool[USERS, MOVIES]: two tastes, and users of very different activity."""
    g = torch.Generator().manual_seed(0)
    taste = torch.arange(USERS).unsqueeze(1) % 2 == torch.arange(MOVIES) % 2
    chance = torch.linspace(0.1, 0.9, USERS).unsqueeze(1) * torch.where(taste, 1.0, 0.2)
    pairs = torch.rand(USERS, MOVIES, generator=g) < chance
    pairs[:, 0] = True
    return pairs


def basis(pairs: Tensor, rank: int) -> Basis:
    users, movies = pairs.nonzero(as_tuple=True)
    values = torch.ones(len(users))
    sides = RatingsByRow(users, movies, values, len(pairs), 4), RatingsByRow(movies, users, values, pairs.shape[1], 4)
    return who_rated(*sides, rank, Workers(torch.device("cpu"), 1), torch.Generator().manual_seed(1))


def gram(pairs: Tensor) -> Tensor:
    x = pairs.double() / pairs.double().sum(1, keepdim=True).sqrt()
    return x @ x.T


def test_all_eigenvectors_make_up_the_gram_matrix_of_the_normalised_rows() -> None:
    found = basis(rated(), 100)
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(found.vectors.shape[1]), atol=1e-5, rtol=0)
    rebuilt = found.vectors.double() * found.values @ found.vectors.double().T
    torch.testing.assert_close(rebuilt, gram(rated()), atol=1e-4, rtol=0)


def test_the_movies_basis_is_that_of_the_transposed_pairs() -> None:
    found = basis(rated().T, 100)
    assert found.vectors.shape == (MOVIES, len(found.values))
    rebuilt = found.vectors.double() * found.values @ found.vectors.double().T
    torch.testing.assert_close(rebuilt, gram(rated().T), atol=1e-4, rtol=0)


def test_a_low_rank_keeps_the_largest_eigenvalues() -> None:
    found = basis(rated(), 5)
    expected = torch.linalg.eigvalsh(gram(rated())).flip(0)[:5]
    torch.testing.assert_close(found.values.double(), expected, rtol=1e-3, atol=0)
    assert found.vectors.shape == (USERS, 5)


def test_directions_that_no_user_has_are_left_out() -> None:
    pairs = rated()[:6].repeat(4, 1)
    assert len(basis(pairs, 20).values) == torch.linalg.matrix_rank(pairs.double())


def test_the_expected_vectors_have_the_covariance_of_the_gram_matrix() -> None:
    found = basis(rated(), 100)
    means = found.means(torch.eye(len(found.values)))
    torch.testing.assert_close((means @ means.T).double(), gram(rated()), atol=1e-4, rtol=0)
