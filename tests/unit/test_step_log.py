import io
from contextlib import closing
from pathlib import Path

import pytest
from kfp.local import subprocess_task_handler

from pipelines.laptop import run
from pipelines.laptop.step_log import StepLog

# Output of kfp.local for a run, shortened, with its colours.
STARTED = """\
08:01:34.965 - INFO - Running pipeline: \033[95m'mf-training'\033[0m
--------------------------------------------------------------------------------
08:01:34.974 - INFO - Executing task \033[96m'ingest'\033[0m
08:01:34.974 - INFO - Streamed logs:

    [KFP Executor 2026-11-24 08:01:35,044 INFO]: Looking for component `ingest` in --component_module_path `/tmp/x.py`
    [KFP Executor 2026-11-24 08:01:35,045 INFO]: Got executor_input:
    {
        "inputs": {
            "parameterValues": {
                "columns": ""
            }
        }
    }
"""
SUCCEEDED = """\
    ratings.csv: 14,000 rows read
    [KFP Executor 2026-11-24 08:01:35,844 INFO]: Wrote executor output file to /runs/ingest/executor_output.json.


08:01:36.035 - INFO - Task \033[96m'ingest'\033[0m finished with status \033[92mSUCCESS\033[0m
08:01:36.035 - INFO - Task \033[96m'ingest'\033[0m outputs:
    ratings: Dataset( name='ratings',
                      uri='/runs/ingest/ratings.parquet' )
--------------------------------------------------------------------------------
08:01:36.038 - INFO - Executing task \033[96m'split'\033[0m
08:01:36.038 - INFO - Streamed logs:

    random split: 11,200 train
"""
REFUSED = """\
    error: ratings.csv: 1 of 2 rows are bad: line 2: rating "five" is not a number


08:01:36.152 - ERROR - Task \033[96m'ingest'\033[0m finished with status \033[91mFAILURE\033[0m
"""
CRASHED = """\
    Traceback (most recent call last):
      File "/usr/lib/python3.11/runpy.py", line 198, in _run_module_as_main
        return _run_code(code, main_globals, None,
    ZeroDivisionError: division by zero


08:01:36.152 - ERROR - Task \033[96m'ingest'\033[0m finished with status \033[91mFAILURE\033[0m
"""


def shown(transcript: str, file: Path, piece: int) -> tuple[StepLog, list[str]]:
    """The log and the terminal's lines after writing ``transcript`` in pieces of ``piece`` characters."""
    terminal = io.StringIO()
    with closing(StepLog(file, terminal)) as log:
        for start in range(0, len(transcript), piece):
            log.write(transcript[start : start + piece])
    return log, terminal.getvalue().splitlines()


@pytest.mark.parametrize("piece", [1, 7, 100_000])
def test_only_the_steps_own_lines_are_shown_with_the_steps_name(tmp_path: Path, piece: int) -> None:
    log, lines = shown(STARTED + SUCCEEDED, tmp_path / "log.txt", piece)
    assert lines == ["ingest    ratings.csv: 14,000 rows read", "split     random split: 11,200 train"]
    assert (log.step, log.error) == ("split", "")


def test_everything_is_written_to_the_file(tmp_path: Path) -> None:
    shown(STARTED + SUCCEEDED, tmp_path / "log.txt", 50)
    assert (tmp_path / "log.txt").read_text() == STARTED + SUCCEEDED


def test_the_error_line_of_a_step_is_kept_and_not_shown(tmp_path: Path) -> None:
    log, lines = shown(STARTED + REFUSED, tmp_path / "log.txt", 50)
    assert lines == []
    assert log.step == "ingest"
    assert log.error == 'ratings.csv: 1 of 2 rows are bad: line 2: rating "five" is not a number'


def test_the_traceback_of_a_crashed_step_is_shown(tmp_path: Path) -> None:
    log, lines = shown(STARTED + CRASHED, tmp_path / "log.txt", 50)
    assert lines == [
        "ingest    Traceback (most recent call last):",
        'ingest      File "/usr/lib/python3.11/runpy.py", line 198, in _run_module_as_main',
        "ingest        return _run_code(code, main_globals, None,",
        "ingest    ZeroDivisionError: division by zero",
    ]
    assert (log.step, log.error) == ("ingest", "")


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        ([0, -9], ": its process was ended by SIGKILL, probably for lack of memory"),
        ([137], ": its process was ended by SIGKILL, probably for lack of memory"),
        ([-15], ": its process was ended by SIGTERM"),
        ([139], ": its process was ended by SIGSEGV"),
        ([1], ""),
        ([], ""),
    ],
)
def test_a_step_that_the_system_killed_is_told_by_its_signal(statuses: list[int], said: str) -> None:
    assert run._death(statuses) == said


def test_the_status_of_a_steps_process_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with run.statuses() as ended:
        subprocess_task_handler.run_local_subprocess(["bash", "-c", "kill -9 $$"])
    assert ended == [-9]
