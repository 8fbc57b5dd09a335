import copy
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import components
from mf import version
from mf.checkpoint import CheckpointFile
from mf.config import Config
from mf.errors import ConfigError, DataError
from mf.model_directory import TrainedModel
from mf.parameters import OR_SOLVERS_OWN, SOLVER_PARAMETERS, SOLVERS_OWN
from mf.ratings.schema import Provenance, ratings_schema, read_ratings, write_ratings
from mf.solvers import SOLVERS, EpochReport, configure
from mf.solvers.config import ORIGINAL, AdamConfig
from mf.solvers.vb import VBConfig
from mf.train import pick_device, train
from mf.version import git_sha
from pipelines.compiled import definitions
from pipelines.parameters import complete

CPU = torch.device("cpu")
CONFIG = AdamConfig(**{**ORIGINAL, "factors": 2, "epochs": 3, "lr": 0.05})
# A value for each option of each solver.
GIVEN: dict[str, dict[str, Any]] = {
    "adam": {"epochs": 2, "lr": 0.1},
    "sgd": {"epochs": 3, "row_damping": 0.5},
    "vb": {"epochs": 3, "rank": 2, "fits": 2},
    "gibbs": {"epochs": 4, "rank": 3, "burn_in": 1},
}
CHECKOUT = Path(version.__file__).parents[1]
# Of the pipeline, as the train step takes them.
PARAMETERS = {
    name: defined
    for name, defined in definitions().items()
    if name in components.train.component_spec.inputs and name != "train_accelerator_count"
}


def table(rows: list[tuple[Any, Any, float]]) -> pa.Table:
    kind = pa.int64() if not rows or isinstance(rows[0][0], int) else pa.string()
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    return pa.table([pa.array(column) for column in columns], schema=ratings_schema(kind, kind, timestamps=False))


RATINGS = table([(u, m, float((u // 10 * m) % 5 + 1)) for u in (10, 20, 30) for m in (7, 8, 9)])
VALIDATION = table([(10, 7, 2.0), (99, 8, 3.0), (20, 77, 4.0)])


def fitted(ratings: pa.Table = RATINGS, validation: pa.Table = VALIDATION, config: Config = CONFIG) -> TrainedModel:
    return train(ratings, validation, config, device=CPU)


def test_the_rows_of_the_model_are_the_ids_of_the_training_part_alone() -> None:
    model = fitted()
    assert (model.users.ids.to_pylist(), model.movies.ids.to_pylist()) == ([10, 20, 30], [7, 8, 9])
    assert model.module.user_factors.weight.shape == (3, 2)


def test_predictions_follow_the_ids_whatever_their_order() -> None:
    model = fitted()
    forward = model.predict(RATINGS["user_id"], RATINGS["movie_id"])
    backward = RATINGS.take(pa.array(range(len(RATINGS) - 1, -1, -1)))
    assert np.array_equal(model.predict(backward["user_id"], backward["movie_id"]), forward[::-1])
    rows = torch.arange(9)
    assert forward.tolist() == model.module.predict(rows // 3, rows % 3).tolist()
    assert len(set(forward.tolist())) > 3


def test_ids_of_another_type_than_the_models_are_refused() -> None:
    with pytest.raises(DataError, match="ids of type string cannot be looked up among ids of type int64"):
        fitted().predict(pa.array(["10"]), pa.array([7]))


def test_the_model_records_its_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MF_GIT_SHA", "0123456789ab")
    seen: list[EpochReport] = []
    model = train(RATINGS, VALIDATION, CONFIG, device=CPU, callbacks=[seen.append])
    assert (model.solver, model.git_sha, model.rows) == ("adam", "0123456789ab", {"train": 9, "validation": 3})
    assert AdamConfig.of(**model.config) == CONFIG
    errors = [epoch.validation_rmse for epoch in seen]
    assert len(errors) == 3
    assert model.metrics["validation_rmse"] == min(errors)
    assert model.metrics["best_epoch"] == errors.index(min(errors)) + 1
    assert [epoch["validation_rmse"] for epoch in model.metrics["epochs"]] == errors


def test_the_best_epoch_is_the_one_of_the_returned_model() -> None:
    """vb returns its last sweep, whatever the validation ratings say of it."""
    rows = [(u, m, float(u * m % 5 + 1)) for u in range(20) for m in range(20)]
    contrary = [(u, m, 6 - rating) for u, m, rating in rows]
    metrics = fitted(table(rows), table(contrary), VBConfig(factors=4, rank=4, epochs=4)).metrics
    errors = [epoch["validation_rmse"] for epoch in metrics["epochs"]]
    assert min(errors) == errors[0] < errors[-1]
    assert (metrics["validation_rmse"], metrics["best_epoch"]) == (errors[-1], len(errors))


class Memory:
    """A checkpoint in memory; stops the training after some epoch."""

    def __init__(self, last: int) -> None:
        self.last, self.state = last, None

    def load(self) -> dict[str, Any] | None:
        return self.state

    def due(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def save(self, state: dict[str, Any]) -> None:
        self.state = copy.deepcopy(state)
        if len(state["reports"]) == self.last:
            raise KeyboardInterrupt


def test_a_resumed_training_has_the_metrics_of_an_uninterrupted_one() -> None:
    whole, checkpoint = fitted(), Memory(last=2)
    with pytest.raises(KeyboardInterrupt):
        train(RATINGS, VALIDATION, CONFIG, device=CPU, checkpoint=checkpoint)
    model = train(RATINGS, VALIDATION, CONFIG, device=CPU, checkpoint=checkpoint)
    for metrics in (whole.metrics, model.metrics):
        del metrics["seconds"]
        for epoch in metrics["epochs"]:
            del epoch["seconds"], epoch["ratings_per_second"]
    assert len(model.metrics["epochs"]) == 3
    assert model.metrics == whole.metrics


def test_without_validation_ratings_the_last_epoch_is_the_best() -> None:
    metrics = fitted(validation=table([])).metrics
    assert (metrics["validation_rmse"], metrics["best_epoch"]) == (None, 3)


def test_the_run_id_holds_the_time_and_is_unique() -> None:
    first, second = fitted(), fitted()
    assert first.run_id != second.run_id
    assert [len(part) for part in first.run_id.split("-")] == [8, 6, 6]


def test_the_same_ratings_config_and_seed_give_the_same_predictions() -> None:
    predicted = [fitted().predict(RATINGS["user_id"], RATINGS["movie_id"]) for _ in range(2)]
    assert np.array_equal(*predicted)


@pytest.mark.parametrize("processes", [1, 2])
def test_files_and_ratings_read_with_encoded_ids_give_the_same_model(processes: int, tmp_path: Path) -> None:
    plain = RATINGS.set_column(0, "user_id", RATINGS["user_id"].cast(pa.string()))
    parts = [plain, plain.slice(0, 2)]
    provenance = Provenance("planted", len(plain), 0, 0, len(plain))
    encoded = []
    for i, part in enumerate(parts):
        write_ratings(part, tmp_path / f"{i}", provenance)
        encoded.append(read_ratings(tmp_path / f"{i}", encoded=True)[0])
    assert pa.types.is_dictionary(encoded[0]["user_id"].type)
    given = {"config": CONFIG, "device": CPU, "provenance": provenance, "processes": processes}
    models = [train(*each, **given) for each in (parts, encoded, [tmp_path / "0", tmp_path / "1"])]
    for other in models[1:]:
        assert other.trained_on == models[0].trained_on
        assert other.users.ids.equals(models[0].users.ids)
        counts, same = (
            model.movie_counts.columns(other.movies.ids)["ratings"].tolist() for model in (other, models[0])
        )
        assert counts == same
        found, expected = (model.predict(plain["user_id"], plain["movie_id"]).tolist() for model in (other, models[0]))
        assert found == expected


def test_no_ratings_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"^found no ratings to train on, expected at least one: lower --val_size,"):
        fitted(ratings=table([]))


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_train_step_gives_a_solver_the_options_that_are_set(solver: str, tmp_path: Path) -> None:
    for name in ("train", "validation"):
        write_ratings(RATINGS, tmp_path / name, Provenance("here", 9, 0, 0, 9))
    asked = {"factors": 4, "seed": 3, **GIVEN[solver]}
    parameters = dict.fromkeys(OR_SOLVERS_OWN, SOLVERS_OWN) | {n: v for n, v in asked.items() if n in SOLVER_PARAMETERS}
    components.train.python_func(
        train_ratings=SimpleNamespace(path=tmp_path / "train"),
        validation_ratings=SimpleNamespace(path=tmp_path / "validation"),
        initial_model=SimpleNamespace(path=tmp_path / "initial_model"),
        model=(model := SimpleNamespace(path=tmp_path / "step" / "model", metadata={})),
        solver=solver,
        solver_options={name: value for name, value in asked.items() if name not in SOLVER_PARAMETERS},
        ranking="none",
        ranking_options={},
        relevance_threshold="",
        train_accelerator_count=0,
        **parameters,
    )
    card = json.loads((tmp_path / "step" / "model" / "model.json").read_text())
    assert card["config"] == configure(solver, asked).model_dump()
    assert model.metadata["solver"] == solver


def train_step(folder: Path, **parameters: Any) -> TrainedModel:
    """The model that the train step writes."""
    for name, rows in (("train", RATINGS), ("validation", VALIDATION)):
        write_ratings(rows, folder / name, Provenance("here", len(rows), 0, 0, len(rows)))
    components.train.python_func(
        train_ratings=SimpleNamespace(path=folder / "train"),
        validation_ratings=SimpleNamespace(path=folder / "validation"),
        initial_model=SimpleNamespace(path=folder / "initial_model"),
        model=SimpleNamespace(path=folder / "step" / "model", metadata={}),
        train_accelerator_count=0,
        **complete({"epochs": 3, **parameters}, PARAMETERS),
    )
    return TrainedModel.load(folder / "step" / "model")


def test_the_train_step_trains_the_ranking_model_on_both_parts_with_the_runs_seed_and_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranking = train_step(tmp_path, seed=3, relevance_threshold="2.5", ranking_options={"factors": 2.0}).ranking
    assert ranking
    assert ranking.users.ids.to_pylist() == [10, 20, 30, 99]  # 99 and 77 occur in the validation part only
    assert ranking.movies.ids.to_pylist() == [7, 8, 9, 77]
    assert ranking.model.relevance_threshold == 2.5
    assert (ranking.config["seed"], ranking.config["factors"], ranking.metrics["ratings"]) == (3, 2, 12)
    assert "\nlists     ranking model of 2 factors, teacher rank " in capsys.readouterr().out
    of_its_own = train_step(tmp_path, relevance_threshold="2.5", ranking_options={"relevance_threshold": 4.0}).ranking
    assert of_its_own
    assert of_its_own.model.relevance_threshold == 4.0


def test_a_train_step_stopped_in_the_ranking_model_does_not_train_the_star_model_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train_step(tmp_path / "whole")

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    save = CheckpointFile.save

    def save_every_epoch(file: CheckpointFile, state: dict[str, Any]) -> None:
        file.share = 1.0
        save(file, state)

    with monkeypatch.context() as patch:
        patch.setattr("mf.train.fit_ranking", stopped)
        patch.setattr(CheckpointFile, "save", save_every_epoch)
        with pytest.raises(KeyboardInterrupt):
            train_step(tmp_path)
    assert not (tmp_path / "step" / "model").exists()
    capsys.readouterr()
    resumed = train_step(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"resuming from {tmp_path / 'train.checkpoint'}: all 3 epochs are done"
    assert not any(line.startswith("epoch ") for line in lines)
    assert not (tmp_path / "train.checkpoint").exists()
    assert resumed.ranking
    assert whole.ranking
    assert np.array_equal(resumed.ranking.model.embedding, whole.ranking.model.embedding)
    assert np.array_equal(resumed.ranking.vectors, whole.ranking.vectors)


def test_the_gpu_is_used_on_request_and_its_absence_is_reported() -> None:
    assert pick_device(use_cuda=False) == (CPU, "training on the CPU")
    device, said = pick_device(use_cuda=True)
    if torch.cuda.is_available():
        assert (device.type, said.partition(";")[0]) == ("cuda", f"training on the GPU: {torch.cuda.get_device_name()}")
    else:
        assert device == CPU
        assert said.startswith(f"training on the CPU: no GPU is available to this PyTorch ({torch.__version__})")


@pytest.mark.parametrize(
    ("cuda", "available", "gpus", "said"),
    [
        (None, False, 1, r"^expected 1 GPU, but no GPU is available to this PyTorch \(.*\): it is a CPU build$"),
        ("13.0", False, 2, r"^expected 2 GPUs, but .* driver is too old for CUDA 13\.0$"),
        ("13.0", True, 1, r"^expected 1 GPU, but this PyTorch \(.*\) cannot use the Tesla P4: [^\n]+$"),
    ],
)
def test_a_required_gpu_that_cannot_be_used_is_an_error_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, available: bool, gpus: int, said: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla P4")
    # What torch raises on its first use of a GPU that it has no code for.
    monkeypatch.setattr(torch, "ones", refuse)
    with pytest.raises(ConfigError, match=said):
        pick_device(use_cuda=True, gpus=gpus)
    device, told = pick_device(use_cuda=True)
    assert (device, told[:21]) == (CPU, "training on the CPU: ")


def refuse(*_: Any, **__: Any) -> None:
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors …")


def test_gpus_beyond_those_asked_for_are_reported_idle_and_too_few_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mf.train._gpu_trouble", lambda: "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    said = "training on the GPU: NVIDIA L4; 1 more is idle: training uses one"
    assert pick_device(use_cuda=True, gpus=1) == (torch.device("cuda"), said)
    assert pick_device(use_cuda=True, gpus=2) == (torch.device("cuda"), "training on 2 GPUs: NVIDIA L4")
    with pytest.raises(ConfigError, match=r"^expected 4 GPUs, but the machine has 2$"):
        pick_device(use_cuda=True, gpus=4)


def test_the_commit_is_the_one_an_image_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MF_GIT_SHA", "0123456789ab")
    assert git_sha() == "0123456789ab"


def test_the_commit_is_else_that_of_the_checkout_and_changed_files_show(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MF_GIT_SHA", raising=False)
    monkeypatch.setattr(version, "__file__", str(tmp_path / "mf" / "version.py"))
    assert git_sha() == "unknown"

    def git(*arguments: str) -> str:
        options = ["-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path)]
        return subprocess.run(["git", *options, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "file").write_text("old")
    git("add", "file")
    git("commit", "-m", "first")
    git("tag", "-a", "v1", "-m", "a tag is not a commit")
    commit = git("rev-parse", "--short=12", "HEAD")
    assert git_sha() == commit
    (tmp_path / "file").write_text("new")
    assert git_sha() == f"{commit}-dirty"
