"""What trials are compared by: validation RMSE, or NDCG@10 of the lists on the validation part."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from mf.biases import Ints
from mf.config import Config
from mf.errors import DataError
from mf.evaluation.encoded import pairs
from mf.evaluation.metrics import ndcg
from mf.evaluation.ranking import SCORED_USERS, find_hits, ranking_lists, sample
from mf.evaluation.topk import top_k_by_product
from mf.model import MatrixFactorization
from mf.ranking import Interactions, RankingConfig
from mf.ranking.fit import fit as fit_ranking
from mf.ranking.relevance import default_threshold
from mf.ratings.schema import MOVIE, RATED_AT, RATING, USER, has_ratings, times
from mf.ratings.vocabulary import Vocabulary
from mf.solvers import EpochReport, RatingTensors, fit

K = 10  # length of the lists


class Objective:
    """The figure of one trial; ratings are encoded once, for all trials.

    Args:
        ratings: training part; it and ``validation`` are ratings tables.
        validation: validation part, not empty.
        device: device to compute on.
        by_lists: compare by NDCG@10, higher is better; False: by RMSE.
        relevance_threshold: rating from which a movie counts as liked; ``None``: derived from the training ratings.
        tick: called after every epoch and every pass; may raise to stop the trial.

    Raises:
        DataError: a part is empty, or nobody has a validation rating to score lists by.
    """

    def __init__(
        self,
        ratings: pa.Table,
        validation: pa.Table,
        device: torch.device,
        *,
        by_lists: bool,
        relevance_threshold: float | None,
        tick: Callable[[], None],
    ) -> None:
        self.device, self.by_lists, self.tick = device, by_lists, tick
        for name, part in (("training", ratings), ("validation", validation)):
            if not len(part):
                raise DataError(f"trials: the {name} part is empty, expected ratings to compare trials by")
        (users, train_users), (movies, train_movies) = (Vocabulary.encode(ratings[name]) for name in (USER, MOVIE))
        self.size = len(users), len(movies)
        self.train = self._tensors(train_users, train_movies, ratings)
        self.validation = self._tensors(users.rows(validation[USER]), movies.rows(validation[MOVIE]), validation)
        if by_lists:
            self._prepare_lists(ratings, relevance_threshold)

    @property
    def rows(self) -> int:
        """Number of users and movies."""
        return sum(self.size)

    def of(self, config: Config) -> float:
        """Trains with ``config``, options of a solver or of the ranking model, and returns the figure.

        Raises:
            TrainingError: the training diverged.
        """
        if isinstance(config, RankingConfig):
            return self._ndcg_of_lists(config)
        kept: list[float] = []

        def note(epoch: EpochReport) -> None:
            if epoch.kept and epoch.validation_rmse is not None:
                kept.append(epoch.validation_rmse)
            self.tick()

        module = fit(self.train, self.validation, config, self.device, [note])
        return self._ndcg_of_stars(module) if self.by_lists else kept[-1]

    def _tensors(self, users: Ints, movies: Ints, ratings: pa.Table) -> RatingTensors:
        stars = ratings[RATING].to_numpy() if has_ratings(ratings) else np.ones(len(ratings), np.float32)
        return RatingTensors(torch.from_numpy(users), torch.from_numpy(movies), torch.tensor(stars), *self.size)

    def _prepare_lists(self, ratings: pa.Table, threshold: float | None) -> None:
        """Finds the users whose lists are scored, what they leave out and what they should hold."""
        if threshold is None or not has_ratings(ratings):
            threshold = default_threshold(self.train.ratings.numpy())
        held_out = self.validation
        users, movies = held_out.users.numpy(), held_out.movies.numpy()
        liked = held_out.ratings.numpy() >= threshold
        counts = np.bincount(users[liked & (users >= 0)], minlength=self.size[0])
        chosen = sample(np.flatnonzero(counts), SCORED_USERS, seed=0)
        if not len(chosen):
            raise DataError(
                f"trials: no user of the training part has a validation rating of {threshold:g} or higher to score "
                "lists by: raise val_size, lower relevance_threshold, or compare trials by rmse"
            )
        self.users, self.counts = chosen, counts[chosen]
        self.rated = pairs(self.train.users.numpy(), self.train.movies.numpy(), self.size)[chosen]
        self.relevant = pairs(users[liked], movies[liked], self.size)[chosen]
        known = times(ratings) if RATED_AT in ratings.column_names else None
        self.interactions = Interactions(
            self.train.users,
            self.train.movies,
            self.train.ratings if has_ratings(ratings) else None,
            *self.size,
            None if known is None else torch.tensor(known),
        )

    def _ndcg_of_lists(self, config: RankingConfig) -> float:
        model = fit_ranking(self.interactions, config, self.device, lambda _: self.tick())
        p = torch.from_numpy(model.user_vectors(self.interactions)[self.users]).to(self.device)
        return self._ndcg(ranking_lists(model, p, self.rated, K))

    @torch.no_grad()
    def _ndcg_of_stars(self, module: MatrixFactorization) -> float:
        users = torch.from_numpy(self.users).to(self.device)
        q, b_m = module.movie_factors.weight, module.movie_bias.weight.squeeze(1)
        return self._ndcg(top_k_by_product(module.user_factors.weight[users], q, b_m, self.rated, K))

    def _ndcg(self, lists: np.ndarray) -> float:
        return float(ndcg(find_hits(lists, self.relevant), self.counts).mean())
