"""A train step that is taken away in the middle and started again, as on a spot machine: KFP's executor runs the real
component in a process that is killed with -9."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from kfp.dsl.executor import Executor
from steps import executor_input, output, started

import components
from mf.ingest import ingest
from mf.model_directory import PARQUET, RANKING_PARQUET, TrainedModel
from mf.parameters import OR_SOLVERS_OWN, SOLVER_PARAMETERS, SOLVERS_OWN
from mf.ranking import RankingConfig
from mf.ratings.config import IngestConfig, SplitConfig
from mf.ratings.schema import read_ratings, write_ratings
from mf.ratings.split import split
from mf.sample import write_sample
from mf.solvers import configure
from mf.train import train

# Long enough to be killed in the middle of.
OPTIONS: dict[str, dict[str, Any]] = {
    "adam": {"factors": 16, "seed": 3, "epochs": 60, "patience": 0, "dropout": 0.1},
    "gibbs": {"factors": 16, "seed": 3, "epochs": 40, "burn_in": 4, "rank": 8},
}

RANKING = {"factors": 8.0}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    sample = write_sample(folder / "sample")
    provenance = ingest(IngestConfig(ratings_csv=str(sample.ratings_csv)), folder / "all.parquet", folder / "r.csv")
    divided = split(read_ratings(folder / "all.parquet")[0], SplitConfig(test_size=0, val_size=0.1))
    write_ratings(divided.train, folder / "train.parquet", provenance)
    write_ratings(divided.validation, folder / "validation.parquet", provenance)
    return {"train_ratings": folder / "train.parquet", "validation_ratings": folder / "validation.parquet"}


def given(parts: dict[str, Path], folder: Path, solver: str, gpus: int = 0) -> dict[str, Any]:
    asked = components.train.component_spec.inputs
    # An artifact that the parts do not have is there as a run leaves it that does not use it: as nothing.
    inputs = {name: parts.get(name, folder / name) for name, one in asked.items() if "@" in one.type}
    parameters = dict.fromkeys(OR_SOLVERS_OWN, SOLVERS_OWN) | {"solver": solver, "train_accelerator_count": gpus}
    options = OPTIONS[solver].items()
    parameters |= {name: value for name, value in options if name in SOLVER_PARAMETERS}
    rest = {name: value for name, value in options if name not in SOLVER_PARAMETERS}
    ranking = {"ranking": "ease", "ranking_options": RANKING, "relevance_threshold": ""}
    return executor_input(components.train, folder, inputs, **parameters, **ranking, solver_options=rest)


def killed_in_the_middle(process: "Any", epochs: int) -> int:
    """Kills all of the step's processes with -9 at a random moment; how many epochs it had told of."""
    assert process.stdout
    told, wanted = 0, random.randint(2, epochs * 2 // 3)
    for line in process.stdout:
        told += line.startswith("epoch ")
        if told == wanted:
            time.sleep(random.uniform(0, 0.02))
            os.killpg(process.pid, signal.SIGKILL)
            break
    told += len(re.findall("^epoch ", process.stdout.read(), re.MULTILINE))
    assert process.wait(900) == -signal.SIGKILL
    return told


def curve(metrics: dict[str, Any]) -> list[tuple[float, float]]:
    return [(epoch["train_rmse"], epoch["validation_rmse"]) for epoch in metrics["epochs"]]


@pytest.mark.parametrize("solver", OPTIONS)
def test_a_step_that_was_killed_goes_on_and_ends_as_one_that_was_left_alone(
    parts: dict[str, Path], tmp_path: Path, solver: str
) -> None:
    run, epochs = tmp_path / "run", OPTIONS[solver]["epochs"]
    with started(components.train, given(parts, run / "train_1", solver), run / "train_1") as first:
        told = killed_in_the_middle(first, epochs)
    assert not (run / "train_1" / "model" / "model.json").exists()

    # Whatever the next attempt's own folder is called, the run's is the same.
    with started(components.train, given(parts, run / "train_2", solver), run / "train_2") as second:
        printed, _ = second.communicate(timeout=900)
    assert second.returncode == 0, printed
    (resumed_at,) = re.findall(rf"resuming from {run / 'train.checkpoint'} at epoch (\d+)/{epochs}\n", printed)
    assert 2 <= int(resumed_at) <= told + 2
    shown = [int(epoch) for epoch in re.findall(rf"^\s*epoch (\d+)/{epochs} ", printed, re.MULTILINE)]
    assert shown == list(range(int(resumed_at), epochs + 1))

    train_ratings, validation = (read_ratings(path)[0] for path in parts.values())
    config = configure(solver, OPTIONS[solver])
    ranking = RankingConfig(**RANKING, seed=3)
    alone = train(train_ratings, validation, config, device=torch.device("cpu"), ranking=ranking)
    alone.save(tmp_path / "alone")
    resumed = run / "train_2" / "model"
    assert curve(json.loads((resumed / "model.json").read_text())["metrics"]) == curve(alone.metrics)
    for file in (*PARQUET.values(), *RANKING_PARQUET.values()):
        one, other = (pq.read_table(model / file) for model in (resumed, tmp_path / "alone"))
        assert one.equals(other)
    assert output(run / "train_2")["artifacts"]["model"]["artifacts"][0]["metadata"]["rows"] == len(train_ratings)
    assert TrainedModel.load(resumed).metrics["validation_rmse"] == alone.metrics["validation_rmse"]
    # Nothing of the checkpoint is left, nor of one that was being written when the kill came.
    assert sorted(path.name for path in run.iterdir()) == ["train_1", "train_2"]


def test_a_gpu_that_was_asked_for_and_is_not_there_ends_the_step_before_it_reads_a_rating(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = dict.fromkeys(("train_ratings", "validation_ratings"), tmp_path / "none.parquet")
    gpus = torch.cuda.device_count() + 1
    with pytest.raises(SystemExit) as end:
        Executor(given(nothing, tmp_path / "train", "adam", gpus), components.train.python_func).execute()
    assert end.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert re.match(r"error: expected \d+ GPUs?, but (no GPU is available to this PyTorch|the machine)", error)
    assert not (tmp_path / "train" / "model").exists()
