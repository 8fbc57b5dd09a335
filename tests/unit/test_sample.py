"""The sample is what it says it is, and its noise floor the error of who knows everything."""

import csv
import json
import uuid
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks.encoded import EncodedRatings
from mf import sample
from mf.evaluation.bootstrap import bootstrap_ratios, percentile_interval
from mf.evaluation.metrics import LIST_METRICS
from mf.evaluation.ranking import find_hits, score_users
from mf.evaluation.topk import top_k_in_one_order
from mf.ingest import ingest
from mf.ranking import Interactions, RankingConfig
from mf.ranking.fit import fit
from mf.ratings.config import IngestConfig, SplitConfig
from mf.ratings.schema import read_ratings
from mf.ratings.split import split
from mf.sample import Sample, write_sample


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return write_sample(tmp_path_factory.mktemp("sample"))


@cache
def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_same_seed_writes_the_same_bytes_and_another_others(written: Sample, tmp_path: Path) -> None:
    folder = written.ratings_csv.parent
    assert sorted(file.name for file in folder.iterdir()) == ["movies.csv", "ratings.csv", "truth.json"]
    write_sample(tmp_path / "again")
    write_sample(tmp_path / "other", seed=1)
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
        assert (tmp_path / "other" / file.name).read_bytes() != file.read_bytes()


def test_every_row_is_a_good_rating_of_a_pair_of_its_own(written: Sample, tmp_path: Path) -> None:
    config = IngestConfig(ratings_csv=str(written.ratings_csv), max_reject_fraction=0)
    found = ingest(config, tmp_path / "ratings.parquet", tmp_path / "rejects.csv")
    assert (found.rows_read, found.rows_kept) == (sample.RATINGS, sample.RATINGS)
    assert written.ratings_csv.stat().st_size < 900_000


def test_ratings_are_half_stars_users_uuids_and_movies_have_titles_of_their_own(written: Sample) -> None:
    assert {float(row["rating"]) for row in rows(written.ratings_csv)} == {i / 2 for i in range(1, 11)}
    assert {uuid.UUID(row["userId"]).version for row in rows(written.ratings_csv)} == {4}
    assert {int(row["movieId"]) for row in rows(written.ratings_csv)} <= set(written.titles)
    assert len(set(written.titles.values())) == sample.MOVIES
    listed = rows(written.ratings_csv.parent / "movies.csv")
    assert {int(row["movieId"]): row["title"] for row in listed} == written.titles


def test_few_users_are_busy_and_few_movies_popular(written: Sample) -> None:
    for column in ("userId", "movieId"):
        counts = sorted(Counter(row[column] for row in rows(written.ratings_csv)).values())
        busiest_fifth = sum(counts[-len(counts) // 5 :]) / sum(counts)
        assert busiest_fifth > 0.35
        assert counts[0] < np.median(counts) / 2


def test_the_odds_of_a_rating_grow_exponentially_with_taste() -> None:
    rng = np.random.default_rng(0)
    taste = rng.choice([-1.0, 1.0], (sample.USERS, sample.MOVIES))
    liked = taste[sample._rated_pairs(rng, taste)] > 0
    # No pair is drawn twice, which takes some of it from the busy users.
    assert 0.8 * 2 * sample.CHOICE < np.log(liked.mean() / (1 - liked.mean())) < 2 * sample.CHOICE


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lists_of_the_ranking_model_beat_popularity(written: Sample, tmp_path: Path, seed: int) -> None:
    ingest(IngestConfig(ratings_csv=str(written.ratings_csv)), tmp_path / "ratings.parquet", tmp_path / "rejects.csv")
    ratings, _ = read_ratings(tmp_path / "ratings.parquet")
    parts = split(ratings, SplitConfig(split="random", seed=seed, val_size=0.1, test_size=0.1))
    encoded = EncodedRatings.of(pa.concat_tables([parts.train, parts.validation]), parts.test)
    train, n_movies = encoded.train_ratings, len(encoded.movies.vocabulary)
    threshold = train.min() + 0.75 * (train.max() - train.min())
    rows = (torch.from_numpy(ids.train_rows) for ids in (encoded.users, encoded.movies))
    data = Interactions(*rows, torch.from_numpy(train.copy()), len(encoded.users.vocabulary), n_movies)
    model = fit(data, RankingConfig(), torch.device("cpu"))

    counts = encoded.relevant_counts(threshold)
    users = np.flatnonzero((encoded.users.test_id_rows >= 0) & (counts > 0))
    catalogue = encoded.movies.vocabulary
    rated, relevant = encoded.already_rated(catalogue)[users], encoded.relevant(threshold, catalogue)[users]
    vectors = model.user_vectors(data)[encoded.users.test_id_rows[users]]
    popular = top_k_in_one_order(np.bincount(encoded.movies.train_rows, minlength=n_movies), rated, 10)
    ndcg = [metric.name for metric in LIST_METRICS].index("ndcg")
    ours, theirs = (
        score_users(find_hits(lists, relevant), counts[users])[:, ndcg]
        for lists in (model.recommend(vectors, 10, rated)[0], popular)
    )
    draws = bootstrap_ratios((ours - theirs)[:, None], np.ones(len(users)), samples=1000, seed=0)
    interval = percentile_interval(draws[:, 0], len(users))
    assert interval is not None
    assert interval.low > 0
    assert ours.mean() > 1.3 * theirs.mean()


def test_the_expected_rating_is_the_mean_of_many_drawn_ones() -> None:
    rng = np.random.default_rng(0)
    scores = np.array([-3.0, 0.4, 0.74, 2.1, 3.25, 4.9, 9.0])
    drawn = np.clip(np.round((scores + rng.normal(0, sample.NOISE, (200_000, 7))) * 2) / 2, 0.5, 5.0)
    np.testing.assert_allclose(sample._expected_rating(scores), drawn.mean(0), atol=0.005)


def test_the_noise_floor_is_the_noise_with_what_rounding_adds_and_clipping_takes(written: Sample) -> None:
    """Rounding to half stars adds a variance of 0.5² / 12."""
    assert json.loads((written.ratings_csv.parent / "truth.json").read_text()) == {
        "noise_floor": written.noise_floor, "seed": 0
    }  # fmt: skip
    unclipped = np.sqrt(sample.NOISE**2 + 0.5**2 / 12)
    assert 0.9 * unclipped < written.noise_floor < unclipped
