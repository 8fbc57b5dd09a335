"""The full linear item-item model, held as thin matrices and one diagonal per channel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mf.ranking.config import RankingConfig
from mf.ranking.krylov import krylov_basis
from mf.ranking.matrix import TARGET, RatingMatrix
from mf.ranking.passes import Passes

PANEL = 64  # columns per product with the sparse matrix
NOISE = 1e-3  # of the largest singular value: smaller ones are rounding noise
MOVIES = 1024  # per piece of work


@dataclass(frozen=True)
class Teacher:
    """Scores of the full model for the training users: T = U G' - sum over channels c of X_c diag(gamma_c).

    Of the users and of the movies a process has its own.

    Attributes:
        basis: float32[users, R], orthonormal; ``U = basis @ rotation``.
        rotation: float32[R, r].
        singular: float32[r], S of X = U S V', the largest first.
        images: float32[own movies, r] per channel, X_c' U, that is V_c S.
        answers: float32[own movies, r], G.
        gamma: float32[own movies] per channel.
        regularization: lambda.
        energy_beyond: share of |X|² that the r directions leave out.
    """

    basis: Tensor
    rotation: Tensor
    singular: Tensor
    images: dict[str, Tensor]
    answers: Tensor
    gamma: dict[str, Tensor]
    regularization: float
    energy_beyond: float


def fit_teacher(matrix: RatingMatrix, rank: int, config: RankingConfig, passes: Passes) -> Teacher:
    """Solves the ridge regression of the targets on the inputs in the first ``rank`` directions of X, no movie being
    predicted from itself; docs/ranking.md derives it."""
    names, workers, device = matrix.channels, matrix.workers, matrix.device
    ranks, own = matrix.ranks, matrix.own_movies
    images = {
        name: torch.empty(own.stop - own.start, rank, device=device) for name in [*names, TARGET]
    }  # X_name' basis

    def expand(block: Tensor, at: slice) -> Tensor | None:
        ends = at.stop == rank
        newest = matrix.transposed(block, images, whole=() if ends else names)
        for name, image in images.items():
            image[:, at] = newest[name] if ends or name == TARGET else newest[name][own]
        following = None if ends else matrix.times({name: newest[name] for name in names}, matrix.scale)
        passes.done(f"teacher {at.stop}/{rank} directions")
        return following

    rng = torch.Generator().manual_seed(config.seed)
    width = min(PANEL, rank)
    start = {name: torch.randn(matrix.movies, width, generator=rng).to(device) for name in names}
    basis = krylov_basis(matrix.times(start, matrix.scale), expand, rank, workers, ranks)
    rank = basis.shape[1]

    def gram(at: slice) -> Tensor:
        parts = [images[name][at, :rank] for name in names]
        return sum((part.T @ part for part in parts[1:]), parts[0].T @ parts[0])

    squares, rotation = map(ranks.same, torch.linalg.eigh(matrix.sum_over_movies(gram)))
    singular = squares.clamp(min=0).sqrt().flip(0).float()
    kept = singular > NOISE * singular[0]
    singular, rotation = singular[kept], rotation.flip(1).float()[:, kept].contiguous()
    # At the smallest singular values lambda would vanish beside the others, and 1 - leverage with it.
    active = int(ranks.sum((matrix.user_counts > 0).sum()))
    index = max(1, min(config.regularization_index, active // 10, len(singular) // 2))
    regularization = float(singular[index - 1]) ** 2
    gamma, answers = _diagonals(matrix, images, rank, rotation, singular, regularization)
    passes.done("diagonals")
    energy = float(sum(matrix.gram[name, name].double().sum() for name in names))
    beyond = max(0.0, 1 - float(singular.double().square().sum()) / energy)
    return Teacher(
        basis,
        rotation,
        singular,
        {name: images[name][:, : len(singular)] for name in names},
        answers,
        gamma,
        regularization,
        beyond,
    )


def _diagonals(
    matrix: RatingMatrix,
    images: dict[str, Tensor],
    rank: int,
    rotation: Tensor,
    singular: Tensor,
    regularization: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """gamma per channel and the answers G, from the condition that no movie is predicted from itself.

    The first columns of each channel's ``images`` become X_c' U, those of the targets' G.
    """
    names, device, own = matrix.channels, matrix.device, matrix.own_movies
    gram = {pair: values[own] for pair, values in matrix.gram.items()}
    c, r = len(names), len(singular)
    inverse = 1 / (singular.square() + regularization)  # of X X' + lambda, in the known directions
    gamma = torch.empty(c, own.stop - own.start, device=device)
    answers = images[TARGET][:, :r]

    def solve(at: slice) -> None:
        parts = [images[name][at, :rank] @ rotation for name in names]
        targets = images[TARGET][at, :rank] @ rotation
        # Beyond the known directions a column has the energy e and a share d of its unit vector; there its squared
        # singular value is taken to be e / d.
        rests = []
        for name, part in zip(names, parts, strict=True):
            energy = (gram[name, name][at] - part.square().sum(1)).clamp(min=0)
            share = (1 - (part / singular).square().sum(1)).clamp(min=1e-4)
            rests.append(1 / (regularization + energy / share))

        def form(left: Tensor, right: Tensor, whole: Tensor, rest: Tensor) -> Tensor:
            """left' (X X' + lambda)^-1 right for each movie's columns."""
            both = left * right
            return both @ inverse + rest * (whole - both.sum(1))

        leverage = torch.stack(
            [
                form(parts[i], parts[j], gram[names[i], names[j]][at], (rests[i] * rests[j]).sqrt())
                for i in range(c)
                for j in range(c)
            ],
            1,
        ).view(-1, c, c)
        wanted = torch.stack([form(parts[i], targets, gram[names[i], TARGET][at], rests[i]) for i in range(c)], 1)
        system = torch.eye(c, device=device, dtype=torch.float64) - leverage.double()
        gamma[:, at] = torch.linalg.solve(system, wanted.double()).T.float()
        for i, name in enumerate(names):
            images[name][at, :r] = parts[i]
            targets += gamma[i, at, None] * parts[i]
        answers[at] = targets * (singular.square() * inverse)

    matrix.workers.map(solve, matrix.movie_pieces(MOVIES))
    return dict(zip(names, gamma, strict=True)), answers
