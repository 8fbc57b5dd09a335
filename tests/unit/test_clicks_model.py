"""A model of clicks: a ranking model alone, from tables to a model directory and its evaluation."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from mf.errors import ConfigError, DataError
from mf.evaluation.config import EvaluateConfig
from mf.evaluation.evaluate import evaluate
from mf.model_directory import TrainedModel, read_model
from mf.parameters import check
from mf.ranking import RankingConfig
from mf.ratings.schema import RATING
from mf.solvers.adam import AdamConfig
from mf.train import train, train_ranking
from mf.warm_start import EarlierModel
from pipelines.compiled import definitions
from pipelines.parameters import complete

CPU = torch.device("cpu")
STAR_FILES = {"model.pt", "user_embeddings.parquet", "movie_embeddings.parquet"}
LISTS = RankingConfig(factors=4)


def clicks(seed: int, n: int = 300) -> pa.Table:
    """Pairs of 40 users and 20 movies, each once."""
    pairs = np.sort(np.random.default_rng(seed).choice(800, n, replace=False))
    return pa.table({"user_id": pairs // 20, "movie_id": pairs % 20})


def rated(table: pa.Table, rating: float) -> pa.Table:
    return table.append_column(RATING, pa.array([rating] * len(table), pa.float32()))


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return train(clicks(0), clicks(1, 20), AdamConfig(), device=CPU, ranking=LISTS)


def test_there_is_no_star_model(model: TrainedModel) -> None:
    assert (model.module, model.solver, model.config, model.factors) == (None, None, {}, 4)
    assert "lists only: there are no ratings to predict" in model.summary()
    with pytest.raises(DataError, match="was trained without ratings: it has no star model, only lists"):
        model.predict(pa.array([1]), pa.array([1]))


def test_the_directory_has_no_star_files_and_round_trips(model: TrainedModel, tmp_path: Path) -> None:
    for name in STAR_FILES:
        (tmp_path / name).write_bytes(b"of an earlier model")
    model.save(tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {"model.json", "user_ranking.parquet", "movie_ranking.parquet"}
    assert written.isdisjoint(STAR_FILES)
    loaded = TrainedModel.load(tmp_path)
    assert loaded.card() == model.card()
    assert loaded.module is None
    assert loaded.users.ids.equals(model.users.ids)
    published = read_model(tmp_path)
    assert (published.users, published.movies, published.noise_variance) == (None, None, None)
    assert (published.header.mu, published.header.rating_min, published.header.rating_max) == (None, None, None)
    assert published.user_ids.equals(model.users.ids)
    assert published.movie_ids.equals(model.movies.ids)
    with pytest.raises(DataError, match="no star model"):
        EarlierModel.read(tmp_path)


@pytest.mark.parametrize("missing", ["mu", "rating_max"])
def test_a_rating_range_that_is_null_in_part_is_an_error(model: TrainedModel, tmp_path: Path, missing: str) -> None:
    model.save(tmp_path)
    card = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(card.replace(f'"{missing}": null', f'"{missing}": 3.5', 1))
    with pytest.raises(DataError, match="is None, expected a finite number"):
        read_model(tmp_path)


def test_ratings_that_are_all_the_same_are_an_error_and_none_are_clicks() -> None:
    same = rated(clicks(0), 1.0)
    for training in (
        lambda: train(same, same.slice(0, 0), AdamConfig(), device=CPU, ranking=LISTS),
        lambda: train(same, same.slice(0, 0), AdamConfig(), device=CPU),
        lambda: train_ranking(same, LISTS, device=CPU),
    ):
        with pytest.raises(DataError, match=r"found no other rating than 1, in 300 rows, .* use rating_column=none"):
            training()
    with pytest.raises(ConfigError, match=r"^ranking=none without ratings leaves no model to train"):
        train(clicks(0), clicks(0).slice(0, 0), AdamConfig(), device=CPU)


def test_every_test_pair_is_relevant_whatever_the_threshold(model: TrainedModel) -> None:
    test = clicks(2, 60)
    found = evaluate(clicks(0), test, model, EvaluateConfig(relevance_threshold=4.5), clicks(1, 20))
    assert found.ranking.relevance_threshold is None
    assert found.ranking.relevant + found.ranking_unseen_users.relevant == 60
    assert found.ranking.user_movie_bias is found.ranking.predicted_rating is None
    assert set(found.ranking.scores()) == {"model", "popularity"}
    assert found.cold_start_curve
    assert "RMSE" not in found.headline() + found.log_line()
    # Ratings of the parts are not looked at.
    again = evaluate(rated(clicks(0), 2.0), rated(test, 1.0), model, validation=rated(clicks(1, 20), 3.0))
    assert again.ranking == found.ranking


def test_a_star_model_is_not_scored_on_clicks() -> None:
    values = pa.array(np.arange(300) % 5, pa.float32())
    ratings = clicks(0).append_column(RATING, values)
    stars = train(ratings, ratings.slice(0, 0), AdamConfig(epochs=1, factors=2), device=CPU)
    with pytest.raises(DataError, match="the training part has ratings and the test part has none: name"):
        evaluate(ratings, clicks(2, 60), stars)


def test_the_pipeline_refuses_clicks_without_a_ranking_model_before_anything_runs() -> None:
    given = complete({"ratings_csv": "clicks.csv", "rating_column": "none"}, definitions())
    check(given)
    with pytest.raises(ConfigError, match="ranking=none without ratings leaves no model to train"):
        check({**given, "ranking": "none"})
