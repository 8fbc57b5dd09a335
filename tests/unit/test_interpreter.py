"""A step of kfp.local is run by this Python, whatever its path holds."""

import os
import sys
from pathlib import Path

import pytest
from kfp import dsl, local

from pipelines.laptop.interpreter import use_this_interpreter


@dsl.component(base_image="python", install_kfp_package=False)
def where(text: str) -> str:
    import sys

    return f"{text} by {sys.executable}"


@pytest.mark.parametrize("folder", ["a blank", "it's", 'a "b"', "$x `y`; exit 7 # \\ é"])
def test_a_step_runs_by_an_interpreter_at_an_odd_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    python = tmp_path / folder / "python3"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    use_this_interpreter()
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    # A parameter that holds the word python3 is left as it is.
    assert where(text="/opt/python3/ratings.csv").output == f"/opt/python3/ratings.csv by {python}"
