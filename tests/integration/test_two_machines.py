"""Train and refit on two machines: both run the component's command, as the worker pools of a custom job do; gloo."""

import json
import socket
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from kfp.dsl.base_component import BaseComponent
from steps import executor_input, output, started

import components
from mf.ingest import ingest
from mf.model_directory import TrainedModel
from mf.parameters import OR_SOLVERS_OWN, SOLVERS_OWN
from mf.ratings.config import IngestConfig, SplitConfig
from mf.ratings.schema import read_ratings, write_ratings
from mf.ratings.split import split
from mf.sample import write_sample


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ratings")
    sample = write_sample(folder / "sample")
    names = {name: folder / f"{name}.parquet" for name in ("ratings", "train_ratings", "validation_ratings")}
    provenance = ingest(IngestConfig(ratings_csv=str(sample.ratings_csv)), names["ratings"], folder / "r.csv")
    divided = split(read_ratings(names["ratings"])[0], SplitConfig(test_size=0, val_size=0.1))
    write_ratings(divided.train, names["train_ratings"], provenance)
    write_ratings(divided.validation, names["validation_ratings"], provenance)
    return names


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def run(component: BaseComponent, folder: Path, given: dict[str, Path], nodes: int, **parameters: Any) -> list[str]:
    """Runs a step on each of as many machines, each with a folder of its own; what each printed."""
    asked, port = component.component_spec.inputs, free_port()
    pools = {f"workerpool{i}": [f"127.0.0.1:{port}"] for i in range(nodes)}
    options = dict.fromkeys(OR_SOLVERS_OWN, SOLVERS_OWN) | {"factors": 8, "seed": 3, "train_accelerator_count": 0}
    options |= {"ranking": "ease", "ranking_options": {"factors": 8.0}, "relevance_threshold": "", "solver_options": {}}
    options |= {"solver": "sgd", "epochs": 4, "refit": True, **parameters}
    options = {name: value for name, value in options.items() if name in asked}
    steps = []
    for node in range(nodes):
        own = folder / f"node-{node}"
        inputs = {name: given.get(name, own / name) for name, one in asked.items() if "@" in one.type}
        task = {"type": f"workerpool{node}", "index": 0}
        # Vertex AI sets the other three for PyTorch, for one process per machine.
        environ = {"CLUSTER_SPEC": json.dumps({"cluster": pools, "task": task}), "MASTER_ADDR": "nowhere"}
        environ |= {"RANK": str(node), "WORLD_SIZE": str(nodes)} if nodes > 1 else {}
        steps.append(started(component, executor_input(component, own, inputs, **options), own, **environ))
    said = [step.communicate(timeout=300)[0] for step in steps]
    assert [step.returncode for step in steps] == [0] * nodes, "\n".join(said)
    return said


def test_two_machines_train_and_refit_the_models_of_one_and_the_first_alone_writes_them(
    ratings: dict[str, Path], tmp_path: Path
) -> None:
    first, second = run(components.train, tmp_path / "two", ratings, 2)
    assert ", machine 1 of 2: solver sgd" in first
    assert ", machine 2 of 2: solver sgd" in second
    assert "epoch 4/4  validation RMSE" in first
    assert "epoch 4/4  validation RMSE" not in second
    assert "model" in output(tmp_path / "two" / "node-0")["artifacts"]
    beside = tmp_path / "two" / "node-1"
    assert not (beside / "model").exists()
    assert not (beside / "executor_output.json").exists()
    assert not list(beside.glob("mf-*"))
    run(components.train, tmp_path / "one", ratings, 1)
    same(tmp_path / "two" / "node-0" / "model", tmp_path / "one" / "node-0" / "model")

    judged = {**ratings, "judged_model": tmp_path / "one" / "node-0" / "model"}
    first, second = run(components.refit, tmp_path / "refit-two", judged, 2)
    assert "is fitted to all" in first
    assert "is fitted to all" not in second
    run(components.refit, tmp_path / "refit-one", judged, 1)
    same(tmp_path / "refit-two" / "node-0" / "model", tmp_path / "refit-one" / "node-0" / "model")


def same(two: Path, one: Path) -> None:
    """Two model directories hold the same star model, and the same lists up to rounding errors."""
    for name in ("user_embeddings.parquet", "movie_embeddings.parquet"):
        assert pq.read_table(two / name) == pq.read_table(one / name), name
    scores = []
    for folder in (two, one):
        lists = TrainedModel.load(folder).ranking
        assert lists
        scores.append(torch.from_numpy(lists.model.scores(lists.vectors)))
    assert (scores[0] - scores[1]).abs().max() < 1e-4
