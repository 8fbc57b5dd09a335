"""`python -m mf --checkpoint`, killed in the middle and run again, ends where a run that was left alone does."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mf.__main__ import main
from mf.model_directory import PARQUET, RANKING_PARQUET
from mf.sample import write_sample

ROOT = Path(__file__).parents[2]
EPOCHS, KILLED_AFTER = 40, 3  # many, so that the kill comes before the end
SOLVERS = ("sgd", "vb")  # one of each engine; the train step is killed with the two others, in test_preempted.py
SAME = ("model.pt", *PARQUET.values(), *RANKING_PARQUET.values())


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("sample")).ratings_csv


def card(folder: Path) -> dict[str, Any]:
    """model.json without what differs from run to run."""
    found: dict[str, Any] = json.loads((folder / "output" / "model.json").read_text())
    del found["run_id"], found["git_sha"], found["ranking"]["metrics"]["seconds"], found["metrics"]["seconds"]
    for epoch in found["metrics"]["epochs"]:
        del epoch["seconds"], epoch["ratings_per_second"]
    return found


def killed(folder: Path, argv: list[str]) -> None:
    """Runs it in a process of its own, which is killed as soon as it tells of an epoch."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE_")}
    command = [sys.executable, "-m", "mf", *argv]
    environment["PYTHONPATH"] = str(ROOT)
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(f"epoch {KILLED_AFTER}/"):
                process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_killed_run_ends_with_the_bytes_of_one_that_was_left_alone(
    solver: str, ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("SUPABASE_")]:
        monkeypatch.delenv(name)
    argv = [f"--ratings_csv={ratings}", f"--solver={solver}", f"--epochs={EPOCHS}", "--factors=16"]
    whole, again = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, again):
        folder.mkdir()
    monkeypatch.chdir(whole)
    main(argv)
    killed(again, [*argv, "--checkpoint=c.pt"])
    assert not (again / "output").exists()

    capsys.readouterr()
    monkeypatch.chdir(again)
    main([*argv, "--checkpoint=c.pt"])
    printed = capsys.readouterr().out
    (first,) = [int(x) for x in re.findall(r"^resuming from c\.pt at epoch (\d+)/", printed, re.MULTILINE)]
    epochs = [int(x) for x in re.findall(r"^epoch (\d+)/", printed, re.MULTILINE)]
    assert first > KILLED_AFTER
    assert epochs == list(range(first, len(card(whole)["metrics"]["epochs"]) + 1))
    assert epochs
    assert not (again / "c.pt").exists()

    for name in SAME:
        assert (whole / "output" / name).read_bytes() == (again / "output" / name).read_bytes(), name
    assert card(again) == card(whole)
