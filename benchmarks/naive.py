"""Training loops of PyTorch's own parts: nn.Embedding, autograd and an optimiser of torch.optim."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.apart import Result
from benchmarks.data import load

FACTORS, BATCH = 64, 2048
WARM_UP, STEPS = 10, 100
MOST_S = 15  # of the timed steps
NAIVE = "naive loop"
# Each reads its batches and updates its parameters in its own way.
LOOPS = {
    NAIVE: "DataLoader over TensorDataset, nn.Embedding, torch.optim.Adam",
    "fused Adam, slices": "slices of shuffled tensors, nn.Embedding, torch.optim.Adam(fused=True)",
    "SparseAdam, slices": "the same with nn.Embedding(sparse=True), torch.optim.SparseAdam and no weight decay",
}
Batches = Iterator[tuple[Tensor, ...]]


class Naive(nn.Module):
    """The model b_u + b_m + p_u·q_m; ``sparse``: with gradients of the rows of a batch alone."""

    def __init__(self, n_users: int, n_movies: int, sparse: bool = False) -> None:
        super().__init__()
        self.p, self.q = (nn.Embedding(n, FACTORS, sparse=sparse) for n in (n_users, n_movies))
        self.b_u, self.b_m = (nn.Embedding(n, 1, sparse=sparse) for n in (n_users, n_movies))

    def forward(self, users: Tensor, movies: Tensor) -> Tensor:
        biases = (self.b_u(users) + self.b_m(movies)).squeeze(1)
        score: Tensor = biases + (self.p(users) * self.q(movies)).sum(1)
        return score


def measure(data: str, loop: str = NAIVE) -> Result:
    """Times the steps of an epoch after the first ``WARM_UP``.

    Args:
        data: name of a data set (``benchmarks.data.load``).
        loop: one of ``LOOPS``.

    Returns:
        step_s, the mean over ``steps`` timed steps, which end after ``MOST_S`` seconds; epoch_s and epoch_cpu_s, the
        wall and the CPU time times the steps per epoch (without the shuffle before the first step); threads.
    """
    split = load(data)
    columns = [torch.from_numpy(c.copy()) for c in (split.train.users, split.train.movies, split.train.ratings)]
    sparse, slices = loop.startswith("SparseAdam"), loop != NAIVE
    model = Naive(split.n_users, split.n_movies, sparse)
    optimiser: Any
    if sparse:
        optimiser = torch.optim.SparseAdam(list(model.parameters()), lr=1e-3)
    else:
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-6, fused=slices)
    batches = _slices(columns) if slices else iter(DataLoader(TensorDataset(*columns), BATCH, shuffle=True))
    in_all = math.ceil(len(split.train) / BATCH)
    began = time.perf_counter(), time.process_time()
    for step, (users, movies, ratings) in enumerate(batches):
        if step == min(WARM_UP, in_all - 1):
            began = time.perf_counter(), time.process_time()
        loss = nn.functional.mse_loss(model(users, movies), ratings)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step + 1 == WARM_UP + STEPS or (step > WARM_UP and time.perf_counter() - began[0] > MOST_S):
            break
    steps = step + 1 - min(WARM_UP, in_all - 1)
    step_s, step_cpu_s = (
        (now - then) / steps for now, then in zip((time.perf_counter(), time.process_time()), began, strict=True)
    )
    return {
        "step_s": step_s,
        "steps": steps,
        "epoch_s": step_s * in_all,
        "epoch_cpu_s": step_cpu_s * in_all,
        "threads": torch.get_num_threads(),
    }


def _slices(columns: list[Tensor]) -> Batches:
    order = torch.randperm(len(columns[0]))
    shuffled = [column[order] for column in columns]
    for start in range(0, len(order), BATCH):
        yield tuple(column[start : start + BATCH] for column in shuffled)
