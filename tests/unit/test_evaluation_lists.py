"""Lists of a ranking model: beside the baselines, for new users, and against the published run's."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mf.evaluation import champion
from mf.evaluation.champion import Comparison, compare
from mf.evaluation.config import EvaluateConfig, GateConfig
from mf.evaluation.evaluate import Evaluation, evaluate, evaluate_with_lists
from mf.evaluation.judge import Judgement, judge
from mf.evaluation.metrics import Scores
from mf.evaluation.ranking import PREDICTED_RATING, RANKING_MODEL
from mf.model import MatrixFactorization
from mf.model_directory import Embeddings, Header, PublishedRanking, TrainedModel, TrainedRanking
from mf.ranking import RankingModel
from mf.ratings.batches import Batches
from mf.ratings.schema import RATED_AT, TIMESTAMP, USER, Provenance, TrainedOn, write_ratings
from mf.ratings.vocabulary import Vocabulary
from mf.supabase.target import PublishedRun

SECOND = 1 / math.log2(3)  # NDCG of one relevant movie in the second place
BOTH = 1 + SECOND
TRAINED_ON = TrainedOn("ratings.csv", {}, "0a", "2026-01-31T00:00:00+00:00", "5e")
CONFIG = EvaluateConfig(k=2, relevance_threshold=4, bootstrap=0)


def ratings(*rows: tuple[Any, Any, float], days: list[int] | None = None) -> pa.Table:
    users, movies, values = zip(*rows, strict=True)
    table = pa.table({"user_id": users, "movie_id": movies, "rating": pa.array(values, pa.float32())})
    if days is None:
        return table
    times = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day - 1) for day in days]
    return table.append_column(RATED_AT, pa.array(times, TIMESTAMP))


def stars(users: list[int], movies: list[int], bias: list[float]) -> TrainedModel:
    """Predicts 3 and the movie's bias."""
    module = MatrixFactorization(len(users), len(movies), 1, rating_min=1, rating_max=5, mu=3)
    with torch.no_grad():
        for embedding in (module.user_factors, module.movie_factors):
            embedding.weight.zero_()
        module.movie_bias.weight.copy_(torch.tensor(bias)[:, None])
    ids = [Vocabulary(pa.array(part)) for part in (users, movies)]
    return TrainedModel(module, *ids, "r2", "none", {}, {}, trained_on=TRAINED_ON)


def ranking_model(
    embedding: list[list[float]], bias: list[float], history: list[list[float]] | None = None
) -> RankingModel:
    arrays = [np.array(part, np.float32) for part in (bias, embedding, history or embedding)]
    liking = np.zeros_like(arrays[1])
    return RankingModel(*arrays, liking, 3.0, 1.0, 0.5, 1.0, 1, 0.0, 4.0)


def with_ranking(model: TrainedModel, users: list[int], movies: list[int], p: Any, fitted: RankingModel) -> Any:
    ids = [Vocabulary(pa.array(part)) for part in (users, movies)]
    return replace(model, ranking=TrainedRanking(fitted, *ids, np.array(p, np.float32), {}))


# Movies 1 to 4 have 3, 2, 1 and 1 training ratings, movie 5 one in the validation part; user 5 is there alone.
TRAIN = ratings((1, 1, 5), (2, 1, 5), (3, 1, 2), (1, 2, 3), (2, 2, 3), (3, 3, 5), (4, 4, 1), days=[1, 2, 3, 4, 5, 6, 7])
VALIDATION = ratings((4, 5, 3), (5, 4, 3), days=[8, 8])
TEST = ratings(
    (1, 3, 5), (1, 5, 4), (2, 4, 5), (3, 2, 1), (4, 1, 4), (4, 9, 5), (5, 5, 4), (6, 1, 5), days=[9] * 8
)  # fmt: skip
# By predicted rating 1, 2, 3, 4 and, unknown to the star model, 5.
STARS = stars([1, 2, 3, 4], [1, 2, 3, 4], [0.4, 0.3, 0.2, 0.1])
# Users 1 to 4 prefer movies 5, 4, 3, 2, 1, user 5 the other way round; without a vector the biases say 3, 5, 4, 2, 1.
RANKED = ranking_model([[1.0], [2], [3], [4], [5]], [0.01, 0.02, 0.05, 0.03, 0.04])
MODEL = with_ranking(STARS, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [[1.0]] * 4 + [[-1.0]], RANKED)


def evaluated(model: TrainedModel = MODEL, train: pa.Table = TRAIN, **options: Any) -> Evaluation:
    return evaluate(train, TEST, model, EvaluateConfig(**CONFIG.model_dump() | options), VALIDATION)


def ndcg(scores: Scores | None) -> float:
    assert scores is not None
    return scores["ndcg"]


def test_the_lists_are_the_ranking_models_over_its_own_users_and_movies() -> None:
    found = evaluated().ranking
    assert (found.ordered_by, found.movies) == (RANKING_MODEL, 5)
    # User 3 likes nothing; of the test ratings of the others the one of movie 9 is in no catalogue.
    assert (found.users, found.users_without, found.relevant, found.out_of_reach) == (4, 1, 6, 1)
    # User 1 [5, 4] of {5, 3}, user 2 [5, 4] of {4}, user 4 [3, 2] of {1, 9}, user 5 [1, 2] of {5}.
    assert ndcg(found.model) == pytest.approx((1 / BOTH + SECOND + 0 + 0) / 4)
    # User 1 [3, 4], user 2 [3, 4], user 4 [1, 2], user 5 [1, 2].
    assert ndcg(found.predicted_rating) == pytest.approx((1 / BOTH + SECOND + 1 / BOTH + 0) / 4)
    # The same, since 1, 2, 3, 4 is also the order of popularity.
    assert ndcg(found.popularity) == ndcg(found.predicted_rating)
    assert found.line() == "lists  NDCG@2 0.311, popularity 0.464"


def test_an_unseen_user_gets_the_order_of_the_ranking_models_biases() -> None:
    found = evaluated(k=5).ranking_unseen_users
    assert found.users == 1
    assert ndcg(found.model) == pytest.approx(1 / math.log2(6))
    assert ndcg(found.popularity) == 1


def test_recent_popularity_counts_the_newest_tenth_and_then_all_ratings() -> None:
    # The newest of seven ratings is of movie 4; then 1, 2, 3 and 5 as by popularity.
    found = evaluated().ranking
    assert found.recent_since == "2026-01-07T00:00:00+00:00"
    # User 1 [4, 3] of {5, 3}, user 2 [4, 3] of {4}, user 4 [1, 2] of {1, 9}, user 5 [1, 2] of {5}.
    assert ndcg(found.recent_popularity) == pytest.approx((SECOND / BOTH + 1 + 1 / BOTH + 0) / 4)


def test_of_many_users_a_sample_has_lists_by_predicted_rating(monkeypatch: pytest.MonkeyPatch) -> None:
    before = evaluated().ranking
    monkeypatch.setattr("mf.evaluation.ranking.LISTED_USERS", 3)
    found = evaluated().ranking
    assert (before.predicted_rating_users, found.predicted_rating_users) == (4, 3)
    assert (found.model, found.popularity) == (before.model, before.popularity)
    # Three of the four users, whose NDCGs are these.
    each = [1 / BOTH, SECOND, 1 / BOTH, 0]
    assert ndcg(found.predicted_rating) in [pytest.approx((sum(each) - left_out) / 3) for left_out in each]


def test_of_very_many_users_a_sample_is_scored_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = evaluated().ranking
    monkeypatch.setattr("mf.evaluation.ranking.SCORED_USERS", 3)
    found = evaluated().ranking
    assert (before.users, before.drawn_from, found.users, found.drawn_from) == (4, 4, 3, 4)
    assert found.users_without == before.users_without
    each = [1 / BOTH, SECOND, 1 / BOTH, 0]
    assert ndcg(found.predicted_rating) in [pytest.approx((sum(each) - left_out) / 3) for left_out in each]


@pytest.mark.parametrize("times", ["no column", "all unknown"])
def test_without_times_there_is_no_recent_popularity(times: str) -> None:
    train, validation = TRAIN.drop_columns(RATED_AT), VALIDATION.drop_columns(RATED_AT)
    if times == "all unknown":
        train, validation = (
            part.append_column(RATED_AT, pa.nulls(len(part), TIMESTAMP)) for part in (train, validation)
        )
    found = evaluate(train, TEST, MODEL, CONFIG, validation).ranking
    assert (found.recent_popularity, found.recent_since) == (None, None)
    assert ndcg(found.model) == ndcg(evaluated().ranking.model)


def test_without_a_ranking_model_the_lists_are_those_by_predicted_rating() -> None:
    found = evaluated(STARS)
    assert (found.ranking.ordered_by, found.ranking.movies, found.cold_start_curve) == (PREDICTED_RATING, 4, None)
    assert (found.ranking.predicted_rating, found.ranking.recent_popularity) == (None, None)
    assert found.headline().startswith("RMSE ")
    assert evaluate_with_lists(TRAIN, TEST, STARS, CONFIG, VALIDATION)[1] is None


# Ten users have rated movies 1 to 12 and like movie 50, which each of these ratings points at. Movie 60 is the most
# popular, and ahead of movie 50 by its bias.
MOVIES = [*range(1, 13), 50, 60]
FOLDED = with_ranking(
    stars(list(range(10)), MOVIES, [0.0] * 14),
    list(range(10)),
    MOVIES,
    [[12.0]] * 10,
    ranking_model([[0.0]] * 12 + [[1.0], [0.0]], [0.0] * 12 + [0, 5.0], [[1.0]] * 12 + [[0.0], [0.0]]),
)
FOLDED_TRAIN = ratings(
    *((user, movie, 3) for user in range(10) for movie in range(1, 13)), *((100 + user, 60, 3) for user in range(20)),
    (100, 50, 3),
)  # fmt: skip
FOLDED_TEST = ratings(*((user, 50, 5) for user in range(10)), (99, 50, 5))


def test_the_cold_start_curve_folds_in_a_few_ratings_of_known_users() -> None:
    curve = evaluate(FOLDED_TRAIN, FOLDED_TEST, FOLDED, CONFIG).cold_start_curve
    assert curve
    assert (curve.users, curve.drawn_from) == (10, 10)
    # With 1 or 3 ratings movie 60's bias, 5, is ahead of movie 50's score; with 10 it is not.
    assert [(point.ratings, point.model["ndcg"]) for point in curve.points] == [
        (1, pytest.approx(SECOND)), (3, pytest.approx(SECOND)), (10, 1),
    ]  # fmt: skip
    assert ndcg(curve.popularity) == pytest.approx(SECOND)


def test_the_curve_is_of_a_seeded_sample_of_users_with_enough_ratings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mf.evaluation.ranking.FOLDED_IN_USERS", 4)
    first, second = (evaluate(FOLDED_TRAIN, FOLDED_TEST, FOLDED, CONFIG).cold_start_curve for _ in range(2))
    assert first
    assert first == second
    assert (first.users, first.drawn_from) == (4, 10)
    none = evaluated().cold_start_curve
    assert none
    assert (none.users, none.points, none.popularity) == (0, (), None)


@pytest.mark.parametrize("text_ids", [False, True])
def test_parts_in_files_are_scored_in_batches_as_tables_are(
    text_ids: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, parts = FOLDED, [FOLDED_TRAIN, FOLDED_TEST]
    if text_ids:
        parts = [part.set_column(0, USER, part[USER].cast(pa.string())) for part in parts]
        users = Vocabulary(FOLDED.users.ids.cast(pa.string()))
        model = replace(FOLDED, users=users, ranking=replace(FOLDED.ranking, users=users))
    config = replace_config(bootstrap=50)
    whole = evaluate(*parts, model, config)
    monkeypatch.setattr("mf.ratings.batches.ROWS", 3)
    monkeypatch.setattr("mf.evaluation.encoded.MERGED", 2)
    files = [tmp_path / name for name in ("train", "test")]
    for part, file in zip(parts, files, strict=True):
        write_ratings(part, file, Provenance("planted", len(part), 0, 0, len(part)))
    assert evaluate(*map(Batches, files), model, config) == whole


def test_of_a_large_test_part_the_ratings_of_a_sample_of_users_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mf.evaluation.encoded.SCORED_RATINGS", 5)
    found = evaluated()
    assert 0 < found.test_rows < found.test_rows_drawn_from == 8
    assert found.test_users < 6
    assert f"on {found.test_rows} of 8 test ratings" in found.headline()


class Target:
    """A target whose published run has ``ranking``; its star model orders movies as ``STARS`` does."""

    def __init__(self, ranking: PublishedRanking | None, trained_on: TrainedOn = TRAINED_ON) -> None:
        self.published, self.trained_on = ranking, trained_on

    def published_run(self) -> PublishedRun:
        return PublishedRun(Header("r1", 1, 3.0, 1.0, 5.0), 4, 4, "2026-02-01T03:00:00+00:00", self.trained_on)

    def embeddings(self, _: PublishedRun) -> tuple[Embeddings, Embeddings]:
        zeros = np.zeros((4, 1), np.float32)
        bias = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
        return Embeddings(pa.array([1, 2, 3, 4]), zeros[:, 0], zeros), Embeddings(pa.array([1, 2, 3, 4]), bias, zeros)

    def ranking(self, _: PublishedRun) -> PublishedRanking | None:
        return self.published


def published(model: RankingModel = RANKED, users: list[int] | None = None, p: Any = None) -> PublishedRanking:
    """The ranking model with its movies in another order than the challenger's, as a database may return them."""
    users = [3, 1, 2, 4, 5] if users is None else users
    back = [4, 2, 3, 1, 0]
    numbers = {"mu": model.mu, "sd": model.sd, "rho": model.rho, "recency": model.recency}
    arrays = [getattr(model, name)[back] for name in ("bias", "embedding", "history", "liking")]
    vectors = np.array([1.0] * len(users) if p is None else p, np.float32).reshape(len(users), 1)
    return PublishedRanking(numbers, pa.array([5, 3, 4, 2, 1]), *arrays, pa.array(users, pa.int64()), vectors)


def compared(target: Target, test: pa.Table = TEST) -> Comparison:
    _, lists = evaluate_with_lists(TRAIN, TEST, MODEL, CONFIG, VALIDATION)
    found = compare(MODEL, test, target, 0, lists)
    assert found
    return found


def test_the_published_runs_lists_are_scored_for_the_same_users_and_ratings() -> None:
    found = compared(Target(published())).lists
    assert found
    assert (found.k, found.users, found.clean, found.ordered_by) == (2, 4, True, RANKING_MODEL)
    assert found.ndcg == pytest.approx((1 / BOTH + SECOND + 0 + 0) / 4)
    # As the challenger's, but that user 5 gets [5, 3].
    assert found.champion_ndcg == pytest.approx((1 / BOTH + SECOND + 0 + 1) / 4)
    assert found.difference == pytest.approx(-1 / 4)
    assert found.interval
    assert found.interval.low <= -1 / 4 <= found.interval.high == 0
    assert found.others.keys() == {"recall", "map", "hit_rate", "coverage"}
    hits = found.others["hit_rate"]
    assert (hits.model, hits.champion, hits.difference) == (2 / 4, 3 / 4, -1 / 4)
    assert hits.interval
    assert hits.interval.low < -1 / 4 < hits.interval.high
    assert found.others["coverage"].interval is None


@pytest.mark.parametrize("seen_hash", ["5f", ""])
def test_lists_are_clean_only_where_the_published_run_saw_the_same_validation_part(seen_hash: str) -> None:
    found = compared(Target(published(), replace(TRAINED_ON, seen_hash=seen_hash)))
    assert found.figures
    assert found.figures.clean  # its star model saw the same training part
    assert found.lists
    assert not found.lists.clean
    assert found.lists.note.startswith("not clean: the published run may have been trained on some of these ratings")
    assert compared(Target(None, replace(TRAINED_ON, seen_hash=seen_hash))).lists.clean  # its lists are by stars


def test_vectors_that_the_database_does_not_store_are_summed_from_the_known_ratings() -> None:
    # User 2 has rated movies 1 and 2, which point at 4 alone; user 1 the same two; 4 rated movies 4 and 5, 5 movie 4.
    model = ranking_model([[0.0], [0], [0], [1], [-1]], [0.1, 0, 0.5, 0, 0], [[0.0], [1], [0], [-2], [0]])
    found = compared(Target(published(model, users=[])))
    assert found.lists
    # User 1 [4, 3] of {5, 3}, user 2 [4, 3] of {4}, user 4 [3, 1] of {1, 9}, user 5 [5, 3] of {5}.
    assert found.lists.champion_ndcg == pytest.approx((SECOND / BOTH + 1 + SECOND / BOTH + 1) / 4)
    stored = compared(Target(published(model, users=[1, 2, 4, 5], p=[1.0, 1, -2, -2])))
    assert stored.lists == found.lists


def test_a_published_run_without_a_ranking_model_is_compared_by_its_predicted_ratings() -> None:
    found = compared(Target(None)).lists
    assert found
    assert found.ordered_by == PREDICTED_RATING
    # User 1 [3, 4], user 2 [3, 4], user 4 [1, 2], user 5 [1, 2]: it does not know movie 5.
    assert found.champion_ndcg == pytest.approx((1 / BOTH + SECOND + 1 / BOTH + 0) / 4)


def test_lists_of_a_grown_source_are_compared_on_newer_ratings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(champion, "LEAST_USERS", 2)
    test = TEST.set_column(3, RATED_AT, pa.array([datetime(2026, 3, 1, tzinfo=UTC)] * 3 + [None] * 5, TIMESTAMP))
    older = replace(TRAINED_ON, content_hash="0b", seen_hash="5f")
    found = compared(Target(published(), older), test)
    assert found.note.startswith("clean: these ratings are newer")
    assert found.lists
    assert (found.lists.users, found.lists.clean) == (2, True)
    assert found.lists.ndcg == pytest.approx((1 / BOTH + SECOND) / 2)
    everything = compared(Target(published(), older))
    assert everything.lists
    assert not everything.lists.clean


def test_without_a_relevant_rating_lists_are_not_compared() -> None:
    assert compared(Target(published()), TEST.slice(3, 1)).lists is None
    assert compare(STARS, TEST, Target(published())).lists is None  # type: ignore[union-attr]


def test_many_users_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(champion, "LISTED_USERS", 3)
    found = [compared(Target(published())).lists for _ in range(2)]
    assert found[0] == found[1]
    assert found[0]
    assert found[0].users == 3


def judged(folder: Path, **options: Any) -> Judgement:
    gate = GateConfig(min_rows=0, min_users=0, min_movies=0)
    options = {"model": MODEL, "config": replace_config(bootstrap=100), "gate": gate, **options}
    model = options.pop("model")
    paths = {"html": folder / "report.html", "document": folder / "evaluation.json"}
    return judge(model, TRAIN, TEST, VALIDATION, **paths, **options)


def replace_config(**options: Any) -> EvaluateConfig:
    return EvaluateConfig(**CONFIG.model_dump() | options)


def test_lists_reach_json_log_verdict_and_kfp(tmp_path: Path) -> None:
    found = judged(tmp_path, target=Target(published()))
    metrics, written = found.metrics(), json.loads(found.document.read_text())
    assert metrics["ndcg"] == written["ranking"]["model"]["ndcg"] == pytest.approx((1 / BOTH + SECOND) / 4)
    assert metrics["champion_ndcg"] - metrics["ndcg"] == pytest.approx(1 / 4)
    assert metrics["ndcg_above_champion"] == pytest.approx(-1 / 4)
    for name in ("predicted_rating", "popularity", "recent_popularity", "user_movie_bias"):
        assert metrics[f"{name}_hit_rate"] == written["ranking"][name]["hit_rate"]
    assert written["champion"]["lists"]["champion_ndcg"] == metrics["champion_ndcg"]
    assert written["cold_start_curve"] == {"users": 0, "drawn_from": 0, "points": [], "popularity": None}
    for line in found.log_lines()[1:]:
        assert "lists  NDCG@2 0.311, popularity 0.464" in line
    page = found.html.read_text()
    assert page.index("<h2>Recommendation lists") < page.index("<h2>Lists of new users") < page.index("<h2>Predicted")
    assert "by ranking model, this model 0.3110, for the same 4 users" in page


def test_without_a_ranking_model_the_report_has_stars_first_and_no_check_of_lists(tmp_path: Path) -> None:
    found = judged(tmp_path, model=STARS, target=Target(published()))
    assert not {"lists", "champion_lists"} & {check.name for check in found.decision.checks}
    assert not {name for name in found.metrics() if name.startswith(("predicted", "recent"))}
    assert "lists" not in found.decision.summary()
    page = found.html.read_text()
    assert page.index("<h2>Predicted") < page.index("<h2>Recommendation lists")
    assert "Lists of new users" not in page


def test_without_a_target_lists_are_judged_by_popularity_alone(tmp_path: Path) -> None:
    checks = {check.name: check for check in judged(tmp_path).decision.checks}
    assert checks["lists"].figure == pytest.approx((1 / BOTH + SECOND) / 4)
    assert (checks["champion_lists"].figure, checks["champion_lists"].passed) == (None, True)


def test_without_a_relevant_test_rating_the_verdict_says_that_lists_were_not_judged(tmp_path: Path) -> None:
    found = judged(tmp_path, config=replace_config(relevance_threshold=5.5), target=Target(published()))
    checks = {check.name: check for check in found.decision.checks}
    assert [checks[name].figure for name in ("lists", "champion_lists")] == [None, None]
    why = "none of the 5 test users seen in training rated a test movie 5.5 or higher"
    assert found.decision.summary().endswith(f"; lists  no figure: {why}")
    assert f"no figure: {why}" in found.html.read_text()
