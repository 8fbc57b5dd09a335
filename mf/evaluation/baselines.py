"""RMSE of the baselines beside the model's, in one line."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mf.evaluation.encoded import EncodedRatings
from mf.evaluation.metrics import RMSE
from mf.model_directory import TrainedModel
from mf.ratings.schema import MOVIE, USER


@dataclass(frozen=True)
class BesideBaselines:
    """RMSE of a model and of the baselines on the same held-out ratings, in rating units."""

    ratings: int
    model: float
    user_movie_bias: float  # damped biases of the training part
    global_mean: float

    @classmethod
    def of(cls, model: TrainedModel, train: pa.Table, held_out: pa.Table) -> "BesideBaselines":
        """Scores ``model`` and baselines fitted to ``train`` on ``held_out``; none of the parts is empty.

        Raises:
            DataError: the parts have ids of different types.
        """
        ratings = EncodedRatings.of(train, held_out)
        biases = ratings.biases()
        module = model.star_model()
        low, high = module.rating_min.item(), module.rating_max.item()
        # In float64: a sum of millions of squares in float32 is inexact.
        actual = ratings.test_ratings.astype(np.float64)
        predicted = model.predict(held_out[USER], held_out[MOVIE]).astype(np.float64)
        baseline = np.clip(biases.predict(ratings.users.test_index, ratings.movie_rows), low, high)
        return cls(
            len(held_out),
            RMSE.of(actual, predicted),
            RMSE.of(actual, baseline),
            RMSE.of(actual, np.full(len(actual), biases.mean)),
        )

    @property
    def better(self) -> bool:
        """Whether the model is better than both baselines; False where its RMSE is not finite."""
        return self.model < min(self.user_movie_bias, self.global_mean)

    def line(self, part: str) -> str:
        """``RMSE 0.8412 on 10,084 test ratings; user + movie biases 0.8683, global mean 1.0421``."""
        return (
            f"RMSE {self.model:.4f} on {self.ratings:,} {part} ratings; "
            f"user + movie biases {self.user_movie_bias:.4f}, global mean {self.global_mean:.4f}"
        )
