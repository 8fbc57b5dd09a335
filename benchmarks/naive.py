"""Tutorial training loop: DataLoader over TensorDataset, nn.Embedding, torch.optim.Adam."""

import math
import time

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.apart import Result
from benchmarks.data import load

FACTORS, BATCH = 64, 2048
WARM_UP, STEPS = 10, 100


class Naive(nn.Module):
    """The model b_u + b_m + p_u·q_m, with dense gradients."""

    def __init__(self, n_users: int, n_movies: int) -> None:
        super().__init__()
        self.p, self.q = nn.Embedding(n_users, FACTORS), nn.Embedding(n_movies, FACTORS)
        self.b_u, self.b_m = nn.Embedding(n_users, 1), nn.Embedding(n_movies, 1)

    def forward(self, users: Tensor, movies: Tensor) -> Tensor:
        biases = (self.b_u(users) + self.b_m(movies)).squeeze(1)
        score: Tensor = biases + (self.p(users) * self.q(movies)).sum(1)
        return score


def measure(data: str) -> Result:
    """Times the steps of an epoch after the first ``WARM_UP``.

    Returns:
        step_s, the mean over ``steps`` timed steps; epoch_s, that times the steps per epoch (without the shuffle before
        the first step); threads.
    """
    split = load(data)
    columns = (split.train.users, split.train.movies, split.train.ratings)
    loader = DataLoader(TensorDataset(*(torch.from_numpy(column.copy()) for column in columns)), BATCH, shuffle=True)
    model = Naive(split.n_users, split.n_movies)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-6)
    started = time.perf_counter()
    for step, (users, movies, ratings) in enumerate(loader):
        if step == min(WARM_UP, len(loader) - 1):
            started = time.perf_counter()
        loss = nn.functional.mse_loss(model(users, movies), ratings)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step + 1 == WARM_UP + STEPS:
            break
    steps = step + 1 - min(WARM_UP, len(loader) - 1)
    step_s = (time.perf_counter() - started) / steps
    epoch_s = step_s * math.ceil(len(split.train) / BATCH)
    return {"step_s": step_s, "steps": steps, "epoch_s": epoch_s, "threads": torch.get_num_threads()}
