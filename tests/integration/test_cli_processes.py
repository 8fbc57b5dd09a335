"""`python -m mf --processes`: the files of one process, a process that is killed, and a run that is resumed."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from mf.__main__ import main
from mf.model_directory import PARQUET, TrainedModel
from mf.sample import write_sample

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("sample")).ratings_csv


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE_")}
    return {**kept, "PYTHONPATH": str(ROOT)}


def scores(folder: Path) -> Any:
    """The ranking scores of some users and movies."""
    model = TrainedModel.load(folder / "output")
    assert model.ranking
    return model.ranking.model.scores(model.ranking.vectors)[::7, ::11]


def killed(folder: Path, argv: list[str]) -> tuple[int, str]:
    """Runs it and kills the last of its processes once it tells of the second epoch: exit status and error text."""
    command = [sys.executable, "-m", "mf", *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, env=environment(), text=True, **pipes) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                ranks = [p for p in psutil.Process(process.pid).children() if "--multiprocessing-fork" in p.cmdline()]
                max(ranks, key=lambda p: p.pid).send_signal(signal.SIGKILL)
                break
        _, err = process.communicate()
    _, alive = psutil.wait_procs(ranks, timeout=900)
    assert not alive
    return process.returncode, err


def test_two_processes_resume_after_a_kill_and_write_the_files_of_one(
    ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("SUPABASE_")]:
        monkeypatch.delenv(name)
    argv = [f"--ratings_csv={ratings}", "--solver=sgd", "--epochs=60", "--factors=8", "--patience=0"]
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    alone.mkdir()
    more = [*argv, "--processes=2", "--checkpoint=c.pt"]
    status, err = killed(together, more)
    assert status == 1
    assert re.fullmatch(r"error: training: process 2 of 2 was ended by SIGKILL, .*; the others were stopped, .*\n", err)
    assert not (together / "output").exists()
    assert (together / "c.pt").exists()

    done = subprocess.run(
        [sys.executable, "-m", "mf", *more], cwd=together, env=environment(), capture_output=True, text=True, check=True
    )
    assert "resuming from c.pt at epoch" in done.stdout
    assert "training on the CPU, by 2 processes" in done.stdout
    monkeypatch.chdir(alone)
    main(argv)
    assert "processes" not in capsys.readouterr().out
    for name in PARQUET.values():
        assert (together / "output" / name).read_bytes() == (alone / "output" / name).read_bytes(), name
    assert scores(together) == pytest.approx(scores(alone), abs=1e-4)
    files = [together / "output" / "movie_ranking.parquet", alone / "output" / "movie_ranking.parquet"]
    ids = [pq.read_table(file, columns=["movie_id", "ratings"]) for file in files]
    assert ids[0] == ids[1]


def test_several_processes_say_that_adam_draws_from_blocks_and_train_on_clicks(
    ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main([f"--ratings_csv={ratings}", "--processes=2", "--factors=4", "--ranking=none"])
    assert "\n2 processes: batches are drawn from blocks of 8,192 users (block_users)\n" in capsys.readouterr().out
    lines = [line.split(",")[:2] for line in ratings.read_text().splitlines()]
    Path("clicks.csv").write_text("".join(f"{user},{movie}\n" for user, movie in lines))
    main(["--ratings_csv=clicks.csv", "--processes=2"])
    out = capsys.readouterr().out
    assert "not used" not in out
    assert "ranking  student" in out
    main(["--ratings_csv=clicks.csv", "--output_dir=alone/output"])
    assert scores(tmp_path) == pytest.approx(scores(tmp_path / "alone"), abs=1e-4)


def test_the_errors_of_a_process_are_one_line(
    ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [f"--ratings_csv={ratings}", "--processes=2", "--solver=adam"]
    with pytest.raises(SystemExit, match="2"):
        main([*argv, "--clip_grad=1"])
    assert capsys.readouterr().err.startswith("error: clip_grad: found 1 with 2 processes, expected none: ")
    with pytest.raises(SystemExit, match="2"):
        main([*argv, "--lr=1e30"])
    assert re.fullmatch(r"error: epoch 1: .*: lower --lr \(now 1e\+30\), .*\n", capsys.readouterr().err)
