"""r̂ = mu + b_u + b_m + p_u·q_m, and the directory that holds it."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from mf.errors import DataError
from mf.files import directory_written_aside
from mf.ratings.schema import MOVIE, USER, TrainedOn
from mf.ratings.vocabulary import Vocabulary

FORMAT = 1
PREDICT_BATCH = 1 << 12  # pairs per batch: their vectors stay in the cache, which is ten times as fast


class MatrixFactorization(nn.Module):
    """Biased matrix factorization: r̂ = mu + b_u + b_m + p_u·q_m (Koren, Bell & Volinsky 2009, eq. 4).

    All parameters start at 0; the solvers fill them.

    Args:
        n_users, n_movies: number of users and movies.
        factors: length of p_u and q_m.
        rating_min, rating_max: range to which ``predict`` clips.
        mu: global mean rating.
    """

    mu: Tensor
    rating_min: Tensor
    rating_max: Tensor

    def __init__(
        self,
        n_users: int,
        n_movies: int,
        factors: int,
        *,
        rating_min: float,
        rating_max: float,
        mu: float = 0.0,
    ) -> None:
        super().__init__()
        self.user_factors = nn.Embedding(n_users, factors)
        self.movie_factors = nn.Embedding(n_movies, factors)
        self.user_bias = nn.Embedding(n_users, 1)
        self.movie_bias = nn.Embedding(n_movies, 1)
        for table in (self.user_factors, self.movie_factors, self.user_bias, self.movie_bias):
            nn.init.zeros_(table.weight)
        for name, value in (("mu", mu), ("rating_min", rating_min), ("rating_max", rating_max)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))

    @property
    def factors(self) -> int:
        return self.user_factors.embedding_dim

    def embed(self, users: Tensor, movies: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embedding lookups: p float[B, factors], q float[B, factors], b_u float[B], b_m float[B].

        Args:
            users, movies: int64[B] or int32[B], rows that exist.
        """
        return (
            self.user_factors(users),
            self.movie_factors(movies),
            self.user_bias(users).squeeze(-1),
            self.movie_bias(movies).squeeze(-1),
        )

    def forward(self, users: Tensor, movies: Tensor) -> Tensor:
        """Unclipped predictions float[B] for rows that exist."""
        p, q, b_u, b_m = self.embed(users, movies)
        score: Tensor = self.mu + b_u + b_m + (p * q).sum(-1)
        return score

    @torch.no_grad()
    def predict(self, users: Tensor, movies: Tensor) -> Tensor:
        """Predictions clipped to the rating range, float[N].

        Args:
            users, movies: int64[N] or int32[N]; -1 is an unseen user or movie, with bias 0 and a zero vector.
        """
        batches = zip(torch.split(users, PREDICT_BATCH), torch.split(movies, PREDICT_BATCH), strict=True)
        return torch.cat([self._predict_batch(*batch) for batch in batches])

    def _predict_batch(self, users: Tensor, movies: Tensor) -> Tensor:
        user_seen, movie_seen = users >= 0, movies >= 0
        p, q, b_u, b_m = self.embed(users.clamp(min=0), movies.clamp(min=0))
        dot = (p * q).sum(-1)
        score = self.mu + b_u * user_seen + b_m * movie_seen + dot * (user_seen & movie_seen)
        return score.clamp(self.rating_min, self.rating_max)


def write_embeddings(
    path: Path, key: str, ids: pa.Array, bias: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32]
) -> None:
    """One side of a model as Parquet: ``key`` (the ids), ``bias`` float32[n] and ``embedding``, a list of K of the
    vectors float32[n, K]."""
    offsets = pa.array(np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int64))
    embedding = pa.LargeListArray.from_arrays(offsets, pa.array(vectors.ravel())).cast(pa.list_(pa.float32()))
    pq.write_table(pa.table({key: ids, "bias": bias, "embedding": embedding}), path, compression="zstd")


@dataclass
class TrainedModel:
    """A fitted model, the ids of its rows, and what is known of how it came about."""

    module: MatrixFactorization
    users: Vocabulary
    movies: Vocabulary
    run_id: str  # names this training; what is published bears it
    solver: str
    config: dict[str, Any]  # the solver's configuration
    rows: dict[str, int]  # ratings it was trained on and validated on
    metrics: dict[str, Any] = field(default_factory=dict)  # validation and test RMSE, the training curve
    git_sha: str = "unknown"
    trained_on: TrainedOn | None = None  # None where nobody has told

    def summary(self) -> str:
        """What was fitted, in one line for a person."""
        size = f"{len(self.users):,} users, {len(self.movies):,} movies, {self.module.factors} factors"
        rmse = self.metrics.get("validation_rmse")
        kept = f", epoch {self.metrics['best_epoch']} kept with validation RMSE {rmse:.4f}" if rmse is not None else ""
        start = f", started from {earlier}" if (earlier := self.metrics.get("init_from")) else ""
        return f"model {self.run_id}: {size}{start}{kept}"

    def predict(
        self, user_ids: pa.ChunkedArray | pa.Array, movie_ids: pa.ChunkedArray | pa.Array
    ) -> npt.NDArray[np.float32]:
        """Predicted ratings float32[N], clipped, for pairs of ids; unseen ids count as bias 0 and a zero vector."""
        device = self.module.mu.device
        users, movies = (
            torch.from_numpy(v.rows(i)).to(device) for v, i in ((self.users, user_ids), (self.movies, movie_ids))
        )
        predictions: npt.NDArray[np.float32] = self.module.predict(users, movies).cpu().numpy()
        return predictions

    def save(self, directory: Path, also: Sequence[Path] = ()) -> None:
        """Writes ``model.pt``, ``model.json``, ``user_embeddings.parquet`` and ``movie_embeddings.parquet``, aside and
        then renamed, together with copies of the files ``also``."""
        m = self.module.cpu()
        with directory_written_aside(directory, seal="model.json") as aside:
            torch.save(m.state_dict(), aside / "model.pt")
            for name, key, vocabulary, factors, bias in (
                ("user_embeddings", USER, self.users, m.user_factors, m.user_bias),
                ("movie_embeddings", MOVIE, self.movies, m.movie_factors, m.movie_bias),
            ):
                vectors, biases = (table.weight.detach().numpy() for table in (factors, bias))
                write_embeddings(aside / f"{name}.parquet", key, vocabulary.ids, biases.ravel(), vectors)
            for file in also:
                shutil.copy(file, aside)
            (aside / "model.json").write_text(json.dumps(self.card(), indent=2) + "\n")

    def card(self) -> dict[str, Any]:
        """What stands in ``model.json``."""
        m = self.module
        return {
            "format": FORMAT,
            "run_id": self.run_id,
            "solver": self.solver,
            "config": self.config,
            "mu": m.mu.item(),
            "factors": m.factors,
            "rating_min": m.rating_min.item(),
            "rating_max": m.rating_max.item(),
            "rows": self.rows,
            "users": len(self.users),
            "movies": len(self.movies),
            "git_sha": self.git_sha,
            "trained_on": asdict(self.trained_on) if self.trained_on else None,
            "metrics": self.metrics,
        }

    @classmethod
    def load(cls, directory: Path) -> "TrainedModel":
        """Reads what ``save`` wrote.

        Raises:
            DataError: a file is missing or does not fit the others.
        """
        try:
            card = json.loads((directory / "model.json").read_text())
            if card["format"] != FORMAT:
                raise ValueError(f"model.json has format {card['format']}, expected {FORMAT}")
            users, movies = (
                Vocabulary(pq.read_table(directory / f"{name}.parquet", columns=[key])[key].combine_chunks())
                for name, key in (("user_embeddings", USER), ("movie_embeddings", MOVIE))
            )
            module = MatrixFactorization(
                len(users), len(movies), card["factors"], rating_min=card["rating_min"], rating_max=card["rating_max"]
            )
            module.load_state_dict(torch.load(directory / "model.pt", weights_only=True))
            noted = {name: card[name] for name in ("run_id", "solver", "config", "rows", "metrics", "git_sha")}
        except KeyError as error:
            raise DataError(f"{directory} is not a whole model directory: {error} is missing in it") from None
        except Exception as error:  # torch.load answers garbage with whatever its parser trips over
            raise DataError(f"{directory} is not a model directory: {' '.join(str(error).split())[:300]}") from None
        return cls(module, users, movies, **noted, trained_on=TrainedOn.read(card.get("trained_on")))
