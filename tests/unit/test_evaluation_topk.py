import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from mf.biases import Ints
from mf.errors import DataError
from mf.evaluation.topk import GROUP, top_k, top_k_by_product, top_k_in_one_order


def by_hand(scores: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]", rated: csr_array, k: int) -> list[list[int]]:
    """A full sort of every row; of equal scores the lower column comes first."""
    lists = []
    for row, own in zip(scores, rated.toarray(), strict=True):
        order = sorted(range(len(row)), key=lambda movie: (-row[movie], movie))
        best = [movie for movie in order if not own[movie]][:k]
        lists.append(best + [-1] * (k - len(best)))
    return lists


def some_rated(rng: np.random.Generator, users: int, movies: int, share: float) -> csr_array:
    return csr_array(rng.random((users, movies)) < share)


@pytest.mark.parametrize("share", [0, 0.1, 0.9, 1])
@pytest.mark.parametrize(("movies", "k"), [(1, 1), (3, 10), (50, 4), (900, 1), (900, 12)])
def test_lists_equal_those_of_a_full_sort(share: float, movies: int, k: int) -> None:
    # Few different numbers, so that many scores are equal, within a list and at its end.
    rng = np.random.default_rng(movies + k)
    p, q, b_m = (rng.integers(-2, 3, size).astype(np.float32) for size in ((9, 2), (movies, 2), movies))
    rated = some_rated(rng, 9, movies, share)
    two_users = 2 * 4 * math.ceil(movies / GROUP) * GROUP
    found = top_k_by_product(
        torch.from_numpy(p), torch.from_numpy(q), torch.from_numpy(b_m), rated, k, budget=two_users
    )
    assert found.tolist() == by_hand(p @ q.T + b_m, rated, k)
    assert top_k_in_one_order(b_m, rated, k).tolist() == by_hand(np.tile(b_m, (9, 1)), rated, k)


def test_no_list_holds_a_movie_that_the_user_has_rated() -> None:
    rng = np.random.default_rng(0)
    p, q, b_m = (torch.from_numpy(rng.standard_normal(size, np.float32)) for size in ((200, 8), (300, 8), 300))
    rated = some_rated(rng, 200, 300, 0.3)
    for lists in (top_k_by_product(p, q, b_m, rated, 20), top_k_in_one_order(b_m.numpy(), rated, 20)):
        assert not rated.toarray()[np.arange(200)[:, None], lists].any()


@pytest.mark.parametrize("users_per_batch", [1, 3, 7, 100])
def test_the_batch_size_changes_nothing(users_per_batch: int) -> None:
    rng = np.random.default_rng(0)
    p, q, b_m = (torch.from_numpy(rng.standard_normal(size, np.float32)) for size in ((40, 8), (GROUP, 8), GROUP))
    rated = some_rated(rng, 40, GROUP, 0.1)
    expected = top_k_by_product(p, q, b_m, rated, 10)
    assert np.array_equal(top_k_by_product(p, q, b_m, rated, 10, budget=4 * GROUP * users_per_batch), expected)


def test_the_number_of_pytorch_threads_is_restored() -> None:
    before = torch.get_num_threads()
    top_k_by_product(torch.ones(2, 1), torch.ones(3, 1), torch.ones(3), csr_array((2, 3), dtype=np.bool_), 1)
    assert torch.get_num_threads() == before


def test_no_users_have_no_lists() -> None:
    nobody = csr_array((0, 3), dtype=np.bool_)
    found: list[Ints] = [
        top_k_by_product(torch.ones(0, 1), torch.ones(3, 1), torch.ones(3), nobody, 2),
        top_k_in_one_order(np.ones(3), nobody, 2),
    ]
    assert [lists.shape for lists in found] == [(0, 2), (0, 2)]


@pytest.mark.parametrize("which", range(3))
def test_a_model_that_is_not_finite_is_refused(which: int) -> None:
    tensors = [torch.ones(2, 1), torch.ones(3, 1), torch.ones(3)]
    tensors[which].view(-1)[0] = math.nan
    with pytest.raises(DataError, match="not finite: the training diverged"):
        top_k_by_product(*tensors, csr_array((2, 3), dtype=np.bool_), 1)


def test_among_many_equal_scores_the_lowest_columns_end_the_list() -> None:
    scores = torch.zeros(2, 40 * GROUP)
    scores[0, 2000], scores[1, [7, 700]] = 1, torch.tensor([1.0, 2.0])
    assert top_k(scores, 4).tolist() == [[2000, 0, 1, 2], [700, 7, 0, 1]]
