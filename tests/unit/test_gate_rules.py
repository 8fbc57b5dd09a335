"""Every check of the gate, at its limit and on both sides of it."""

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from mf.evaluation.bootstrap import Interval
from mf.evaluation.champion import Comparison, PairedNdcg, PairedRmse
from mf.evaluation.config import EvaluateConfig, GateConfig
from mf.evaluation.evaluate import Evaluation, evaluate
from mf.evaluation.gate import Check, Decision, decide
from mf.evaluation.metrics import Scores
from mf.evaluation.ranking import PREDICTED_RATING, RANKING_MODEL
from mf.model import MatrixFactorization
from mf.model_directory import TrainedModel
from mf.ratings.vocabulary import Vocabulary

NO_LIMITS = {"min_rows": 0, "min_users": 0, "min_movies": 0}


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    """A real one of an untrained model; the tests replace its scores."""
    ratings = pa.table({"user_id": [1, 1, 2, 2], "movie_id": [1, 2, 1, 2], "rating": pa.array([1, 2, 3, 5], "float")})
    ids = Vocabulary.of(ratings["user_id"])
    module = MatrixFactorization(2, 2, 1, rating_min=1, rating_max=5, mu=3)
    model = TrainedModel(module, ids, ids, "r2", "adam", {}, {})
    return evaluate(ratings, ratings, model, EvaluateConfig(bootstrap=0))


def judged(
    evaluation: Evaluation, comparison: Comparison | None = None, users: int = 100, movies: int = 200, **config: Any
) -> Decision:
    return decide(evaluation, comparison, GateConfig(**NO_LIMITS | config), users=users, movies=movies)


def scored(evaluation: Evaluation, model: float, biases: float = 0.9, mean: float = 1.0, **fields: Any) -> Evaluation:
    rmses = {"model": model, "user_movie_bias": biases, "global_mean": mean}
    scores = {name: Scores({"rmse": rmse, "mae": 0.5}) for name, rmse in rmses.items()}
    return replace(evaluation, **scores, **{"constant": (), **fields})


def against(difference: float, low: float | None, clean: bool = True) -> Comparison:
    interval = None if low is None else Interval(low, 2 * difference - low)
    figures = PairedRmse(500, 0.8, 0.8 - difference, difference, interval, clean)
    return Comparison("r1", "2026-11-24T03:00:00+00:00", "a note", figures)


def failed(decision: Decision) -> list[str]:
    return [check.name for check in decision.checks if not check.passed]


def test_a_first_model_that_beats_the_baselines_passes_every_check(evaluation: Evaluation) -> None:
    decision = judged(scored(evaluation, 0.8))
    assert (decision.publish, decision.forced, decision.reasons, decision.verdict) == (True, False, (), "publish")
    assert [check.name for check in decision.checks] == [
        "finite", "baselines", "champion", "min_rows", "min_users", "min_movies"
    ]  # fmt: skip
    assert decision.checks[1] == Check(
        "baselines", 0.8, 0.9, True, "RMSE 0.8000 is below that of user + movie biases, 0.9000"
    )
    assert decision.summary() == "accepted for publication: all 6 checks passed"


def test_a_constant_model_is_refused(evaluation: Evaluation) -> None:
    assert evaluation.constant == ("predicted ratings",)
    decision = judged(scored(evaluation, 0.8, constant=("predicted ratings", "ranking scores")))
    assert decision.reasons == ("all predicted ratings and all ranking scores are the same",)


@pytest.mark.parametrize(
    ("model", "biases", "mean", "reasons"),
    [
        (0.8999, 0.9, 1.0, ()),
        (0.9, 0.9, 1.0, ("RMSE 0.9000 is not below that of user + movie biases, 0.9000",)),
        (0.95, 1.0, 0.94, ("RMSE 0.9500 is not below that of the global mean, 0.9400",)),
    ],
)
def test_the_better_of_the_baselines_must_be_beaten(
    evaluation: Evaluation, model: float, biases: float, mean: float, reasons: tuple[str, ...]
) -> None:
    decision = judged(scored(evaluation, model, biases, mean))
    assert (decision.reasons, decision.publish) == (reasons, not reasons)


@pytest.mark.parametrize(
    ("difference", "low", "clean", "passes"),
    [
        (-0.05, -0.06, True, True),  # better
        (0.01, 0.005, True, True),  # significantly worse, by as much as is allowed
        (0.0101, 0.005, True, False),  # significantly worse, by more
        (0.0101, 0.0, True, True),  # by more, but perhaps by chance
        (0.5, -0.001, True, True),
        (0.0101, None, True, True),  # no interval with one user
        (0.0101, 0.005, False, True),  # not clean
        (float("nan"), float("nan"), True, False),
    ],
)
def test_a_model_may_be_worse_than_the_published_run_by_max_regression_or_by_chance(
    evaluation: Evaluation, difference: float, low: float | None, clean: bool, passes: bool
) -> None:
    decision = judged(scored(evaluation, 0.8), against(difference, low, clean), max_regression=0.01)
    assert failed(decision) == ([] if passes else ["champion"])
    assert decision.publish == passes


def test_a_failed_comparison_names_both_rmses_the_interval_and_whether_it_counts(evaluation: Evaluation) -> None:
    (reason,) = judged(scored(evaluation, 0.8), against(0.02, 0.015)).reasons
    assert reason == (
        "RMSE 0.8000 against 0.7800 of the published run r1 on the same 500 ratings: +0.0200 (95% interval +0.0150 to "
        "+0.0250), max_regression is 0.01"
    )
    text = judged(scored(evaluation, 0.8), against(0.02, 0.015, clean=False)).checks[2].text
    assert text == f"{reason}; this does not count, because that run may have been trained on these ratings"


def test_a_run_that_is_not_comparable_passes_with_the_reason(evaluation: Evaluation) -> None:
    comparison = Comparison("r1", "2026-11-24T03:00:00+00:00", "not compared: another source")
    decision = judged(scored(evaluation, 0.8), comparison)
    assert decision.checks[2] == Check("champion", None, 0.01, True, "not compared: another source")
    assert decision.publish


@pytest.mark.parametrize(("limit", "passes"), [(0, True), (0.8, True), (0.7999, False)])
def test_max_rmse_is_a_limit_when_given(evaluation: Evaluation, limit: float, passes: bool) -> None:
    decision = judged(scored(evaluation, 0.8), max_rmse=limit)
    assert failed(decision) == ([] if passes else ["max_rmse"])
    assert any(check.name == "max_rmse" for check in decision.checks) == bool(limit)


@pytest.mark.parametrize("short", ["min_rows", "min_users", "min_movies"])
def test_a_model_of_too_few_ratings_users_or_movies_is_refused(evaluation: Evaluation, short: str) -> None:
    limits = {"min_rows": 999, "min_users": 50, "min_movies": 20}
    at_limits = scored(evaluation, 0.8, train_rows=999)
    assert judged(at_limits, users=50, movies=20, **limits).publish
    more = limits | {short: limits[short] + 1}
    assert failed(judged(at_limits, users=50, movies=20, **more)) == [short]


def test_a_metric_that_is_not_finite_is_named_and_refused(evaluation: Evaluation) -> None:
    bins = (replace(evaluation.by_rating[0], p90=float("inf")),)
    decision = judged(scored(evaluation, float("nan"), by_rating=bins))
    assert failed(decision) == ["finite", "baselines"]
    assert decision.reasons[0] == "not finite: model.rmse, by_rating.0.p90"
    assert decision.checks[0].figure == 2


def test_force_publish_accepts_and_names_every_failed_check(evaluation: Evaluation) -> None:
    refused = judged(scored(evaluation, 0.95), max_rmse=0.5)
    forced = judged(scored(evaluation, 0.95), max_rmse=0.5, force_publish=True)
    reasons = "RMSE 0.9500 is not below that of user + movie biases, 0.9000; RMSE 0.9500 is above max_rmse, 0.5"
    assert (refused.publish, refused.verdict, refused.summary()) == (False, "refuse", f"not published: {reasons}")
    assert (forced.publish, forced.forced, forced.verdict) == (True, True, "publish")
    assert forced.checks == refused.checks
    assert forced.summary() == f"accepted by force_publish although {reasons}"
    assert not judged(scored(evaluation, 0.8), force_publish=True).forced


def test_a_model_without_an_rmse_is_measured_by_its_lists(evaluation: Evaluation) -> None:
    unrated = replace(listed(evaluation, 0.1, 0.1, None), model=Scores())
    decision = judged(unrated, max_rmse=0.5)
    assert decision.publish
    assert [check.name for check in decision.checks] == ["finite", "lists", "min_rows", "min_users", "min_movies"]
    worse = judged(replace(listed(evaluation, 0.05, 0.1, Interval(-0.06, -0.01)), model=Scores()))
    assert failed(worse) == ["lists"]


def test_a_model_without_an_rmse_and_without_lists_is_refused(evaluation: Evaluation) -> None:
    nothing = replace(evaluation.ranking, model=None, popularity=None, reason="nobody liked a movie")
    decision = judged(replace(evaluation, model=Scores(), ranking=nothing, constant=()))
    assert decision.reasons == (
        "NDCG@10 of the lists has no figure: nobody liked a movie; nothing else measures this model",
    )


def listed(
    evaluation: Evaluation, ndcg: float, popularity: float, difference: Interval | None, by: str = PREDICTED_RATING
) -> Evaluation:
    """A good RMSE and these lists."""
    ranking = replace(
        evaluation.ranking,
        model=Scores({"ndcg": ndcg}),
        popularity=Scores({"ndcg": popularity}),
        ndcg_difference=difference,
        ordered_by=by,
    )
    return replace(scored(evaluation, 0.8), ranking=ranking)


@pytest.mark.parametrize(
    ("ndcg", "interval", "passes"),
    [
        (0.256, Interval(0.11, 0.15), True),
        (0.12, Interval(-0.02, 0.0), True),  # worse, but perhaps by chance
        (0.12, Interval(-0.02, -0.0001), False),
        (0.12, None, True),  # no interval with one user
        (float("nan"), Interval(float("nan"), float("nan")), False),
    ],
)
def test_lists_are_refused_where_popularitys_are_certainly_better(
    evaluation: Evaluation, ndcg: float, interval: Interval | None, passes: bool
) -> None:
    found = listed(evaluation, ndcg, 0.124, interval, RANKING_MODEL)
    assert ("lists" in failed(judged(found))) != passes
    assert "lists" not in failed(judged(replace(found, ranking=replace(found.ranking, ordered_by=PREDICTED_RATING))))


def test_the_verdict_names_the_lists_and_popularity(evaluation: Evaluation) -> None:
    good = judged(listed(evaluation, 0.256, 0.124, Interval(0.11, 0.15), RANKING_MODEL))
    assert good.checks[1].text == (
        "NDCG@10 0.2560 is above that of popularity, 0.1240 (95% interval of the difference +0.1100 to +0.1500)"
    )
    assert good.summary() == "accepted for publication: all 8 checks passed; lists  NDCG@10 0.256, popularity 0.124"
    bad = judged(listed(evaluation, 0.1, 0.124, Interval(-0.03, -0.01), RANKING_MODEL))
    assert bad.summary() == (
        "not published: NDCG@10 0.1000 is not above that of popularity, 0.1240 (95% interval of the difference -0.0300 "
        "to -0.0100); lists  NDCG@10 0.100, popularity 0.124"
    )


def test_without_a_relevant_test_rating_the_checks_of_lists_have_no_figure(evaluation: Evaluation) -> None:
    nothing = replace(
        evaluation.ranking, model=None, popularity=None, reason="nobody liked a movie", ordered_by=RANKING_MODEL
    )
    decision = judged(replace(scored(evaluation, 0.8), ranking=nothing), against(0.0, -0.1))
    assert [(check.name, check.figure) for check in decision.checks[1:3]] == [("lists", None), ("champion_lists", None)]
    assert decision.summary() == (
        "accepted for publication: all 8 checks passed; lists  no figure: nobody liked a movie"
    )


@pytest.mark.parametrize(
    ("difference", "high", "clean", "passes"),
    [
        (0.05, 0.06, True, True),  # better
        (-0.01, -0.005, True, True),  # significantly worse, by as much as is allowed
        (-0.0101, -0.005, True, False),  # significantly worse, by more
        (-0.0101, 0.0, True, True),  # by more, but perhaps by chance
        (-0.0101, None, True, True),  # no interval with one user
        (-0.0101, -0.005, False, True),  # not clean
        (float("nan"), float("nan"), True, False),
    ],
)
def test_lists_may_be_worse_than_the_published_runs_by_max_ndcg_regression_or_by_chance(
    evaluation: Evaluation, difference: float, high: float | None, clean: bool, passes: bool
) -> None:
    interval = None if high is None else Interval(2 * difference - high, high)
    lists = PairedNdcg(10, 500, 0.2, 0.2 - difference, difference, interval, clean, RANKING_MODEL)
    comparison = replace(against(0.0, -0.1), lists=lists)
    found = listed(evaluation, 0.2, 0.1, None, RANKING_MODEL)
    decision = judged(found, comparison, max_ndcg_regression=0.01)
    assert failed(decision) == ([] if passes else ["champion_lists"])
    assert ("this does not count" in decision.checks[2].text) == (not clean)
    without = replace(found, ranking=replace(found.ranking, ordered_by=PREDICTED_RATING))
    assert failed(judged(without, comparison)) == []


def test_a_failed_comparison_of_lists_names_both_ndcgs_and_the_interval(evaluation: Evaluation) -> None:
    lists = PairedNdcg(10, 500, 0.2, 0.23, -0.03, Interval(-0.04, -0.02), True, RANKING_MODEL)
    found = listed(evaluation, 0.2, 0.1, None, RANKING_MODEL)
    (reason,) = judged(found, replace(against(0.0, -0.1), lists=lists)).reasons
    assert reason == (
        "NDCG@10 0.2000 against 0.2300 of the published run r1 for the same 500 users: -0.0300 (95% interval -0.0400 "
        "to -0.0200), max_ndcg_regression is 0.01"
    )


def test_the_lists_of_a_run_that_is_not_comparable_are_not_compared(evaluation: Evaluation) -> None:
    comparison = Comparison("r1", "2026-11-24T03:00:00+00:00", "not compared: another source")
    decision = judged(listed(evaluation, 0.2, 0.1, None, RANKING_MODEL), comparison)
    assert decision.checks[2] == Check("champion_lists", None, -0.01, True, "lists not compared: another source")
