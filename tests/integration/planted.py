"""Planted models with known recommendations, written as model directories."""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass
class Planted:
    run_id: str
    user_ids: list[Any]
    user_bias: np.ndarray
    p: np.ndarray
    movie_ids: list[Any]
    movie_bias: np.ndarray
    q: np.ndarray
    mu: float = 3.5
    rating_min: float = 0.5
    rating_max: float = 5.0

    def write(self, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        header = {"run_id": self.run_id, "factors": self.q.shape[1], "mu": self.mu}
        header |= {"rating_min": self.rating_min, "rating_max": self.rating_max, "metrics": {"rmse": 0.9}}
        (directory / "model.json").write_text(json.dumps(header))
        for kind, ids, bias, vectors in (
            ("user", self.user_ids, self.user_bias, self.p),
            ("movie", self.movie_ids, self.movie_bias, self.q),
        ):
            columns = {f"{kind}_id": pa.array(ids), "bias": pa.array(bias, pa.float32())}
            columns["embedding"] = pa.array(list(vectors), pa.list_(pa.float32()))
            pq.write_table(pa.table(columns), directory / f"{kind}_embeddings.parquet")
        counts = {"movie_id": pa.array(self.movie_ids), "ratings": pa.array(self.counts())}
        pq.write_table(pa.table(counts), directory / "movie_counts.parquet")
        return directory

    def counts(self) -> np.ndarray:
        """Ratings per movie, some alike."""
        return np.arange(len(self.movie_ids), dtype=np.int32) // 2

    def scores(self, user: int | None) -> np.ndarray:
        """mu + b_u + b_m + p.q of every movie, float64, for the user of a row, or for an unseen one."""
        unseen = self.mu + self.movie_bias.astype(np.float64)
        return unseen if user is None else unseen + self.user_bias[user] + self.q.astype(np.float64) @ self.p[user]

    def best(self, user: int | None, k: int, without: tuple[Any, ...] = ()) -> list[tuple[Any, float]]:
        scores = self.scores(user)
        order = sorted((-s, m) for s, m in zip(scores, self.movie_ids, strict=True) if m not in without)[:k]
        return [(m, float(np.clip(-s, self.rating_min, self.rating_max))) for s, m in order]


def planted(
    run_id: str, *, users: int = 120, movies: int = 300, factors: int = 8, seed: int = 0, ids: str = "bigint"
) -> Planted:
    """Scores spread far beyond the range of the ratings, so that many predicted ratings are clipped."""
    rng = np.random.default_rng(seed)

    def some(n: int, kind: str) -> list[Any]:
        if ids == "bigint":
            return (rng.permutation(n * 3)[:n] + 2**40).tolist()
        names = [uuid.uuid5(uuid.NAMESPACE_URL, f"{kind}{i}") for i in range(n)]
        return [str(u) if ids == "uuid" else f"{'Zz'[u.int % 2]} é'{kind},\"{u.hex[:6]}" for u in names]

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.7, shape).astype(np.float32)

    return Planted(
        run_id, some(users, "user"), normal(users), normal(users, factors), some(movies, "movie"), normal(movies),
        normal(movies, factors),
    )  # fmt: skip
