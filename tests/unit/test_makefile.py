"""What make hands on to the command line."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def command(target: str, *variables: str, **environ: str) -> str:
    """The line with which ``make target`` calls the pipeline's command of that name."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", target, *variables],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = [line for line in done.stdout.splitlines() if f"-m pipelines {target}" in line]
    return " ".join(line.partition(" -m pipelines ")[2].split())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["submit"], "submit --settings 'pipelines/settings.toml'"),
        (
            ["submit", "WAIT=1", "PARAMS=epochs=3 factors=8", "SETTINGS=my.toml"],
            "submit --settings 'my.toml' --param 'epochs=3' --param 'factors=8' --wait",
        ),
        (["schedule", "CRON=0 3 * * *"], "schedule --settings 'pipelines/settings.toml' --cron '0 3 * * *'"),
        (
            ["schedule", "CRON=0 3 * * *", "TZ=Europe/Berlin", "NAME=nightly", "PARAMS=epochs=3"],
            "schedule --settings 'pipelines/settings.toml' --cron '0 3 * * *' --tz 'Europe/Berlin' --name 'nightly' "
            "--param 'epochs=3'",
        ),
        (["demo"], "demo"),
        (["unschedule", "NAME=nightly"], "unschedule --settings 'pipelines/settings.toml' --name 'nightly'"),
    ],
)
def test_variables_become_flags(given: list[str], expected: str) -> None:
    assert command(*given) == expected


def test_the_zone_and_the_name_of_the_shell_are_not_meant() -> None:
    line = command("schedule", "CRON=0 3 * * *", TZ="Asia/Tokyo", NAME="laptop")
    assert line == "schedule --settings 'pipelines/settings.toml' --cron '0 3 * * *'"
