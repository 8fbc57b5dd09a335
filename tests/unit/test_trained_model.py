"""Model directories, read back by other means than the code that wrote them."""

import json
import os
import uuid
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mf import model_directory
from mf.errors import DataError, TrainingError
from mf.model import MatrixFactorization
from mf.model_directory import TrainedModel, TrainedRanking
from mf.ranking import RankingModel
from mf.ratings.schema import TrainedOn
from mf.ratings.vocabulary import Vocabulary

TRAINED_ON = TrainedOn("r.csv", {"rating": "stars"}, "0a", None)
FILES = {"model.pt", "model.json", "user_embeddings.parquet", "movie_embeddings.parquet"}
RANKING_FILES = {"user_ranking.parquet", "movie_ranking.parquet"}
IDS: dict[str, tuple[list[Any], list[Any]]] = {
    "integers": ([-7, 3, 2**53 + 1], [10, 20, 2**62]),
    "text": (["Zoë", "a,b", "o'x"], ['"q"', "007", "x y"]),
    "uuids": tuple(sorted(str(uuid.uuid5(uuid.NAMESPACE_URL, f"{kind}{i}")) for i in range(3)) for kind in "um"),
}


def random_model(users: int, movies: int, factors: int = 4) -> MatrixFactorization:
    generator = torch.Generator().manual_seed(0)
    model = MatrixFactorization(users, movies, factors, rating_min=0.5, rating_max=5.0, mu=3.25)
    with torch.no_grad():
        for table in (model.user_factors, model.movie_factors, model.user_bias, model.movie_bias):
            table.weight.copy_(torch.randn(table.weight.shape, generator=generator) + 0.3)
    return model.eval()


def ranking(ids: str = "integers") -> TrainedRanking:
    """A ranking model of the same users and movies, with other vectors and of another length."""
    users, movies = (Vocabulary.of(pa.array(values)) for values in IDS[ids])
    bias, q, history, liking, p = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)
    model = RankingModel(bias[:, 0].copy(), q, history, liking, 3.5, 1.1, 0.5, 9.0, 3, 0.01, 4.0)
    return TrainedRanking(model, users, movies, p, {"factors": 2}, {"seconds": 0.1})


def trained(ids: str = "integers", ranked: TrainedRanking | None = None) -> TrainedModel:
    users, movies = (Vocabulary.of(pa.array(values)) for values in IDS[ids])
    return TrainedModel(
        random_model(3, 3), users, movies, "run-1", "adam", {"factors": 4}, {"train": 9}, {"test_rmse": 0.9}, "abc",
        TRAINED_ON, ranked,
    )  # fmt: skip


@pytest.mark.parametrize("ids", IDS)
def test_a_model_directory_round_trips(tmp_path: Path, ids: str) -> None:
    model = trained(ids)
    model.save(tmp_path / "deep" / "model")
    assert {path.name for path in (tmp_path / "deep" / "model").iterdir()} == FILES
    loaded = TrainedModel.load(tmp_path / "deep" / "model")
    assert loaded.users.ids.equals(model.users.ids)
    assert loaded.movies.ids.equals(model.movies.ids)
    assert loaded.card() == model.card()
    for name, value in model.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], value), name


def test_vectors_beyond_offsets_of_32_bits_are_lists_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.arange(15, dtype=np.float32).reshape(5, 3)
    monkeypatch.setattr(model_directory, "MOST_VALUES", 7)
    column = model_directory._lists(vectors)
    assert column.type == pa.list_(pa.float32())
    assert [len(chunk) for chunk in column.chunks] == [2, 2, 1]
    whole = model_directory._whole(column)
    assert pa.types.is_large_list(whole.type)
    assert np.array_equal(model_directory._checked_vectors(whole, Path("here"), 3), vectors)


@pytest.mark.parametrize("ids", IDS)
def test_a_ranking_model_round_trips_beside_the_star_model(tmp_path: Path, ids: str) -> None:
    model = trained(ids, ranking(ids))
    model.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES | RANKING_FILES
    loaded = TrainedModel.load(tmp_path)
    assert loaded.card() == model.card()
    assert loaded.ranking
    assert loaded.ranking.users.ids.to_pylist() == IDS[ids][0]
    assert loaded.ranking.movies.ids.to_pylist() == IDS[ids][1]
    np.testing.assert_array_equal(loaded.ranking.vectors, ranking(ids).vectors)
    for name in ("bias", "embedding", "history", "liking"):
        np.testing.assert_array_equal(getattr(loaded.ranking.model, name), getattr(ranking(ids).model, name))


def test_a_model_without_a_ranking_model_leaves_no_ranking_files_of_an_earlier_one(tmp_path: Path) -> None:
    trained(ranked=ranking()).save(tmp_path)
    trained().save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert TrainedModel.load(tmp_path).ranking is None


def test_a_damaged_ranking_file_is_named_with_its_row(tmp_path: Path) -> None:
    trained(ranked=ranking()).save(tmp_path)
    table = pq.read_table(tmp_path / "movie_ranking.parquet")
    bad = pa.array([0.0, float("nan"), 0.0], pa.float32())
    pq.write_table(table.set_column(1, "bias", bad), tmp_path / "movie_ranking.parquet")
    with pytest.raises(DataError, match=r"movie_ranking\.parquet row 1: bias is not finite$"):
        TrainedModel.load(tmp_path)


@pytest.mark.parametrize("ids", IDS)
def test_predictions_can_be_recomputed_from_the_parquet_files_and_the_card_alone(tmp_path: Path, ids: str) -> None:
    model = trained(ids)
    model.save(tmp_path)
    card = json.loads((tmp_path / "model.json").read_text())
    sides = []
    for kind in ("user", "movie"):
        table = pq.read_table(tmp_path / f"{kind}_embeddings.parquet")
        text = pa.int64() if ids == "integers" else pa.string()
        assert [(f.name, f.type) for f in table.schema] == [
            (f"{kind}_id", text), ("bias", pa.float32()), ("embedding", pa.list_(pa.float32()))
        ]  # fmt: skip
        sides.append({row[f"{kind}_id"]: (row["bias"], np.array(row["embedding"])) for row in table.to_pylist()})
    nobody: Any = -1 if ids == "integers" else "nobody"
    pairs = [(u, m) for u in [*IDS[ids][0], nobody] for m in [*IDS[ids][1], nobody]]
    unseen = (0.0, np.zeros(card["factors"]))
    expected = []
    for user, movie in pairs:
        (b_u, p), (b_m, q) = sides[0].get(user, unseen), sides[1].get(movie, unseen)
        expected.append(np.clip(card["mu"] + b_u + b_m + p @ q, card["rating_min"], card["rating_max"]))
    predicted = model.predict(pa.array([u for u, _ in pairs]), pa.array([m for _, m in pairs]))
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, expected, rtol=0, atol=2e-6)
    assert len(set(expected)) > 8


def test_the_state_dict_loads_without_pickle_and_the_card_is_complete(tmp_path: Path) -> None:
    trained().save(tmp_path)
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes == {
        "mu": (), "rating_min": (), "rating_max": (), "user_factors.weight": (3, 4), "movie_factors.weight": (3, 4),
        "user_bias.weight": (3, 1), "movie_bias.weight": (3, 1),
    }  # fmt: skip
    assert json.loads((tmp_path / "model.json").read_text()) == {
        "format": 1, "run_id": "run-1", "solver": "adam", "config": {"factors": 4}, "mu": 3.25, "factors": 4,
        "rating_min": 0.5, "rating_max": 5.0, "rows": {"train": 9}, "users": 3, "movies": 3, "git_sha": "abc",
        "trained_on": asdict(TRAINED_ON), "ignore_ratings": [],
        "metrics": {"test_rmse": 0.9}, "ranking": None,
    }  # fmt: skip


def test_trained_on_is_read_back_and_none_if_not_recorded(tmp_path: Path) -> None:
    trained().save(tmp_path)
    assert TrainedModel.load(tmp_path).trained_on == TRAINED_ON
    card = json.loads((tmp_path / "model.json").read_text())
    del card["trained_on"]
    (tmp_path / "model.json").write_text(json.dumps(card))
    assert TrainedModel.load(tmp_path).trained_on is None


def test_other_files_of_the_directory_are_kept_and_an_older_model_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    trained("text").save(tmp_path)
    (tmp_path / "rejects.csv").write_text("of the reading")
    trained("uuids").save(tmp_path / "copy", also=[tmp_path / "rejects.csv"])
    trained("integers").save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "copy" / "rejects.csv").read_text() == "of the reading"
    assert TrainedModel.load(tmp_path).users.ids.to_pylist() == IDS["integers"][0]


@pytest.mark.parametrize("mu", [-4.8, 5.1, float("nan")])
def test_a_model_whose_mu_lies_outside_the_rating_range_is_not_saved(tmp_path: Path, mu: float) -> None:
    trained("text").save(tmp_path)
    model = trained("integers")
    model.module.mu.fill_(mu)
    with pytest.raises(TrainingError, match=f"mu is {mu:g}, expected a mean rating within the rating range 0.5 to 5: "):
        model.save(tmp_path)
    assert TrainedModel.load(tmp_path).users.ids.to_pylist() == IDS["text"][0]


def test_a_save_that_fails_while_writing_keeps_the_older_model(tmp_path: Path) -> None:
    trained("text").save(tmp_path)
    with pytest.raises(FileNotFoundError):
        trained("integers").save(tmp_path, also=[tmp_path / "is not there"])
    assert TrainedModel.load(tmp_path).users.ids.to_pylist() == IDS["text"][0]
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_a_save_that_fails_halfway_leaves_no_model_that_loads(tmp_path: Path) -> None:
    trained("text").save(tmp_path)
    (tmp_path / "model.pt").unlink()
    (tmp_path / "model.pt").mkdir()  # no file can take its place
    with pytest.raises(OSError, match=r"model\.pt"):
        trained("integers").save(tmp_path)
    with pytest.raises(DataError, match="is not a model directory"):
        TrainedModel.load(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"model.json"}


def spoilt(directory: Path, how: str) -> None:
    card = directory / "model.json"
    if how.endswith("is gone"):
        (directory / how.split()[0]).unlink()
    elif how.endswith("is garbage"):
        (directory / how.split()[0]).write_bytes(b"\xffgarbage")
    elif how == "model.pt is empty":
        (directory / "model.pt").write_bytes(b"")
    elif how == "model.json is a list":
        card.write_text("[]")
    elif how == "a user is missing":
        table = pq.read_table(directory / "user_embeddings.parquet")
        pq.write_table(table.slice(1), directory / "user_embeddings.parquet")
    else:
        values = json.loads(card.read_text())
        values |= {"format of tomorrow": {"format": 2}, "factors are text": {"factors": "4"}}.get(how, {})
        values.pop(how.removeprefix("no "), None)
        card.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("model.json is gone", "no model.json in it"),
        ("model.pt is gone", "No such file or directory"),
        ("user_embeddings.parquet is gone", "user_embeddings.parquet"),
        ("model.json is garbage", "decode byte"),
        ("model.pt is garbage", "is not a model directory: "),
        ("model.pt is empty", "is not a model directory: "),
        ("movie_embeddings.parquet is garbage", "[Pp]arquet"),
        ("model.json is a list", "list"),
        ("a user is missing", r"user_factors.weight: copying a param with shape torch.Size\(\[3, 4\]\)"),
        ("format of tomorrow", "model.json has format 2, expected 1"),
        ("factors are text", "factors is '4', expected an integer of 1 or more"),
        ("no run_id", "'run_id' is missing"),
    ],
)
def test_an_invalid_model_directory_is_an_error_in_one_line(tmp_path: Path, how: str, said: str) -> None:
    trained().save(tmp_path)
    spoilt(tmp_path, how)
    with pytest.raises(DataError, match=said) as error:
        TrainedModel.load(tmp_path)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values", [{"mu": float("nan")}, {"rating_max": None}, {"rating_min": "1"}, {"factors": 10**9}]
)
def test_a_hostile_header_does_not_load(tmp_path: Path, values: dict[str, object]) -> None:
    trained().save(tmp_path)
    card = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(card | values))
    with pytest.raises(DataError, match="do not have" if "factors" in values else next(iter(values))):
        TrainedModel.load(tmp_path)


def test_hostile_weights_do_not_load_and_pytorchs_unsafe_advice_is_not_passed_on(tmp_path: Path) -> None:
    trained().save(tmp_path)
    weights = tmp_path / "model.pt"
    good = weights.read_bytes()
    with zipfile.ZipFile(weights) as archive, zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in archive.infolist():
            bomb.writestr(entry.filename, archive.read(entry))
    (tmp_path / "x").replace(weights)
    with pytest.raises(DataError, match="its entries are compressed"):
        TrainedModel.load(tmp_path)
    torch.save({"a": Path("x")}, weights)
    with pytest.raises(DataError, match="objects other than tensors, numbers and texts") as caught:
        TrainedModel.load(tmp_path)
    assert "weights_only" not in str(caught.value)
    weights.write_bytes(good)
    state = torch.load(weights, weights_only=True)
    state["mu"] = torch.tensor(float("nan"))
    torch.save(state, weights)
    with pytest.raises(DataError, match="mu holds a value that is not finite"):
        TrainedModel.load(tmp_path)
    for mu, said in (
        (torch.tensor(100.0), r"model\.pt: mu is 100, expected"),
        (torch.tensor(3), "mu is of torch.int64"),
    ):
        torch.save(state | {"mu": mu}, weights)
        with pytest.raises(DataError, match=said):
            TrainedModel.load(tmp_path)


@pytest.mark.parametrize("name", sorted(FILES | {"ratings.parquet"}))
@pytest.mark.parametrize("read", [TrainedModel.load, model_directory.read_model])
def test_a_pipe_or_a_device_in_place_of_a_file_is_not_opened(tmp_path: Path, name: str, read: Any) -> None:
    trained().save(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: found a pipe or a device"):
        read(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(DataError, match=f"{name}: found a pipe or a device"):
        read(tmp_path)


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    trained().save(tmp_path)
    os.truncate(tmp_path / "model.json", 20 << 30)
    with pytest.raises(DataError, match=r"model\.json: 21,474,836,480 bytes, expected at most"):
        TrainedModel.load(tmp_path)


def test_ids_that_are_missing_or_occur_twice_do_not_load(tmp_path: Path) -> None:
    trained().save(tmp_path)
    path = tmp_path / "movie_embeddings.parquet"
    table = pq.read_table(path)
    for ids, said in ((pa.nulls(len(table), pa.int64()), "is null"), (pa.array([5] * len(table)), "more than one row")):
        pq.write_table(table.set_column(0, "movie_id", ids), path)
        with pytest.raises(DataError, match=said):
            TrainedModel.load(tmp_path)


def test_a_file_of_vectors_that_unpacks_to_far_more_than_its_size_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_directory, "MOST_UNPACKED", 1 << 20)
    trained().save(tmp_path)
    users = pq.read_table(tmp_path / "user_embeddings.parquet").slice(0, 1)
    pq.write_table(pa.concat_tables([users] * 100_000).combine_chunks(), tmp_path / "user_embeddings.parquet")
    for read in (TrainedModel.load, model_directory.read_model):
        with pytest.raises(DataError, match=r"user_embeddings\.parquet: .* bytes that unpack to "):
            read(tmp_path)
