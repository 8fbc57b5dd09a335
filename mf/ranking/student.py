"""The full model cut to a few factors by a second singular value decomposition."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from mf.ranking.matrix import RatingMatrix
from mf.ranking.passes import Passes
from mf.ranking.teacher import NOISE, PANEL, Teacher
from mf.workers import pieces

# Directions of the teacher's users in which its scores are looked at, in units of the factors. More steps towards the
# exact decomposition give worse lists: NDCG@10 0.282 against 0.294 on a million ratings.
WIDTH = 4
LENGTHS = 128  # directions in which the lengths of the teacher's rows are exact


def cut(teacher: Teacher, matrix: RatingMatrix, factors: int, passes: Passes) -> tuple[Tensor, dict[str, Tensor]]:
    """The ``factors`` directions that hold most of the teacher's scores, each user's scaled to length 1.

    The singular vectors W of T are sought in the span of T' U_w, where U_w are the first w = 4 x ``factors`` left
    singular vectors of X: a randomised decomposition with a good first guess, in one product.

    The teacher's basis is overwritten.

    Every process does the work of its own users and movies.

    Returns:
        W, float32[movies, factors], columns beyond the real directions being 0; and per channel c the vectors that an
        entry of X_c adds to the user's, float32[movies, factors]: B W, where T = X B.
    """
    workers, gamma = matrix.workers, teacher.gamma
    basis, rotation, answers = teacher.basis, teacher.rotation, teacher.answers
    by_movie, by_user = matrix.movie_pieces(), pieces(matrix.users)
    same = matrix.ranks.same
    width = min(WIDTH * factors, len(teacher.singular))

    # Squared row lengths of U G', the scores of what a user has not rated: exact in the first directions of G'G, the
    # mean of its other eigenvalues beyond.
    values, vectors = map(same, torch.linalg.eigh(matrix.sum_over_movies(lambda at: answers[at].T @ answers[at])))
    first = min(LENGTHS, len(values))
    rest = float(values[:-first].mean()) if first < len(values) else 0.0
    long = rotation @ vectors[:, -first:].float()
    stretch = values[-first:].float() - rest

    def scale(at: slice) -> Tensor:
        """U' (row x U_w) of some users; row x U_w takes the place of the basis' first columns."""
        own = basis[at]
        squares = (own @ long).square() @ stretch + rest * own.square().sum(1)
        guess = squares.clamp(min=1e-12).rsqrt()[:, None] * (own @ rotation[:, :width])
        product: Tensor = own.T @ guess
        basis[at, :width] = guess
        return product

    inner = rotation.T @ matrix.sum_over_users(scale, by_user).float()
    spans = torch.cat(workers.map(lambda at: answers[at] @ inner, by_movie))
    for columns in pieces(width, PANEL):
        for name, image in matrix.transposed(basis[:, columns], matrix.channels).items():
            spans[:, columns] -= gamma[name][:, None] * image
        passes.done(f"student {columns.stop}/{width} directions")

    squares, vectors = map(same, torch.linalg.eigh(matrix.sum_over_movies(lambda at: spans[at].T @ spans[at])))
    lengths = squares.clamp(min=1e-24).sqrt()
    turn = torch.where(lengths > NOISE * lengths[-1], vectors / lengths, 0.0).flip(1)[:, :factors].float()
    turn = pad(turn, (0, factors - turn.shape[1]))
    w = torch.cat(workers.map(lambda at: spans[at] @ turn, by_movie))
    inner = matrix.sum_over_movies(lambda at: answers[at].T @ w[at]).float() / teacher.singular.square()[:, None]

    def inputs(name: str) -> Tensor:
        image, diagonal = teacher.images[name], gamma[name]
        return torch.cat(workers.map(lambda at: image[at] @ inner - diagonal[at, None] * w[at], by_movie))

    return matrix.all_movies(w), {name: matrix.all_movies(inputs(name)) for name in matrix.channels}
