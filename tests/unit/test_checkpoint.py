import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from mf.checkpoint import CheckpointFile
from mf.errors import DataError


def state(epochs: int) -> dict[str, Any]:
    return {
        "training": {"lr": 0.1, "rank": None},
        "fitting": {"tables": [torch.arange(6.0).view(2, 3) * epochs], "counts": torch.tensor([1, 2])},
        "best": None,
        "reports": [{"epoch": n + 1, "train_rmse": 0.5} for n in range(epochs)],
    }


@pytest.fixture
def file(tmp_path: Path) -> CheckpointFile:
    return CheckpointFile(tmp_path / "states" / "c.pt")


def test_where_nothing_was_kept_there_is_nothing(file: CheckpointFile) -> None:
    assert file.load() is None
    file.remove()


def test_what_was_kept_last_comes_back_to_the_bit(file: CheckpointFile) -> None:
    file.save(state(1))
    file.save(state(2))
    kept = file.load()
    assert kept is not None
    table, expected = kept["fitting"]["tables"][0], state(2)["fitting"]["tables"][0]
    assert (table.dtype, table.shape) == (torch.float32, (2, 3))
    assert torch.equal(table, expected)
    assert (kept["training"], kept["best"], len(kept["reports"])) == ({"lr": 0.1, "rank": None}, None, 2)


def test_a_save_that_fails_leaves_the_one_before_and_nothing_else(file: CheckpointFile) -> None:
    file.save(state(1))
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        file.save({**state(2), "best": lambda: None})
    kept = file.load()
    assert kept is not None
    assert len(kept["reports"]) == 1
    assert list(file.path.parent.iterdir()) == [file.path]


def test_what_was_removed_is_gone(file: CheckpointFile) -> None:
    file.save(state(1))
    file.remove()
    assert list(file.path.parent.iterdir()) == []


def test_a_file_that_is_no_checkpoint_is_one_line_that_says_what_to_do(file: CheckpointFile) -> None:
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
        assert said.endswith("; delete it to start anew, or name another file")
        assert "\n" not in said


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def test_a_checkpoint_runs_no_code(file: CheckpointFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file.save({**state(1), "best": Trap()})
    with pytest.raises(DataError, match="is not a checkpoint"):
        file.load()
    assert not Path("sprung").exists()
    torch.load(file.path, weights_only=False)  # the trap is one
    assert Path("sprung").exists()
