"""Fitting the ranking model, top to bottom."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mf.errors import DataError, TrainingError
from mf.ranking.config import RankingConfig
from mf.ranking.interactions import Floats, Interactions, UserRows
from mf.ranking.matrix import LIKING, RATED, RatingMatrix
from mf.ranking.model import RankingModel
from mf.ranking.passes import Passes, PassReport
from mf.ranking.relevance import default_threshold
from mf.ranking.student import cut
from mf.ranking.taste import taste_vectors
from mf.ranking.teacher import fit_teacher
from mf.ranks import Ranks
from mf.workers import Workers

SMALL_RANK = 768  # up to which inputs are taken whole: a second of one core
CONSTANT = 1e-6  # a standard deviation below which all ratings are the same


def fit(
    interactions: Interactions,
    config: RankingConfig,
    device: torch.device,
    progress: Callable[[PassReport], None] | None = None,
    threads: int | None = None,
    ranks: Ranks | None = None,
) -> RankingModel:
    """Fits the ranking model in closed form; nothing is tuned and no validation part is needed.

    The same ``interactions``, in any order, and seed give the same bits on a CPU, whatever ``threads``. Several
    processes call this together, each with the ratings of its own users and all movies, and get the same model but for
    rounding errors.

    Args:
        interactions: training ratings or clicks, of this process's users. Without ratings, and where all are the same,
            only who rated what is used. Of a pair that occurs twice the last one counts.
        config: options.
        device: where the work is done.
        progress: called after every pass.
        threads: on a CPU; default: one per core that this process may use.
        ranks: the processes that share the users; default: this one has all.

    Raises:
        DataError: a process has no interactions, or they are not what ``UserRows.of`` expects.
        TrainingError: a vector is not finite.
    """
    passes, ranks = Passes(progress), ranks or Ranks.alone()
    with torch.no_grad(), Workers(device, threads) as workers:
        rows = UserRows.of(interactions)
        if not all(ranks.gather_objects(len(rows.movies))):
            where = f" for one of {ranks.world} processes" if ranks.world > 1 else ""
            raise DataError(f"ranking: found no ratings{where}, expected at least one")
        scale = _Scale.of(rows.ratings, config, ranks)
        matrix = _matrix(rows, interactions.n_movies, scale, config, device, workers, ranks)
        del rows
        passes.done("ratings sorted")
        whole = min(matrix.all_users, len(matrix.channels) * matrix.movies)
        rank = config.teacher_rank or teacher_rank(int(matrix.movie_counts.sum()), whole, config.factors)
        teacher = fit_teacher(matrix, min(rank, whole), config, passes)
        matrix.drop_targets()
        q, inputs = cut(teacher, matrix, config.factors, passes)
        regularization, found, beyond = teacher.regularization, len(teacher.singular), teacher.energy_beyond
        del teacher
        if config.taste and LIKING in inputs and scale.choosy:
            p = matrix.times(inputs, torch.ones_like(matrix.scale))
            q = q + taste_vectors(matrix, p, q, inputs, scale.sd / config.rho, config.taste)
            passes.done("taste")
        share = matrix.movie_counts / matrix.movie_counts.sum()
        bias = config.prior_ratings * (q @ (share.float() @ inputs[RATED]))
    history = inputs[RATED]
    arrays = {"bias": bias, "embedding": q, "history": history, "liking": inputs.get(LIKING, torch.zeros_like(history))}
    if not all(bool(array.isfinite().all()) for array in arrays.values()):
        raise TrainingError("ranking: found a vector that is not finite, expected numbers: look for extreme ratings")
    return RankingModel(
        **{name: array.cpu().numpy() for name, array in arrays.items()},
        mu=scale.mu if scale.used else None,
        sd=scale.sd if scale.used else None,
        rho=config.rho if scale.used else 0.0,
        regularization=regularization,
        teacher_rank=found,
        energy_beyond=beyond,
        relevance_threshold=scale.threshold if scale.used else None,
        recency=config.recency,
    )


def teacher_rank(ratings: int, whole: int, factors: int) -> int:
    """Singular vectors of the full model: all that there may be up to 768; else 512 and 64 more per eightfold million.

    docs/ranking.md has what was measured.

    Args:
        ratings: how many there are.
        whole: the largest rank that the inputs can have.
    """
    if whole <= SMALL_RANK:
        return whole
    return max(512 + 64 * max(0, int(math.log(ratings / 1e6, 8))), 2 * factors)


@dataclass(frozen=True)
class _Scale:
    """Mean, spread and relevance threshold of the ratings.

    Attributes:
        used: whether ratings are looked at.
        choosy: whether some rating is below the threshold.
    """

    used: bool = False
    mu: float = 0.0
    sd: float = 1.0
    threshold: float = 0.0
    choosy: bool = False

    @classmethod
    def of(cls, ratings: Floats | None, config: RankingConfig, ranks: Ranks) -> "_Scale":
        if ratings is None or config.rated_only:
            return cls()
        n = sum(ranks.gather_objects(len(ratings)))
        mu = sum(ranks.gather_objects(float(ratings.sum(dtype=np.float64)))) / n
        squares = float(np.square(ratings - np.float32(mu)).sum(dtype=np.float64))
        sd = (sum(ranks.gather_objects(squares)) / n) ** 0.5
        if sd <= CONSTANT * max(1.0, abs(mu)):
            return cls()
        ends = np.array(ranks.gather_objects((float(ratings.min()), float(ratings.max()))), np.float32)
        threshold = config.relevance_threshold
        if threshold is None:
            threshold = default_threshold(ends)
        return cls(True, mu, sd, threshold, float(ends.min()) < threshold)


def _matrix(
    rows: UserRows,
    n_movies: int,
    scale: _Scale,
    config: RankingConfig,
    device: torch.device,
    workers: Workers,
    ranks: Ranks,
) -> RatingMatrix:
    """The inputs, each user scaled by (n_u / mean n)^-input_exponent, and the targets, by ^-target_exponent."""
    counts = np.maximum(rows.counts, 1)
    ratings, users = np.sum(ranks.gather_objects((int(counts.sum()), len(counts))), 0)
    busy = counts / (ratings / users)
    inputs, targets = ((busy**-power).astype(np.float32) for power in (config.input_exponent, config.target_exponent))
    values: dict[str, Floats | None] = {RATED: None}
    liked = None
    if scale.used:
        assert rows.ratings is not None
        liked = rows.ratings >= np.float32(scale.threshold)
        if config.rho:
            values[LIKING] = (rows.ratings - np.float32(scale.mu)) * np.float32(config.rho / scale.sd)
    return RatingMatrix(rows, n_movies, values, liked, config.rated_target, inputs, targets, device, workers, ranks)
