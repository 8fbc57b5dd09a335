"""Comparison with the published run: on which ratings, and the difference in RMSE."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mf.evaluation.champion import LEAST_USERS, Comparison, compare, predict
from mf.model import MatrixFactorization
from mf.model_directory import Embeddings, Header, TrainedModel
from mf.ratings.schema import RATED_AT, TIMESTAMP, TrainedOn
from mf.ratings.vocabulary import Vocabulary
from mf.supabase.target import PublishedRun

THEIRS = TrainedOn("table public.ratings", {"rating": "stars"}, "0a", "2026-01-31T00:00:00+00:00")
RUN = PublishedRun(Header("r1", 2, 3.0, 1.0, 5.0), 2, 2, "2026-02-01T03:00:00+00:00", THEIRS)


def embeddings(ids: list[Any], bias: list[float], vectors: list[list[float]]) -> Embeddings:
    return Embeddings(pa.array(ids), np.array(bias, np.float32), np.array(vectors, np.float32))


USERS = embeddings([10, 20], [0.5, -0.5], [[1, 0], [0, 1]])
MOVIES = embeddings([8, 7], [0.25, -0.25], [[1, 1], [0, -2]])


class FakeTarget:
    """A target with ``run`` published, which counts how often its embeddings are read."""

    def __init__(self, run: PublishedRun | None) -> None:
        self.run, self.reads = run, 0

    def published_run(self) -> PublishedRun | None:
        return self.run

    def embeddings(self, _: PublishedRun) -> tuple[Embeddings, Embeddings]:
        self.reads += 1
        return USERS, MOVIES


def challenger(trained_on: TrainedOn | None) -> TrainedModel:
    """A model that predicts 3 for every pair."""
    ids = Vocabulary.of(pa.array([1, 2]))
    module = MatrixFactorization(2, 2, 2, rating_min=1, rating_max=5, mu=3)
    return TrainedModel(module, ids, ids, "r2", "adam", {}, {}, trained_on=trained_on)


def ratings(rows: list[tuple[int, int, float]], days: list[int | None] | None = None) -> pa.Table:
    users, movies, values = zip(*rows, strict=True)
    table = pa.table({"user_id": users, "movie_id": movies, "rating": pa.array(values, pa.float32())})
    if days is None:
        return table
    times = [day and datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day - 1) for day in days]
    return table.append_column(RATED_AT, pa.array(times, TIMESTAMP))


TEST = ratings([(10, 8, 5), (10, 7, 3), (20, 8, 4), (99, 7, 3)])


def compared(run: PublishedRun | None, ours: TrainedOn | None = THEIRS, test: pa.Table = TEST) -> Comparison | None:
    return compare(challenger(ours), test, FakeTarget(run))


def test_a_run_predicts_as_its_model_did_and_an_unknown_id_has_bias_0_and_a_zero_vector() -> None:
    test = ratings([(10, 8, 0), (10, 7, 0), (20, 8, 0), (20, 7, 0), (99, 7, 0), (10, 99, 0), (99, 99, 0)])
    # 3 + 0.5 + 0.25 + 1, 3 + 0.5 - 0.25 + 0, 3 - 0.5 + 0.25 + 1, 3 - 0.5 - 0.25 - 2 clipped, 3 - 0.25, 3 + 0.5, 3
    assert predict(RUN, USERS, MOVIES, test).tolist() == [4.75, 3.25, 3.75, 1.0, 2.75, 3.5, 3.0]


def test_ids_that_the_database_keeps_as_text_are_found() -> None:
    users, movies = (replace(one, ids=one.ids.cast(pa.string())) for one in (USERS, MOVIES))
    assert predict(RUN, users, movies, ratings([(10, 8, 0), (99, 7, 0)])).tolist() == [4.75, 2.75]


def test_trained_on_the_same_ratings_both_are_scored_on_all_test_ratings() -> None:
    found = compared(RUN)
    assert found
    assert found.figures
    assert (found.run_id, found.published_at) == ("r1", "2026-02-01T03:00:00+00:00")
    assert found.note.startswith("clean: the published run was trained on the same ratings")
    # Errors of 2, 0, 1, 0 against 0.25, 0.25, 0.25, 0.25.
    assert found.figures.rows == 4
    assert found.figures.rmse == pytest.approx((5 / 4) ** 0.5)
    assert found.figures.champion_rmse == pytest.approx(0.25)
    assert found.figures.difference == pytest.approx((5 / 4) ** 0.5 - 0.25)
    assert found.figures.interval
    assert found.figures.interval.low < found.figures.difference < found.figures.interval.high


def test_without_a_published_run_there_is_no_comparison() -> None:
    assert compared(None) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "note"),
    [
        (THEIRS, None, "not compared: the training ratings of this model, or of the published run, were not recorded"),
        (None, THEIRS, "not compared: the training ratings of this model, or of the published run, were not recorded"),
        (
            replace(THEIRS, source="gs://b/r.csv"),
            THEIRS,
            "not compared: this model was trained on gs://b/r.csv, the published run on table public.ratings",
        ),
        (
            replace(THEIRS, columns={"rating": "score"}),
            THEIRS,
            "not compared: this model was trained on table public.ratings, the published run on other columns of it",
        ),
    ],
)
def test_embeddings_of_a_run_of_another_source_are_not_read(
    ours: TrainedOn | None, theirs: TrainedOn | None, note: str
) -> None:
    run = replace(RUN, trained_on=theirs)
    target = FakeTarget(run)
    assert compare(challenger(ours), TEST, target) == Comparison("r1", run.published_at, note)
    assert target.reads == 0


GROWN = replace(THEIRS, content_hash="0b")


def test_on_a_grown_source_only_newer_ratings_are_compared() -> None:
    rows = [(user, 8, 3.0) for user in range(LEAST_USERS)] + [(10, 8, 3.0), (10, 7, 3.0), (20, 8, 3.0)]
    # The run's newest rating is of 31 January, 00:00; a rating of that moment may be one of its training ratings.
    found = compared(RUN, GROWN, ratings(rows, [32] * LEAST_USERS + [31, 1, None]))
    assert found
    assert found.figures
    assert (found.figures.rows, found.figures.clean) == (LEAST_USERS, True)
    assert found.note == (
        "clean: these ratings are newer than all that the published run has seen (2026-01-31T00:00:00+00:00)"
    )


@pytest.mark.parametrize("times", ["too few are newer", "there are none", "its own are not known"])
def test_without_enough_newer_ratings_all_are_compared_and_the_comparison_is_not_clean(times: str) -> None:
    rows = [(user, 8, 3.0) for user in range(LEAST_USERS)]
    days = None if times == "there are none" else [32] * (LEAST_USERS - 1) + [1]
    known = replace(THEIRS, until=None) if times == "its own are not known" else THEIRS
    found = compared(replace(RUN, trained_on=known), GROWN, ratings(rows, days))
    assert found
    assert found.figures
    assert (found.figures.rows, found.figures.clean) == (LEAST_USERS, False)
    assert found.note.startswith("not clean: the published run may have been trained on some of these ratings")
