import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mf.errors import DataError
from mf.model_directory import read_model

HEADER = {"run_id": "r1", "factors": 2, "mu": 3.5, "rating_min": 0.5, "rating_max": 5, "solver": "adam"}
VECTORS = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]


def write(directory, header=None, *, kind="movie", **columns):
    """A model of three users and three movies, some columns of one side replaced."""
    (directory / "model.json").write_text(json.dumps(HEADER | (header or {})))
    for side in ("user", "movie"):
        table = {
            f"{side}_id": pa.array([7, 5, 6]),
            "bias": pa.array([0.1, 0.2, 0.3], pa.float32()),
            "embedding": pa.array(VECTORS, pa.list_(pa.float32())),
        }
        if side == kind:
            table = {name: column for name, column in (table | columns).items() if column is not None}
        pq.write_table(pa.table(table), directory / f"{side}_embeddings.parquet")
    return directory


def test_a_model_directory_is_read_whole(tmp_path):
    model = read_model(write(tmp_path))
    assert (model.header.run_id, model.header.factors, model.header.rating_max) == ("r1", 2, 5.0)
    assert model.users.ids.to_pylist() == [7, 5, 6]
    assert model.movies.id_type == "bigint"
    assert model.movies.vectors.dtype == np.float32
    np.testing.assert_array_equal(model.movies.vectors, np.array(VECTORS, np.float32))


def test_the_content_hash_follows_the_published_content_and_nothing_else(tmp_path):
    first = read_model(write(tmp_path)).content_hash
    assert read_model(write(tmp_path, {"metrics": {"rmse": 0.8}})).content_hash == first
    assert read_model(write(tmp_path, {"mu": 3.6})).content_hash != first
    assert read_model(write(tmp_path, bias=pa.array([0.1, 0.2, 0.4], pa.float32()))).content_hash != first


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"run_id": 5}, "model.json: run_id is 5, expected a non-empty text"),
        ({"run_id": " "}, "model.json: run_id is ' ', expected a non-empty text"),
        ({"factors": 2.0}, "model.json: factors is 2.0, expected an integer of 1 or more"),
        ({"factors": True}, "model.json: factors is True, expected an integer of 1 or more"),
        ({"mu": float("nan")}, "model.json: mu is nan, expected a finite number"),
        ({"mu": 10**400}, "model.json: mu is 1000000000000000000000000000000000000000, expected a finite number"),
        ({"mu": "3"}, "model.json: mu is '3', expected a finite number"),
        ({"mu": -4.8}, "model.json: mu is -4.8, expected a mean rating within the rating range 0.5 to 5: train the"),
        ({"mu": 5.01}, "model.json: mu is 5.01, expected a mean rating within the rating range 0.5 to 5: train the"),
        ({"rating_max": None}, "model.json: rating_max is None, expected a finite number"),
        ({"factors": 3}, "embedding has 2 values, model.json says factors 3"),
    ],
)
def test_an_invalid_header_is_refused(tmp_path, header, said):
    with pytest.raises(DataError) as error:
        read_model(write(tmp_path, header))
    assert said in str(error.value)


def float_lists(rows):
    return pa.array(rows, pa.list_(pa.float32()))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"embedding": float_lists([[1, 2], [1, float("nan")], [1, 2]])}, "row 1: embedding holds a value that is not"),
        ({"embedding": float_lists([[1, 2], [1, 2], [1, float("inf")]])}, "row 2: embedding holds a value that is not"),
        ({"embedding": float_lists([[1, 2], [1, None], [1, 2]])}, "row 1: embedding holds a null"),
        ({"embedding": float_lists([[1, 2], [1], [1, 2, 3]])}, "row 1: embedding has 1 values, model.json says"),
        ({"embedding": float_lists([[1, 2], [1, 2], None])}, "row 2: embedding has 0 values, model.json says"),
        ({"embedding": pa.array(VECTORS)}, "embedding is of type list<"),
        ({"bias": pa.array([0, float("nan"), 0], pa.float32())}, "row 1: bias is not finite"),
        ({"bias": pa.array([0, None, 0], pa.float32())}, "bias is float with 1 nulls"),
        ({"bias": None}, "no column bias: expected movie_id, bias and embedding"),
        ({"movie_id": pa.array([1, 2, 1])}, "movie_id 1 occurs in more than one row"),
        ({"movie_id": pa.array(["a", "b", "b"])}, "movie_id 'b' occurs in more than one row"),
        ({"movie_id": pa.array(["a", "", "b"])}, "row 1: movie_id is empty"),
        ({"movie_id": pa.array([1, None, 2])}, "row 1: movie_id is null"),
        ({"movie_id": pa.array([1.0, 2.0, 3.0])}, "movie_id is of type double, expected int64 or string"),
        ({"movie_id": pa.array([1, 2, 2**63], pa.uint64())}, "movie_id does not fit bigint"),
    ],
)
@pytest.mark.parametrize("layout", ["one row group", "many"])
def test_invalid_embeddings_are_refused_with_file_row_and_column(tmp_path, columns, said, layout):
    path = write(tmp_path, **columns) / "movie_embeddings.parquet"
    if layout == "many":
        pq.write_table(pq.read_table(path), path, row_group_size=1)
    with pytest.raises(DataError) as error:
        read_model(tmp_path)
    assert "movie_embeddings.parquet" in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_a_missing_and_a_malformed_file_are_refused(tmp_path):
    path = write(tmp_path) / "user_embeddings.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(DataError, match=r"user_embeddings\.parquet: no rows"):
        read_model(tmp_path)
    path.write_text("user_id,bias")
    with pytest.raises(DataError, match=r"user_embeddings\.parquet: cannot be read as Parquet"):
        read_model(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"user_embeddings\.parquet: cannot be read as Parquet"):
        read_model(tmp_path)
    with pytest.raises(DataError, match=r"model\.json: cannot be read as JSON"):
        read_model(tmp_path / "nowhere")
    (tmp_path / "model.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"model\.json: cannot be read as JSON \(maximum recursion depth"):
        read_model(tmp_path)


NUMBERS = {
    "factors": 2, "mu": 3.5, "sd": 1.0, "rho": 0.5, "regularization": 9.0, "teacher_rank": 3, "energy_beyond": 0.0,
    "relevance_threshold": 4.0, "recency": False,
}  # fmt: skip


def write_ranking(directory, numbers=None, *, kind="movie", **columns):
    """A model with a ranking model of four users and four movies, some columns of one side replaced."""
    tables = {
        "user": {"user_id": pa.array([4, 5, 6, 7]), "embedding": float_lists([[7, 8]] * 4)},
        "movie": {
            "movie_id": pa.array([4, 5, 6, 7]),
            "bias": pa.array([0.1, 0.2, 0.3, 0.4], pa.float32()),
            **{name: float_lists([[i, i]] * 4) for i, name in enumerate(("embedding", "history", "liking"))},
        },
    }
    tables[kind] |= columns
    for side, table in tables.items():
        present = {name: column for name, column in table.items() if column is not None}
        pq.write_table(pa.table(present), directory / f"{side}_ranking.parquet")
    return write(directory, {"ranking": NUMBERS | (numbers or {})})


def test_the_ranking_model_is_read_with_its_own_users_and_movies(tmp_path):
    ranking = read_model(write_ranking(tmp_path)).ranking
    assert ranking.numbers == NUMBERS
    assert ranking.movie_ids.to_pylist() == ranking.user_ids.to_pylist() == [4, 5, 6, 7]
    np.testing.assert_array_equal(ranking.bias, np.float32([0.1, 0.2, 0.3, 0.4]))
    for i, name in enumerate(("embedding", "history", "liking")):
        np.testing.assert_array_equal(getattr(ranking, name), np.full((4, 2), i, np.float32))
    np.testing.assert_array_equal(ranking.vectors, np.float32([[7, 8]] * 4))


def test_a_directory_without_a_ranking_model_is_valid_whatever_lies_beside_it(tmp_path):
    plain = read_model(write(tmp_path))
    assert plain.ranking is None
    write_ranking(tmp_path)
    write(tmp_path, {"ranking": None})
    assert read_model(tmp_path).ranking is None
    assert read_model(tmp_path).content_hash == plain.content_hash


def test_the_content_hash_covers_the_ranking_model(tmp_path):
    first = read_model(write_ranking(tmp_path)).content_hash
    assert first != read_model(write(tmp_path)).content_hash
    assert read_model(write_ranking(tmp_path, {"metrics": {"seconds": 3.1}})).content_hash == first
    assert read_model(write_ranking(tmp_path, {"rho": 0.4})).content_hash != first
    assert read_model(write_ranking(tmp_path, liking=float_lists([[2, 3]] * 4))).content_hash != first
    assert read_model(write_ranking(tmp_path, kind="user", embedding=float_lists([[7, 9]] * 4))).content_hash != first


def test_a_model_of_implicit_feedback_has_no_scale_of_ratings(tmp_path):
    without = {"mu": None, "sd": None, "relevance_threshold": None, "rho": 0.0}
    assert read_model(write_ranking(tmp_path, without)).ranking.numbers["mu"] is None


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"factors": 2.0}, "ranking.factors is 2.0, expected an integer of 1 or more"),
        ({"factors": 3}, "embedding has 2 values, model.json says ranking.factors 3"),
        ({"rho": None}, "model.json: ranking.rho is None, expected a finite number"),
        ({"sd": 0}, "model.json: ranking.sd is 0, expected a number above 0"),
        ({"sd": float("inf")}, "model.json: ranking.sd is inf, expected a finite number"),
        ({"recency": None}, "model.json: ranking.recency is None, expected true or false"),
    ],
)
def test_invalid_numbers_of_the_ranking_model_are_refused(tmp_path, numbers, said):
    with pytest.raises(DataError) as error:
        read_model(write_ranking(tmp_path, numbers))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("kind", "columns", "said"),
    [
        (
            "movie",
            {"history": float_lists([[1, 2], [1, float("nan")], [1, 2], [3, 4]])},
            "row 1: history holds a value",
        ),
        ("movie", {"liking": float_lists([[1, 2], [1, None], [1, 2], [3, 4]])}, "row 1: liking holds a null"),
        ("movie", {"liking": float_lists([[1, 2]] * 3 + [[1]])}, "row 3: liking has 1 values, model.json says"),
        ("movie", {"bias": pa.array([0, 1, np.inf, 0], pa.float32())}, "row 2: bias is not finite"),
        ("movie", {"movie_id": pa.array([4, 5, 5, 7])}, "movie_id 5 occurs in more than one row"),
        ("movie", {"history": None}, "no column history: expected movie_id, bias, embedding, history and liking"),
        ("user", {"user_id": pa.array(["a", "b", "b", "c"])}, "user_id 'b' occurs in more than one row"),
        (
            "user",
            {"embedding": float_lists([[np.nan, 1]] + [[1, 2]] * 3)},
            "row 0: embedding holds a value that is not",
        ),
        ("user", {"embedding": None}, "no column embedding: expected user_id and embedding"),
    ],
)
def test_invalid_ranking_vectors_are_refused_with_file_row_and_column(tmp_path, kind, columns, said):
    with pytest.raises(DataError) as error:
        read_model(write_ranking(tmp_path, kind=kind, **columns))
    assert f"{kind}_ranking.parquet" in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["user", "movie"])
def test_a_missing_ranking_file_is_refused(tmp_path, kind):
    (write_ranking(tmp_path) / f"{kind}_ranking.parquet").unlink()
    with pytest.raises(DataError, match=rf"{kind}_ranking\.parquet: cannot be read as Parquet"):
        read_model(tmp_path)
