"""The step that ends a run, as KFP's executor runs it."""

from pathlib import Path
from typing import Any

import pytest
from kfp.dsl.executor import Executor

import components

RUN = "projects/1/locations/europe-west4/pipelineJobs/mf-training-1"


def notified(folder: Path, **status: Any) -> None:
    values = {"status": {"pipelineJobResourceName": RUN, "pipelineTaskName": "run", **status}}
    kind = {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}
    notice = {"name": "notice", "type": kind, "uri": str(folder / "notify" / "notice"), "metadata": {}}
    outputs = {"artifacts": {"notice": {"artifacts": [notice]}}, "outputFile": str(folder / "executor_output.json")}
    given = {"inputs": {"parameterValues": values}, "outputs": outputs}
    Executor(given, components.notify.python_func).execute()


def test_a_run_that_failed_is_one_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notified(tmp_path, state="FAILED", error={"code": 9, "message": "The DAG failed because\nsome tasks failed: train"})
    printed = capsys.readouterr()
    said = f"{RUN} has ended as FAILED: The DAG failed because some tasks failed: train\n"
    assert (printed.out, printed.err) == ("", said)


def test_a_run_that_was_cancelled_has_no_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notified(tmp_path, state="CANCELLED")
    assert capsys.readouterr().err == f"{RUN} has ended as CANCELLED: no reason is given\n"


def test_a_run_that_succeeded_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notified(tmp_path, state="SUCCEEDED")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (f"{RUN} has succeeded\n", "")


def test_what_evaluate_left_in_the_folder_of_the_run_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "verdict.txt").write_text("not published: RMSE 1.2 is not below 0.9")
    notified(tmp_path, state="SUCCEEDED")
    said = f"{RUN} has succeeded: not published: RMSE 1.2 is not below 0.9\n"
    assert capsys.readouterr().out == said == (tmp_path / "notify" / "notice").read_text()
