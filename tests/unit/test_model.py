"""The model's predictions, computed by hand."""

from typing import Any

import torch
from torch import Tensor

from mf.model import MatrixFactorization

PAIRS = [(u, m) for u in range(3) for m in range(3)]


def by_hand() -> MatrixFactorization:
    model = MatrixFactorization(3, 3, 2, rating_min=2.0, rating_max=4.5, mu=3.0)
    fill(model, [[1, 0], [0, 1], [1, 1]], [[0.5, 0], [0, -1], [1, 2]], [0.5, -0.5, 0], [0.25, 0, -1])
    return model.eval()


def fill(model: MatrixFactorization, p: Any, q: Any, b_u: Any, b_m: Any) -> None:
    with torch.no_grad():
        for table, values in ((model.user_factors, p), (model.movie_factors, q)):
            table.weight.copy_(torch.as_tensor(values))
        for table, values in ((model.user_bias, b_u), (model.movie_bias, b_m)):
            table.weight.copy_(torch.as_tensor(values).unsqueeze(-1))


def rows(pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([u for u, _ in pairs]), torch.tensor([m for _, m in pairs])


def test_predictions_are_those_computed_by_hand() -> None:
    raw = [4.25, 3.5, 3.5, 2.75, 1.5, 3.5, 3.75, 2.0, 5.0]
    assert by_hand()(*rows(PAIRS)).tolist() == raw
    assert by_hand().predict(*rows(PAIRS)).tolist() == [min(max(r, 2.0), 4.5) for r in raw]


def test_an_unseen_user_or_movie_has_no_bias_and_no_vector() -> None:
    pairs = [(0, -1), (1, -1), (-1, 0), (-1, 2), (-1, -1)]
    assert by_hand().predict(*rows(pairs)).tolist() == [3.5, 2.5, 3.25, 2.0, 3.0]
