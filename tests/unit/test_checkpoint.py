import errno
import os
import pickle
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mf import checkpoint
from mf.checkpoint import CheckpointFile, reporter
from mf.errors import DataError
from mf.solvers import EpochReport, RatingTensors, configure, fit
from mf.tensors import load_tensors


def state(epochs: int) -> dict[str, Any]:
    return {
        "settings": {"lr": 0.1, "rank": None},
        "solver_state": {"tables": [torch.arange(6.0).view(2, 3) * epochs], "counts": torch.tensor([1, 2])},
        "reports": [{"epoch": n + 1, "train_rmse": 0.5} for n in range(epochs)],
    }


@pytest.fixture
def file(tmp_path: Path) -> CheckpointFile:
    return CheckpointFile(tmp_path / "states" / "c.pt")


def test_without_a_file_there_is_no_state(file: CheckpointFile) -> None:
    assert file.load() is None
    file.remove()


def test_the_state_saved_last_is_loaded_to_the_bit(file: CheckpointFile) -> None:
    file.save(state(1))
    file.save(state(2))
    kept = file.load()
    assert kept is not None
    table, expected = kept["solver_state"]["tables"][0], state(2)["solver_state"]["tables"][0]
    assert (table.dtype, table.shape) == (torch.float32, (2, 3))
    assert torch.equal(table, expected)
    assert (kept["settings"], len(kept["reports"])) == ({"lr": 0.1, "rank": None}, 2)


def test_a_failed_save_leaves_the_previous_state_and_no_other_file(file: CheckpointFile) -> None:
    file.save(state(1))
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        file.save({**state(2), "other": lambda: None})
    kept = file.load()
    assert kept is not None
    assert len(kept["reports"]) == 1
    assert list(file.path.parent.iterdir()) == [file.path]


def test_remove_deletes_the_file(file: CheckpointFile) -> None:
    file.save(state(1))
    file.remove()
    assert list(file.path.parent.iterdir()) == []


def test_a_file_that_is_no_checkpoint_is_a_one_line_error(file: CheckpointFile) -> None:
    file.save(state(1))
    whole = file.path.read_bytes()
    torch.save({"weights": torch.ones(2)}, file.path)
    others = file.path.read_bytes()
    for content in (b"", b"userId,movieId,rating\n1,2,3\n", whole[: len(whole) // 2], others):
        file.path.write_bytes(content)
        with pytest.raises(DataError) as error:
            file.load()
        said = str(error.value)
        assert said.startswith(f"{file.path} is not a checkpoint: ")
        assert said.endswith("; delete it to start from scratch, or choose another file")
        assert "\n" not in said


def test_saving_takes_no_more_than_its_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = CheckpointFile(tmp_path / "c.pt", share=0.1)
    now = 0.0

    def clock() -> float:
        """Each save takes two seconds."""
        nonlocal now
        now += 2
        return now - 2

    monkeypatch.setattr(checkpoint.time, "monotonic", clock)
    kept = []
    for epochs, at in enumerate((100, 103, 119, 121, 130), start=1):
        now = float(at)
        file.save(state(epochs))
        kept.append(len((file.load() or {})["reports"]))
    # The save from 100 to 102 leaves 18 seconds to the training.
    assert kept == [1, 1, 1, 4, 4]


def test_remove_deletes_unfinished_files_of_killed_processes(file: CheckpointFile) -> None:
    file.save(state(1))
    others = [file.path.with_name(name) for name in (".c.pt.x", "other.pt", ".other.pt.1.part")]
    for path in [*others, file.path.with_name(".c.pt.4711.part")]:
        path.write_bytes(b"half")
    file.remove()
    assert sorted(file.path.parent.iterdir()) == sorted(others)


def test_resuming_prints_one_line(file: CheckpointFile, capsys: pytest.CaptureFixture[str]) -> None:
    file.save(state(2))
    file.load()
    tell = reporter(file)
    for number in (1, 2, 3):
        tell(EpochReport(number, 3, 0.5, None, 1.0, 10.0, True))
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"resuming from {file.path} at epoch 3/3"
    assert second.startswith("epoch 3/3  train RMSE 0.5000")


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def test_a_checkpoint_runs_no_code(file: CheckpointFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file.save({**state(1), "other": Trap()})
    with pytest.raises(DataError, match="is not a checkpoint"):
        file.load()
    assert not Path("sprung").exists()
    torch.load(file.path, weights_only=False)  # the trap is one
    assert Path("sprung").exists()


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "on_gpu", lambda _: True)


def test_a_gpus_state_is_written_by_a_thread_while_the_training_changes_it(
    file: CheckpointFile, as_on_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.save(state(1))
    file.wait()
    goes_on, torch_save = threading.Event(), torch.save

    def slow(*arguments: Any) -> None:
        assert goes_on.wait(60)
        torch_save(*arguments)

    monkeypatch.setattr(torch, "save", slow)
    given = state(2)
    given["solver_state"]["kept"] = given["solver_state"]["tables"]
    file.save(given)
    given["solver_state"]["tables"][0].zero_()
    # Another thread at the same time would write the same file.
    assert not file.due()
    file.save(state(3))
    assert len(load_tensors(file.path)["reports"]) == 1
    goes_on.set()
    kept = file.load()
    assert kept is not None
    assert file.due()
    tables = kept["solver_state"]["tables"]
    assert torch.equal(tables[0], state(2)["solver_state"]["tables"][0])
    # What is in the state twice is in the file once.
    assert kept["solver_state"]["kept"][0].data_ptr() == tables[0].data_ptr()


def test_what_a_thread_fails_with_is_raised_by_the_next_save_with_the_path(
    file: CheckpointFile, as_on_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.save(state(1))
    file.wait()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    file.save(state(2))
    while not file.due():
        time.sleep(0.01)
    with pytest.raises(OSError, match=re.escape(str(file.path))):
        file.save(state(3))
    monkeypatch.undo()
    kept = file.load()
    assert kept is not None
    assert len(kept["reports"]) == 1
    assert list(file.path.parent.iterdir()) == [file.path]


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_save_that_fails_ends_the_training_also_after_the_last_epoch(
    fails_at: int, file: CheckpointFile, as_on_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.arange(40) % 8
    data = RatingTensors(rows, rows.flip(0), 1 + rows % 5.0, 8, 8)
    written: list[int] = []

    def full(_: int) -> None:
        written.append(1)
        if len(written) == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    config = configure("sgd", {"factors": 2, "epochs": 3})
    with pytest.raises(OSError, match=re.escape(str(file.path))):
        fit(data, data, config, torch.device("cpu"), [lambda _: time.sleep(0.2)], file)
    assert len(written) == fails_at
