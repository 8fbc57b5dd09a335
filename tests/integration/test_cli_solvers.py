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

from mf.sample import write_sample
from mf.solvers import SOLVERS

ROOT = Path(__file__).parents[2]
EPOCHS, KILLED_AFTER = 40, 3  # many, so that the kill comes before the end
OPTIONS = {
    "adam": ["--batch_size=512", "--lr=0.007", "--schedule=one_cycle", "--dropout=0.1"],
    "sgd": [],
    "vb": [],
    "gibbs": ["--burn_in=2"],
}
SAME = ("user_embeddings.parquet", "movie_embeddings.parquet", "model.pt")


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("sample")).ratings_csv


def started(folder: Path, *argv: str) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "mf", *argv],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: "subprocess.Popen[str]") -> list[str]:
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed.splitlines()


def card(folder: Path) -> dict[str, Any]:
    """model.json without what differs from run to run."""
    found = json.loads((folder / "output" / "model.json").read_text())
    del found["run_id"], found["git_sha"]
    for epoch in found["metrics"]["epochs"]:
        del epoch["seconds"], epoch["ratings_per_second"]
    return found


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_killed_run_ends_with_the_bytes_of_one_that_was_left_alone(
    solver: str, ratings: Path, tmp_path: Path
) -> None:
    argv = [f"--ratings_csv={ratings}", f"--solver={solver}", f"--epochs={EPOCHS}", "--factors=16", *OPTIONS[solver]]
    finished(started(tmp_path / "whole", *argv))

    with started(tmp_path / "killed", *argv, "--checkpoint=c.pt") as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(f"epoch {KILLED_AFTER}/"):
                process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "output").exists()

    lines = finished(started(tmp_path / "killed", *argv, "--checkpoint=c.pt"))
    (done,) = [int(x) for x in re.findall(r"^going on from c\.pt, after epoch (\d+)/", "\n".join(lines), re.MULTILINE)]
    epochs = [int(match[1]) for line in lines if (match := re.match(r"epoch (\d+)/", line))]
    assert done >= KILLED_AFTER
    assert epochs == list(range(done + 1, len(card(tmp_path / "whole")["metrics"]["epochs"]) + 1))
    assert epochs
    assert not (tmp_path / "killed" / "c.pt").exists()

    for name in SAME:
        one, other = (tmp_path / folder / "output" / name for folder in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes(), name
    assert card(tmp_path / "killed") == card(tmp_path / "whole")
