"""`import mf`: train, predict, recommend, explain, save and load, from every kind of input."""

import copy
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_array

import mf
from mf.errors import ConfigError, DataError
from mf.ratings import frame as frames
from mf.sample import write_sample

QUICK = {"factors": 4, "epochs": 3, "ranking_options": {"factors": 8}}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    return write_sample(folder / "sample").ratings_csv


@pytest.fixture(scope="module")
def frame(sample: Path) -> pd.DataFrame:
    return pd.read_csv(sample)


@pytest.fixture(scope="module")
def held_out(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    test = frame.sample(frac=0.1, random_state=1)
    return frame.drop(test.index), test


@pytest.fixture(scope="module")
def model(held_out: tuple[pd.DataFrame, pd.DataFrame]) -> mf.Model:
    return mf.fit(held_out[0], factors=8, epochs=20)


@pytest.fixture(scope="module")
def stars(frame: pd.DataFrame) -> mf.Model:
    return mf.fit(frame, ranking="none", factors=4, epochs=3)


def small(users: int = 30, movies: int = 12) -> dict[str, list[Any]]:
    pairs = [(u, m) for u in range(users) for m in range(movies) if (u + m) % 4]
    users_, movies_ = zip(*pairs, strict=True)
    return {"user_id": [*users_], "movie_id": [*movies_], "rating": [(u * m) % 5 + 1 for u, m in pairs]}


class Exported:
    """A data frame that offers nothing but Arrow's PyCapsule interface, with the types that polars has."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        types = [("user_id", pa.string_view()), ("movie_id", pa.uint16()), ("rating", pa.int8())]
        table = pa.table(columns).cast(pa.schema(types))
        users = [chunk.dictionary_encode() for chunk in table["user_id"].chunks]  # a categorical column
        self.table = table.set_column(0, "user_id", pa.chunked_array(users))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


def test_the_defaults_beat_both_baselines_on_ratings_and_lists(
    model: mf.Model, held_out: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    scores = model.evaluate(held_out[1]).scores()
    assert scores["model"]["rmse"] < scores["user_movie_bias"]["rmse"] - 0.1
    assert scores["model"]["ndcg"] > scores["popularity"]["ndcg"] + 0.03
    assert (model.trained.solver, model.trained.rows["validation"]) == ("vb", 0)


FRAMES: dict[str, Callable[[dict[str, list[Any]]], Any]] = {
    "dict": dict,
    "pandas": pd.DataFrame,
    "pandas with an index": lambda columns: pd.DataFrame(columns).set_index(["user_id", "movie_id"]),
    "pandas with gaps": lambda columns: pd.DataFrame(columns).astype({"user_id": float, "rating": "float32"}),
    "pandas with categories": lambda columns: pd.DataFrame(columns).astype({"movie_id": "category"}),
    "pyarrow": pa.table,
    "record batch": lambda columns: pa.RecordBatch.from_pydict(columns),
    "reader": lambda columns: pa.table(columns).to_reader(),
    "pandas with mixed ids": lambda columns: (
        pd.DataFrame(columns)
        .astype({"rating": object})
        .assign(rating=[str(rating) if place % 2 else rating for place, rating in enumerate(columns["rating"])])
    ),
    "pandas with odd columns beside": lambda columns: pd.concat(
        [pd.DataFrame(columns), pd.DataFrame({"z": [{"a": 1}, 2] * 135}), pd.DataFrame({"z": 1j + np.arange(270)})],
        axis=1,
    ),
    "pandas, sparse": lambda columns: pd.DataFrame(columns).assign(rating=pd.arrays.SparseArray(columns["rating"])),
    "sparse": lambda columns: csr_array((columns["rating"], (columns["user_id"], columns["movie_id"]))),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_every_kind_of_frame_gives_the_ratings_of_a_file(kind: str, tmp_path: Path) -> None:
    pd.DataFrame(small()).to_csv(tmp_path / "r.csv", index=False)
    expected = mf.fit(tmp_path / "r.csv", **QUICK)
    found = mf.fit(FRAMES[kind](small()), **QUICK)
    assert found.ratings.equals(expected.ratings)
    assert found.recommend(3) == expected.recommend(3)


def test_text_ids_and_narrow_types_come_in_by_the_arrow_interface() -> None:
    columns = small()
    columns["user_id"] = [f"u{user}" for user in columns["user_id"]]
    model = mf.fit(Exported(columns), **QUICK)
    assert model.ratings.schema.types == [pa.string(), pa.int64(), pa.float32()]
    assert len(model.ratings) == len(columns["rating"])
    assert model.recommend("u3")[0].movie_id in range(12)


def test_uuids_come_in_as_objects_and_are_asked_for_as_objects() -> None:
    columns = small()
    names = [uuid.uuid5(uuid.NAMESPACE_URL, str(user)) for user in range(30)]
    columns["user_id"] = [names[user] for user in columns["user_id"]]
    model = mf.fit(pd.DataFrame(columns), **QUICK)
    assert model.recommend(names[3]) == model.recommend(str(names[3])) != model.recommend(names[4])


def test_ids_of_several_types_in_one_column_are_text() -> None:
    columns = small()
    columns["user_id"] = [[user, str(user), float(user)][place % 3] for place, user in enumerate(columns["user_id"])]
    columns["movie_id"] = [f"m{movie}" if movie % 2 else movie for movie in columns["movie_id"]]
    model = mf.fit(pd.DataFrame(columns).astype(object), **QUICK)
    assert (len(model.users), len(model.movies), len(model.ratings)) == (30, 12, 270)
    assert model.recommend("3") == model.recommend(3)
    assert model.predict([("3", "m1"), (3, 2)]).shape == (2,)
    columns["user_id"][5] = [1]
    with pytest.raises(DataError, match=r"column user_id: found values of several types, one of them list, expected"):
        mf.fit(pd.DataFrame(columns), **QUICK)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_times_of_any_unit_and_zone_are_read(unit: Any, zone: str | None) -> None:
    columns = small()
    moments = pd.to_datetime(np.arange(len(columns["rating"])) + 1_600_000_000, unit="s", utc=True)
    moments = moments.tz_convert(zone) if zone else moments.tz_localize(None)
    model = mf.fit(pd.DataFrame(columns).assign(timestamp=moments.as_unit(unit)), **QUICK)
    assert int(model.ratings["rated_at"].to_pylist()[0].timestamp()) == 1_600_000_000


def test_years_in_place_of_times_are_warned_of() -> None:
    years = [2000 + place % 20 for place in range(len(small()["rating"]))]
    with pytest.warns(UserWarning, match=r"^dict: .* times lie from 1965 to 1975 \(row 0: 2000 is read as epoch time"):
        mf.fit({**small(), "timestamp": years}, **QUICK)


def test_bad_rows_are_warned_of_and_listed_by_number() -> None:
    columns = small(users=100)
    columns["rating"] = [*columns["rating"][:-1], float("nan")]
    with pytest.warns(UserWarning, match=r"1 of 900 rows are bad and left out: row 899: rating \"NaN\" is not finite"):
        model = mf.fit(columns, **QUICK)
    assert [(bad["where"], bad["reason"]) for bad in model.rejects] == [("row 899", 'rating "NaN" is not finite')]
    assert len(model.ratings) == 899
    columns["rating"] = ["?"] * 450 + ["3.5"] * 450
    with pytest.raises(DataError, match=r"dict: 450 of 900 rows are bad .* row 0: rating \"\?\" is not a number"):
        mf.fit(columns, **QUICK)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"factor": 3}, "unknown option factor; did you mean factors?"),
        ({"random_state": 3}, "unknown option random_state; did you mean seed?"),
        ({"sovler": "vb"}, "unknown option sovler; did you mean solver?"),
        ({"colour": 3}, "unknown option colour"),
        ({"solver": "vb", "lr": 0.1}, "lr: not an option of solver vb; its options are factors, "),
        ({"solver": "als"}, "solver: found 'als', expected one of adam, sgd, vb, gibbs"),
        ({"factors": 0}, "factors: Input should be greater than or equal to 1 (given: 0)"),
        ({"ranking": "bm25"}, "ranking: found 'bm25', expected one of ease, none"),
        ({"val_size": 1.0}, "val_size: Input should be less than 1 (given: 1.0)"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        mf.fit(small(), **options)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("ratings", "said"),
    [
        ([1, 2], "ratings: found list, expected a file's name, a data frame"),
        (pd.DataFrame({"a": [1]}), 'pandas DataFrame: no column recognised as user_id, found "a"; name it with'),
        (
            {**small(), "user_id": [1.5] * 270},
            "dict: column user_id of type double cannot be read as user_id: found 1.5",
        ),
        ({"user_id": [1], "movie_id": [1, 2], "rating": [1]}, "ratings: cannot be read as a table ("),
        ({"user_id": [], "movie_id": [], "rating": []}, "dict: no ratings found, expected at least one row"),
        ("nowhere.csv", "nowhere.csv: no such file"),
        (pd.Series([1, 2]), "ratings: found a pandas Series, expected a data frame"),
        (pd.DataFrame(small()).assign(rating=1j), "ratings: column rating of type complex128 cannot be read"),
        (
            pd.DataFrame({"a": [1]}),
            'pandas DataFrame: no column recognised as user_id, found "a"; name it with user_column',
        ),
        (
            pd.concat([pd.DataFrame(small()), pd.DataFrame(small())["rating"]], axis=1),
            'pandas DataFrame: 2 columns fit rating, "rating, rating", expected one',
        ),
    ],
)
def test_what_is_not_ratings_is_refused_in_a_sentence(ratings: Any, said: str) -> None:
    with pytest.raises(DataError) as refused:
        mf.fit(ratings)
    assert str(refused.value).startswith(said)


CALLS: dict[str, Callable[[mf.Model], Any]] = {
    r"fit: found 2 arguments by position, expected at most 1 \(ratings\)": lambda model: mf.fit(small(), [1.0]),
    r"fit: found no ratings, expected a file, a data frame or the option import_table": lambda model: mf.fit(None),
    r"unknown option y; did you mean rating_column\?": lambda model: mf.fit(small(), y=[1.0]),
    r"ranking_options: found list, expected a dict": lambda model: mf.fit(small(), ranking_options=[1]),
    r"init_from: found int, expected a path": lambda model: mf.fit(small(), init_from=5, solver="adam"),
    r"predict: found 2 arguments by position": lambda model: model.predict([1], [2]),
    r"pairs: found \(1, 2, 3\), expected pairs": lambda model: model.predict(np.array([[1, 2, 3]])),
    r"recommend: unknown argument N; did you mean k\?.*filter_already_liked_items; did you mean exclude_seen\?": (
        lambda model: model.recommend(1, N=5, filter_already_liked_items=True)
    ),
    r"recommend: expected the argument user": lambda model: model.recommend(),
    r"k: found csr_array, expected an integer": lambda model: model.recommend(1, csr_array((2, 2))),
    r"user: found list, expected one id": lambda model: model.recommend([1, 2]),
    r"user: found numpy ndarray, expected one id": lambda model: model.recommend(np.array([1, 2])),
    r"user: .*too large": lambda model: mf.fit(small(), **QUICK).recommend(10**30),
    r"without_ids: found \"5\", expected a list of ids": lambda model: model.recommend("1", without_ids="5"),
    r"only_ids: found \"5\", expected a list of ids": lambda model: model.recommend("1", only_ids=5),
    r"similar: unknown argument N; did you mean k\?": lambda model: model.similar(5, N=3),
    r"movie: found list, expected one id": lambda model: model.similar([5]),
    r"fold_in: found Series without ratings": lambda model: model.fold_in(pd.Series({1: 5.0})),
    r"fold_in: found the rating 500 of movie 1, expected a rating from 0.5 to 5": lambda model: model.fold_in({1: 500}),
    r"directory: found NoneType, expected a path": lambda model: mf.load(None),
    r"no Supabase project: give target or set SUPABASE_URL": lambda model: model.publish(),
}


@pytest.mark.parametrize("said", CALLS)
def test_a_call_as_in_another_library_is_refused_in_a_sentence(
    said: str, model: mf.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SUPABASE_URL", "SUPABASE_DB_URL", "SUPABASE_DB_URL_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(mf.MfError, match=said):
        CALLS[said](model)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("similar_items", r"did you mean \.similar\?"),
        ("item_factors", r"did you mean \.movie_factors\?"),
        ("recomend", r"did you mean \.recommend\?"),
        ("fit", r"mf\.fit\(ratings\) trains a model"),
        ("get_params", r"mf\.fit\(ratings, trials=20\)"),
    ],
)
def test_what_a_model_of_another_library_has_is_named_as_it_is_here(name: str, hint: str, model: mf.Model) -> None:
    with pytest.raises(AttributeError, match=f"mf.Model has no {name}.*{hint}"):
        getattr(model, name)
    assert not hasattr(model, name)


def test_a_model_can_be_copied_and_pickled(model: mf.Model) -> None:
    user = model.users[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.recommend(user) == model.recommend(user)


def test_a_directory_or_a_file_that_is_in_the_way_is_kept(model: mf.Model, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine").write_text("mine")
    with pytest.raises(ConfigError, match=r"path: found the directory .*results, expected the name of a file"):
        model.recommend_all(tmp_path / "results")
    with pytest.raises(ConfigError, match="mine is a file, expected a directory"):
        model.save(tmp_path / "results" / "mine")
    assert (tmp_path / "results" / "mine").read_text() == "mine"
    for place, said in (
        ("results", "no model.json in it"),
        ("results/mine", "it is a file"),
        ("no", "it is not there"),
    ):
        with pytest.raises(DataError, match=f"is not a model directory: {said}"):
            mf.load(tmp_path / place)


def test_lr_without_a_solver_means_adam() -> None:
    model = mf.fit(small(), lr=0.01, epochs=1, ranking="none")
    assert (model.trained.solver, model.trained.rows["validation"]) == ("adam", 27)
    again = mf.fit(small(), init_from=model, epochs=1, ranking="none")
    assert again.trained.metrics["init_from"] == model.trained.run_id


def test_predictions_take_frames_and_pairs_and_know_unknown_ids(model: mf.Model, frame: pd.DataFrame) -> None:
    some = frame.head(5)
    expected = model.predict(some)
    pairs = list(zip(some["userId"], some["movieId"], strict=True))
    np.testing.assert_array_equal(model.predict(pairs), expected)
    np.testing.assert_array_equal(model.predict(some[["movieId", "userId"]]), expected)
    user, movie = some["userId"][0], some["movieId"][0]
    low, high = model.trained.module.rating_min.item(), model.trained.module.rating_max.item()
    row = model.trained.movies.ids.to_pylist().index(movie)
    unknown = model.predict([("nobody", movie), (user, 10**9)])
    assert unknown[0] == pytest.approx(np.clip(model.mu + model.movie_bias[row], low, high), abs=1e-5)
    assert model.predict([]).shape == (0,)
    with pytest.raises(DataError, match=r"pairs: found \(1,\), expected pairs \(user, movie\)"):
        model.predict([1, 2])
    with pytest.raises(DataError, match="movies: found the text"):
        model.predict([(user, "x")])
    with pytest.raises(DataError, match="users: found no id at position 1, expected an integer or a text"):
        model.predict([(user, movie), (None, movie)])


def test_a_list_is_the_best_of_what_was_not_rated(model: mf.Model, held_out: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    user = held_out[0]["userId"].iloc[0]
    rated = set(held_out[0].loc[held_out[0]["userId"] == user, "movieId"])
    best, everything = model.recommend(user, k=5), model.recommend(user, k=1000, exclude_seen=False)
    ranking = model.trained.ranking
    assert ranking
    p = ranking.vectors[ranking.users.ids.to_pylist().index(user)].astype(np.float64)
    scores = dict(zip(model.movies.to_pylist(), ranking.model.embedding @ p + ranking.model.bias, strict=True))
    expected = sorted(scores, key=lambda movie: -scores[movie])
    assert [one.movie_id for one in everything] == expected
    assert [one.movie_id for one in best] == [movie for movie in expected if movie not in rated][:5]
    for one in best:
        assert one.score == pytest.approx(scores[one.movie_id], abs=1e-4)
        assert one.predicted_rating == pytest.approx(model.predict([(user, one.movie_id)])[0], abs=1e-5)
        assert one.because in rated
    ids = [one.movie_id for one in best]
    assert [one.movie_id for one in model.recommend(user, k=2, skip=2)] == ids[2:4]
    assert [one.movie_id for one in model.recommend(user, k=5, without_ids=ids[:2])][:3] == ids[2:]
    assert [one.movie_id for one in model.recommend(user, only_ids=[ids[3], ids[1], 10**9])] == [ids[1], ids[3]]
    with pytest.raises(ConfigError, match="k: found 0, expected an integer of 1 or more"):
        model.recommend(user, k=0)


@pytest.mark.parametrize("name", ["model", "stars"])
def test_the_lists_of_all_users_are_those_of_each(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: mf.Model = request.getfixturevalue(name)
    monkeypatch.setattr("mf.recommender.BLOCK", 300)  # several blocks
    assert model.recommend_all(tmp_path / "lists.parquet", k=3) == len(model.users) == 320
    lists = pq.read_table(tmp_path / "lists.parquet").to_pandas()
    assert list(lists.columns) == ["user_id", "place", "movie_id", "score", "predicted_rating"]
    for user, rows in list(lists.groupby("user_id"))[::40]:
        expected = model.recommend(user, k=3)
        assert rows["movie_id"].tolist() == [one.movie_id for one in expected]
        assert rows["place"].tolist() == [1, 2, 3]
        np.testing.assert_allclose(rows["score"], [one.score for one in expected], atol=1e-4)
        np.testing.assert_allclose(rows["predicted_rating"], [one.predicted_rating for one in expected], atol=1e-4)


def test_without_a_ranking_model_lists_are_in_the_order_of_predicted_ratings(stars: mf.Model) -> None:
    user = stars.users[0].as_py()
    everything = stars.recommend(user, k=1000, exclude_seen=False)
    predicted = dict(
        zip(stars.movies.to_pylist(), stars.predict([(user, m) for m in stars.movies.to_pylist()]), strict=True)
    )
    values = [predicted[one.movie_id] for one in everything]
    assert values == sorted(values, reverse=True)
    explained = stars.explain(user, everything[0].movie_id)
    assert (explained.terms, explained.because) == ((), None)
    assert sum(explained.stars.values()) == pytest.approx(everything[0].score, abs=1e-5)
    assert stars.similar(everything[0].movie_id)[0].similarity <= 1


def test_the_terms_of_an_explanation_add_up_to_the_score(model: mf.Model) -> None:
    user = model.users[7].as_py()
    best = model.recommend(user, k=1)[0]
    explained = model.explain(user, best.movie_id)
    assert explained.popularity + sum(term.term for term in explained.terms) == pytest.approx(best.score, abs=1e-4)
    assert (explained.because, explained.predicted_rating) == (best.because, pytest.approx(best.predicted_rating))
    liked = [term for term in explained.terms if term.rating >= model.trained.ranking.model.mu]  # type: ignore
    assert explained.because == liked[0].movie_id
    with pytest.raises(DataError, match="explain: found movie 1000000, expected one that the model knows"):
        model.explain(user, 10**6)


def test_a_folded_in_user_gets_the_list_of_the_trained_user_with_the_same_ratings(model: mf.Model) -> None:
    user = model.users[3].as_py()
    own = model.ratings.filter(pa.compute.equal(model.ratings["user_id"], user))
    ratings = dict(zip(own["movie_id"].to_pylist(), own["rating"].to_pylist(), strict=True))
    guest = model.fold_in({**ratings, 10**9: 5.0})
    expected = model.recommend(user)
    assert [one.movie_id for one in model.recommend(guest)] == [one.movie_id for one in expected]
    assert model.recommend(guest) == model.recommend(ratings)
    assert model.recommend(guest)[0].because == expected[0].because
    assert model.recommend({}, exclude_seen=False) == model.recommend("nobody", exclude_seen=False)
    with pytest.raises(DataError, match="fold_in: found the rating 'x' of movie 1, expected a finite number"):
        model.fold_in({1: "x"})  # type: ignore[dict-item]


def test_ratings_that_mean_not_rated_count_nothing_for_a_new_user_either() -> None:
    columns = small()
    columns["rating"] = [-1 if place % 9 == 0 else rating for place, rating in enumerate(columns["rating"])]
    model = mf.fit(columns, ignore_ratings="-1", **QUICK)
    assert model.recommend({1: 5.0, 2: -1}) == model.recommend({1: 5.0})


def test_similar_movies_are_those_of_the_smallest_angle(model: mf.Model) -> None:
    ranking = model.trained.ranking
    assert ranking
    history = ranking.model.history.astype(np.float64)
    history /= np.linalg.norm(history, axis=1, keepdims=True)
    cosines = history @ history[10]
    order = [row for row in np.argsort(-cosines, kind="stable") if row != 10][:4]
    found = model.similar(model.movies[10].as_py(), k=4)
    assert [one.movie_id for one in found] == [model.movies[int(row)].as_py() for row in order]
    np.testing.assert_allclose([one.similarity for one in found], cosines[order])
    assert model.similar(10**9) == []


def test_a_saved_model_is_the_same_model(model: mf.Model, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    again = mf.load(tmp_path / "m")
    user, movie = model.users[5].as_py(), model.movies[5].as_py()
    assert again.recommend(user) == model.recommend(user)
    assert again.explain(user, movie) == model.explain(user, movie)
    assert repr(again) == repr(model)
    model.save(tmp_path / "m", with_ratings=False)
    bare = mf.load(tmp_path / "m")
    assert bare.recommend(user, exclude_seen=False)[0][:3] == model.recommend(user, exclude_seen=False)[0][:3]
    with pytest.raises(DataError, match=r"the users' ratings are not known.*mf.load\(directory, ratings=…\)"):
        bare.recommend(user)
    given = mf.load(tmp_path / "m", ratings=model.ratings)
    assert given.recommend(user) == model.recommend(user)


def test_a_user_who_came_after_the_training_is_folded_in(model: mf.Model, tmp_path: Path) -> None:
    model.save(tmp_path / "m", with_ratings=False)
    given = mf.load(tmp_path / "m", ratings={"user_id": ["new"] * 2, "movie_id": [1, 2], "rating": [5, 1]})
    assert given.recommend("new") == model.recommend({1: 5.0, 2: 1.0})


@pytest.mark.parametrize("kind", ["dict", "pandas"])
def test_clicks_give_lists_alone(kind: str, tmp_path: Path) -> None:
    clicks = {name: column for name, column in small().items() if name != "rating"}
    model = mf.fit(FRAMES[kind](clicks), ranking_options={"factors": 8})
    best = model.recommend(3, k=3)
    assert [one.predicted_rating for one in best] == [None] * 3
    mine = {movie for user, movie in zip(clicks["user_id"], clicks["movie_id"], strict=True) if user == 3}
    assert all(one.because in mine and one.movie_id not in mine for one in best)
    assert [one.movie_id for one in model.recommend(model.fold_in(mine), k=3)] == [one.movie_id for one in best]
    explained = model.explain(3, best[0].movie_id)
    assert explained.popularity + sum(term.term for term in explained.terms) == pytest.approx(best[0].score, abs=1e-4)
    assert (explained.predicted_rating, dict(explained.stars)) == (None, {})
    model.recommend_all(tmp_path / "lists.parquet", k=2)
    lists = pq.read_table(tmp_path / "lists.parquet")
    assert lists["predicted_rating"].null_count == len(lists) == 60
    with pytest.raises(DataError):
        model.predict([(3, 1)])
    model.save(tmp_path / "m")
    assert mf.load(tmp_path / "m").recommend(3, k=3) == best
    assert "lists only" in repr(model)


def test_ratings_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(DataError, match=r"^dict: found no other rating than 1, in 270 rows"):
        mf.fit({**small(), "rating": [1.0] * len(small()["rating"])})


def test_text_whose_offsets_need_64_bits_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """polars and pandas have text of more than 2 GiB in one chunk; Arrow's string does not."""
    far = 1 << 31
    data = np.zeros(far + 8, np.uint8)  # of which the system gives only the pages that are written
    data[far:] = np.frombuffer(b"ann.bob!", np.uint8)
    offsets = np.array([0, far, far + 3, far + 4, far + 7], np.int64)
    text = pa.LargeStringArray.from_buffers(4, pa.py_buffer(offsets), pa.py_buffer(data))
    last = frames.cells(pa.chunked_array([text.slice(1)]), "user_id", "here")
    assert (last.type, last.to_pylist()) == (pa.string(), ["ann", ".", "bob"])
    monkeypatch.setattr(frames, "MOST_TEXT", 7)
    coded = pa.array(["ann", "bo", "ann", None, "bo"]).dictionary_encode()
    parts = frames.cells(pa.chunked_array([coded]), "user_id", "here")
    assert [chunk.to_pylist() for chunk in parts.chunks] == [["ann", "bo"], ["ann", None], ["bo"]]
