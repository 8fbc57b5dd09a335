"""Evaluation, comparison, gate and report in one call."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mf.evaluation import accuracy, evaluate, metrics, report
from mf.evaluation import judge as judge_module
from mf.evaluation.config import EvaluateConfig, GateConfig
from mf.evaluation.judge import Judgement, judge
from mf.evaluation.metrics import RatingMetric
from mf.model import MatrixFactorization
from mf.model_directory import Embeddings, Header, TrainedModel
from mf.ratings.schema import TrainedOn
from mf.ratings.vocabulary import Vocabulary
from mf.supabase.target import PublishedRun

TRAINED_ON = TrainedOn("ratings.csv", {}, "0a", None)
NO_LIMITS = {"min_rows": 0, "min_users": 0, "min_movies": 0}


def ratings(*rows: tuple[int, int, float]) -> pa.Table:
    users, movies, values = zip(*rows, strict=True)
    return pa.table({"user_id": users, "movie_id": movies, "rating": pa.array(values, pa.float32())})


# User u rates movie m with u + m, which the model predicts 0.1 too high.
TRAIN = ratings(*((u, m, u + m) for u in range(4) for m in range(6) if (u + m) % 3))
TEST = ratings(*((u, m, u + m) for u in range(4) for m in range(6) if not (u + m) % 3))


def model() -> TrainedModel:
    users, movies = Vocabulary.of(TRAIN["user_id"]), Vocabulary.of(TRAIN["movie_id"])
    module = MatrixFactorization(4, 6, 1, rating_min=0, rating_max=9, mu=0.1)
    with torch.no_grad():
        module.user_bias.weight.copy_(torch.arange(4.0)[:, None])
        module.movie_bias.weight.copy_(torch.arange(6.0)[:, None])
    return TrainedModel(module, users, movies, "r2", "adam", {}, {}, trained_on=TRAINED_ON)


class ExactRun:
    """A target whose published run predicts every rating exactly."""

    def published_run(self) -> PublishedRun:
        return PublishedRun(Header("r1", 1, 0.0, 0.0, 9.0), 4, 6, "2026-02-01T03:00:00+00:00", TRAINED_ON)

    def embeddings(self, _: PublishedRun) -> tuple[Embeddings, Embeddings]:
        users, movies = (
            Embeddings(pa.array(range(n)), np.arange(n, dtype=np.float32), np.zeros((n, 1), np.float32)) for n in (4, 6)
        )
        return users, movies


def judged(folder: Path, **options: Any) -> Judgement:
    options = {
        "config": EvaluateConfig(bootstrap=100, relevance_threshold=3),
        "gate": GateConfig(**NO_LIMITS),
        **options,
    }
    return judge(model(), TRAIN, TEST, html=folder / "report.html", document=folder / "evaluation.json", **options)


def test_without_a_target_and_a_validation_part_the_baselines_decide(tmp_path: Path) -> None:
    found = judged(tmp_path)
    assert (found.comparison, found.decision.publish) == (None, True)
    assert found.metrics()["rmse"] == pytest.approx(0.1, abs=1e-6)
    assert "there is no published run to compare with" in found.html.read_text()
    written = json.loads(found.document.read_text())
    assert written["model"] == {
        "rmse": found.evaluation.model["rmse"],
        "mae": found.evaluation.model["mae"],
        "rmse_interval": pytest.approx({"low": 0.1, "high": 0.1}, abs=1e-6),
        "mae_interval": pytest.approx({"low": 0.1, "high": 0.1}, abs=1e-6),
    }
    assert list(written["ranking"]["model"]) == [
        "ndcg", "recall", "map", "hit_rate", "coverage",
        "ndcg_interval", "recall_interval", "map_interval", "hit_rate_interval",
    ]  # fmt: skip
    assert (written["champion"], written["ranking"]["left_out"]) == (None, "training")


def test_a_model_worse_than_the_targets_published_run_is_refused(tmp_path: Path) -> None:
    found = judged(tmp_path, target=ExactRun())
    assert [check.name for check in found.decision.checks if not check.passed] == ["champion"]
    assert found.metrics()["champion_rmse"] == 0
    assert found.metrics()["rmse_above_champion"] == pytest.approx(0.1, abs=1e-6)
    assert found.metrics()["publish"] == 0
    assert "The published run r1 stays in use." in found.html.read_text()
    last = found.log_lines()[-1]
    assert last.startswith("not published: RMSE 0.1000 against 0.0000 of the published run r1 on the same ")


def test_every_metric_is_logged_for_the_model_and_its_baselines(tmp_path: Path) -> None:
    found = judged(tmp_path)
    lists = ("ndcg", "recall", "map", "hit_rate", "coverage")
    prefixes = {"": ("rmse", "mae", *lists), "user_movie_bias_": ("rmse", "mae", *lists),
                "global_mean_": ("rmse", "mae"), "popularity_": lists}  # fmt: skip
    names = {f"{prefix}{name}" for prefix, metrics in prefixes.items() for name in metrics}
    assert set(found.metrics()) == names | {"test_rows", "unseen_users", "unseen_movies", "publish"}
    for heading in ("RMSE 0.1000 (user + movie biases ", "NDCG@10 ", "hit rate@10 ", "coverage "):
        assert heading in found.log_lines()[0]


def test_a_new_metric_reaches_json_report_log_and_kfp_from_the_table_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean_error = RatingMetric("bias", "mean error", "lower", lambda errors: errors, lambda mean: mean)
    for module in (accuracy, report):
        monkeypatch.setattr(module, "RATING_METRICS", (*metrics.RATING_METRICS, mean_error))
    for module in (metrics, evaluate, judge_module):
        monkeypatch.setattr(module, "METRICS", (*metrics.METRICS, mean_error))
    found = judged(tmp_path)
    assert found.metrics()["bias"] == pytest.approx(0.1, abs=1e-6)
    assert "mean error 0.1000 (user + movie biases " in found.log_lines()[0]
    assert ">mean error</th>" in found.html.read_text()
    assert {"bias", "bias_interval"} <= set(json.loads(found.document.read_text())["model"])
