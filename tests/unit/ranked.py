"""Processes for tests/unit/test_ranks.py: they are started anew, and so import this module."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mf.checkpoint import CheckpointFile
from mf.ranking import Interactions, RankingConfig, RankingModel, taste
from mf.ranking.fit import fit as fit_ranking
from mf.ranks import Ranks
from mf.solvers import EpochReport, RatingTensors, configure, fit

Value = TypeVar("Value")
USERS, MOVIES, RATINGS = 150, 90, 5000
CPU = torch.device("cpu")
SOLVERS: dict[str, dict[str, Any]] = {
    "adam": {"factors": 6, "epochs": 3, "batch_size": 128, "block_users": 20, "dropout": 0.1},
    "sgd": {"factors": 6, "epochs": 3, "batch_size": 128, "block_users": 20},
    "vb": {"factors": 8, "rank": 3, "epochs": 4},
    "gibbs": {"factors": 8, "rank": 3, "epochs": 8, "burn_in": 3},
}

# Fewer factors and directions than there may be, so that what is left out is estimated from all ranks' ratings.
LISTS = RankingConfig(factors=8, teacher_rank=70)


class Counted(Ranks):
    """Bytes sent: of rows of movies and users (``rows``), and of raters (``raters``).

    The others are float64 sums and products of a few directions, and objects of a few bytes.
    """

    rows = raters = objects = 0

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return self._counted(x, lambda: super(Counted, self).sum(x))

    def sum_rows(self, x: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        return self._counted(x, lambda: super(Counted, self).sum_rows(x, lengths))

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return self._counted(x, lambda: super(Counted, self).gather(x))

    def turn(self, tables: Sequence[torch.Tensor], outgoing: slice, incoming: slice) -> None:
        self._counted(tables[0], lambda: super(Counted, self).turn(tables, outgoing, incoming))

    def sum_on(self, x: torch.Tensor, rank: int) -> None:
        self._counted(x, lambda: super(Counted, self).sum_on(x, rank))

    def take_from(self, x: torch.Tensor, rank: int) -> None:
        self._counted(x, lambda: super(Counted, self).take_from(x, rank))

    def exchange(self, x: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        before = self.sent - self.objects
        found = super().exchange(x, lengths)
        self.raters += self.sent - self.objects - before
        return found

    def gather_objects(self, value: Any) -> list[Any]:
        before = self.sent
        found = super().gather_objects(value)
        self.objects += self.sent - before
        return found

    def _counted(self, x: torch.Tensor, send: Callable[[], Value]) -> Value:
        before = self.sent - self.objects
        found = send()
        if x.dtype == torch.float32:
            self.rows += self.sent - self.objects - before
        return found


def planted() -> tuple[RatingTensors, RatingTensors]:
    """5,000 training and 600 validation ratings, some of users and movies that are not in training."""
    g = torch.Generator().manual_seed(0)
    pairs = torch.randperm(USERS * MOVIES, generator=g)[: RATINGS + 600]
    users, movies = pairs // MOVIES, pairs % MOVIES
    p, q = (torch.randn(n, 2, generator=g) for n in (USERS, MOVIES))
    ratings = 3.5 + (p[users] * q[movies]).sum(1) + 0.3 * torch.randn(len(pairs), generator=g)
    order = users[:RATINGS].argsort(stable=True)
    train = RatingTensors(users[order], movies[order], ratings[order], USERS, MOVIES)
    unseen = torch.arange(600) % 50
    held = users[RATINGS:].where(unseen != 0, -1), movies[RATINGS:].where(unseen != 1, -1)
    return train, RatingTensors(*held, ratings[RATINGS:], USERS, MOVIES)


def share(data: RatingTensors, rank: int, world: int, edges: list[int]) -> RatingTensors:
    """The ratings of the users from one edge to the next; those of unseen users go to the first rank."""
    first, end = edges[rank], edges[rank + 1]
    here = (data.users >= first) & (data.users < end) | ((data.users < 0) & (rank == 0))
    users = (data.users[here] - first).where(data.users[here] >= 0, -1)
    return RatingTensors(users, data.movies[here], data.ratings[here], end - first, MOVIES)


def edges_of(train: RatingTensors, world: int) -> list[int]:
    """Where a rank's users begin: the first whose ratings begin at or after its share."""
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), train.counts()[0].cumsum(0)])
    return [int(torch.searchsorted(starts, RATINGS * r // world)) for r in range(world)] + [USERS]


def interactions(data: RatingTensors) -> Interactions:
    return Interactions(data.users, data.movies, data.ratings, data.n_users, data.n_movies)


def arrays(model: RankingModel) -> dict[str, Any]:
    """What a ranking model of stars holds."""
    found = {name: torch.from_numpy(getattr(model, name)) for name in ("bias", "embedding", "history", "liking")}
    return {**found, "numbers": [model.mu, model.sd, model.regularization, model.energy_beyond]}


def run(rank: int, world: int, folder: Path) -> None:
    """One process: fits every solver, and resumes a checkpoint of one process; writes what it has."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    train, validation = planted()
    edges = edges_of(train, world)
    parts = [share(data, rank, world, edges) for data in (train, validation)]
    found: dict[str, Any] = {}
    for solver, options in SOLVERS.items():
        ranks, reports, rows = Counted.joined(), [], []  # type: tuple[Counted, list[EpochReport], list[int]]

        def note(report: EpochReport, ranks: Counted = ranks, reports: Any = reports, rows: Any = rows) -> None:
            reports.append(report)
            rows.append(ranks.rows)

        file = CheckpointFile(folder / f"{solver}.checkpoint")
        resumed = file if file.path.exists() and world == 2 else None
        model = fit(*parts, configure(solver, options), CPU, [note], resumed, None, ranks)
        found[solver] = {
            "model": {name: x for name, x in model.state_dict().items() if name.startswith(("user_", "movie_"))},
            "rmse": [r.validation_rmse for r in reports],
            "rows": rows,
            "rest": ranks.sent - ranks.rows,
        }
    taste.PANEL = 512  # so that every process solves for some movies
    counted = Counted.joined()
    model = fit_ranking(interactions(parts[0]), LISTS, CPU, ranks=counted)
    found["lists"] = {
        **arrays(model),
        "vectors": torch.from_numpy(model.user_vectors(interactions(parts[0]))),
        "rows": counted.rows,
        "raters": counted.raters,
        "rest": counted.sent - counted.rows - counted.raters,
    }
    buffer = io.BytesIO()
    torch.save(found, buffer)
    (folder / f"{world}-{rank}.pt").write_bytes(buffer.getvalue())
    dist.destroy_process_group()
