"""The published run beside a new model: on which ratings, and by how much."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from mf.evaluation.champion import LEAST_USERS, Comparison, compare, predict
from mf.model import MatrixFactorization
from mf.model_directory import Embeddings, Header, TrainedModel
from mf.ratings.schema import RATED_AT, TIMESTAMP, TrainedOn
from mf.ratings.vocabulary import Vocabulary
from mf.supabase.target import PublishedRun, Target

THEIRS = TrainedOn("table public.ratings", {"rating": "stars"}, "0a", "2026-01-31T00:00:00+00:00")
RUN = PublishedRun(Header("r1", 2, 3.0, 1.0, 5.0), 2, 2, "2026-02-01T03:00:00+00:00", THEIRS)


def side(ids: list[Any], bias: list[float], vectors: list[list[float]]) -> Embeddings:
    return Embeddings(pa.array(ids), np.array(bias, np.float32), np.array(vectors, np.float32))


USERS = side([10, 20], [0.5, -0.5], [[1, 0], [0, 1]])
MOVIES = side([8, 7], [0.25, -0.25], [[1, 1], [0, -2]])


class Project:
    """A target that has ``run``, and counts how often its embeddings are read."""

    def __init__(self, run: PublishedRun | None) -> None:
        self.run, self.reads = run, 0

    def published_run(self) -> PublishedRun | None:
        return self.run

    def embeddings(self, _: PublishedRun) -> tuple[Embeddings, Embeddings]:
        self.reads += 1
        return USERS, MOVIES


def challenger(trained_on: TrainedOn | None) -> TrainedModel:
    """Always says 3."""
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
    return compare(challenger(ours), test, cast(Target, Project(run)))


def test_a_run_predicts_as_its_model_did_and_an_unknown_id_is_one_without_bias_and_vector() -> None:
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
    assert found.note.startswith("clean: it was trained on the same ratings")
    # Errors of 2, 0, 1, 0 against 0.25, 0.25, 0.25, 0.25.
    assert found.figures.rows == 4
    assert found.figures.rmse == pytest.approx((5 / 4) ** 0.5)
    assert found.figures.champion_rmse == pytest.approx(0.25)
    assert found.figures.difference == pytest.approx((5 / 4) ** 0.5 - 0.25)
    assert found.figures.interval
    assert found.figures.interval.low < found.figures.difference < found.figures.interval.high


def test_without_a_published_run_there_is_nothing_to_compare_with() -> None:
    assert compared(None) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "note"),
    [
        (THEIRS, None, "not compared: which ratings it, or this model, was trained on is not recorded"),
        (None, THEIRS, "not compared: which ratings it, or this model, was trained on is not recorded"),
        (
            replace(THEIRS, source="gs://b/r.csv"),
            THEIRS,
            "not compared: this model was trained on gs://b/r.csv, and it on table public.ratings",
        ),
        (
            replace(THEIRS, columns={"rating": "score"}),
            THEIRS,
            "not compared: this model was trained on table public.ratings, and it on other columns of it",
        ),
    ],
)
def test_a_run_of_another_source_is_not_even_read(ours: TrainedOn | None, theirs: TrainedOn | None, note: str) -> None:
    run = replace(RUN, trained_on=theirs)
    project = Project(run)
    assert compare(challenger(ours), TEST, cast(Target, project)) == Comparison("r1", run.published_at, note)
    assert project.reads == 0


GROWN = replace(THEIRS, content_hash="0b")


def test_of_ratings_that_have_grown_those_newer_than_all_it_has_seen_are_compared() -> None:
    rows = [(user, 8, 3.0) for user in range(LEAST_USERS)] + [(10, 8, 3.0), (10, 7, 3.0), (20, 8, 3.0)]
    # Its newest rating is of 31 January, 00:00: what is of that moment may be among what it has seen.
    found = compared(RUN, GROWN, ratings(rows, [32] * LEAST_USERS + [31, 1, None]))
    assert found
    assert found.figures
    assert (found.figures.rows, found.figures.clean) == (LEAST_USERS, True)
    assert (
        found.note
        == "clean: all that it has seen is of 2026-01-31T00:00:00+00:00 or older, and these ratings are newer"
    )


@pytest.mark.parametrize("times", ["too few are newer", "there are none", "its own are not known"])
def test_where_it_cannot_be_told_what_it_has_seen_all_are_compared_and_its_figure_is_flattered(times: str) -> None:
    rows = [(user, 8, 3.0) for user in range(LEAST_USERS)]
    days = None if times == "there are none" else [32] * (LEAST_USERS - 1) + [1]
    known = replace(THEIRS, until=None) if times == "its own are not known" else THEIRS
    found = compared(replace(RUN, trained_on=known), GROWN, ratings(rows, days))
    assert found
    assert found.figures
    assert (found.figures.rows, found.figures.clean) == (LEAST_USERS, False)
    assert found.note.startswith("not clean: it may have trained on some of these ratings, which flatters its figure")
