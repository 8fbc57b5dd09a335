"""The folder of the runs of one source on this machine."""

from pathlib import Path

from pipelines.laptop.run import remove_leftovers


def test_what_killed_runs_left_is_removed_and_finished_runs_stay(tmp_path: Path) -> None:
    finished, killed, temporary = (tmp_path / name for name in ("mf-training-1", "mf-training-2", "tmpab12cd"))
    for folder in (finished / "evaluate", killed / "split", temporary / "code"):
        folder.mkdir(parents=True)
    for file in (finished / "evaluate" / "evaluation.json", tmp_path / "log.txt"):
        file.touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "mf-training-1"]
