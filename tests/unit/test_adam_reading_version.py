"""The adam solver beside a reading version of it: nn.Embedding, autograd, torch.optim.Adam, one page."""

import torch
from torch import Tensor, nn

from mf.solvers import RatingTensors, fit
from mf.solvers.adam import AdamConfig

USERS, MOVIES, RATINGS, NOISE = 400, 300, 24_000, 0.5
CONFIG = AdamConfig(factors=16, batch_size=512, epochs=10, lr=7e-3, l2=0.05, patience=0)


class ReadingVersion(nn.Module):
    def __init__(self, mu: float, config: AdamConfig) -> None:
        super().__init__()
        self.mu = mu
        self.p, self.q = nn.Embedding(USERS, config.factors), nn.Embedding(MOVIES, config.factors)
        self.b_u, self.b_m = nn.Embedding(USERS, 1), nn.Embedding(MOVIES, 1)
        for vectors, biases in ((self.p, self.b_u), (self.q, self.b_m)):
            nn.init.normal_(vectors.weight, std=config.init_std)
            nn.init.zeros_(biases.weight)

    def forward(self, users: Tensor, movies: Tensor) -> Tensor:
        biases = (self.b_u(users) + self.b_m(movies)).squeeze(1)
        return self.mu + biases + (self.p(users) * self.q(movies)).sum(1)


def train_reading_version(data: RatingTensors, config: AdamConfig) -> ReadingVersion:
    model = ReadingVersion(data.ratings.mean().item(), config)
    optimiser = torch.optim.Adam(model.parameters())
    steps = config.epochs * -(-len(data) // config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=steps, pct_start=0.1)
    n_u, n_m = (counts.clamp(min=1) for counts in data.counts())
    for _ in range(config.epochs):
        for batch in torch.randperm(len(data)).split(config.batch_size):
            users, movies, ratings = data.users[batch], data.movies[batch], data.ratings[batch]
            error = ratings - model(users, movies)
            vectors = model.p(users).square().sum(1) + model.q(movies).square().sum(1)
            biases = model.b_u(users).squeeze(1) ** 2 / n_u[users] + model.b_m(movies).squeeze(1) ** 2 / n_m[movies]
            loss = (error.square() + config.l2 * vectors + config.bias_damping * biases).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model


def planted() -> tuple[RatingTensors, RatingTensors]:
    """Training and test ratings: biases, 2 factors and normal noise of 0.5."""
    rng = torch.Generator().manual_seed(0)
    pairs = torch.randperm(USERS * MOVIES, generator=rng)[: RATINGS + 4000]
    users, movies = pairs // MOVIES, pairs % MOVIES
    p, q = (0.8 * torch.randn(n, 2, generator=rng) for n in (USERS, MOVIES))
    b_u, b_m = (0.4 * torch.randn(n, generator=rng) for n in (USERS, MOVIES))
    score = 3.5 + b_u[users] + b_m[movies] + (p[users] * q[movies]).sum(1)
    ratings = score + NOISE * torch.randn(len(pairs), generator=rng)
    parts = slice(0, RATINGS), slice(RATINGS, None)
    train, test = (RatingTensors(users[rows], movies[rows], ratings[rows], USERS, MOVIES) for rows in parts)
    return train, test


def rmse(predicted: Tensor, actual: Tensor) -> float:
    return float((predicted.detach() - actual).square().mean().sqrt())


def test_adam_reaches_the_rmse_of_its_reading_version() -> None:
    """They differ in the seed, and in that torch.optim.Adam also moves rows without ratings in the batch."""
    train, test = planted()
    torch.manual_seed(0)
    reading = train_reading_version(train, CONFIG)
    none = RatingTensors(test.users[:0], test.movies[:0], test.ratings[:0], USERS, MOVIES)
    real = fit(train, none, CONFIG, torch.device("cpu"))
    expected = rmse(reading(test.users, test.movies), test.ratings)
    assert NOISE < expected < 1.15 * NOISE
    assert abs(rmse(real(test.users, test.movies), test.ratings) - expected) < 0.01 * expected
