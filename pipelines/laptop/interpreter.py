"""Runs the steps of ``kfp.local`` with this Python, wherever it is installed."""

import shlex
from collections.abc import Sequence

from kfp.local import subprocess_task_handler

SCRIPT = "-m kfp.dsl.executor_main"  # in the shell script that starts a step


def with_interpreter(command: Sequence[str], python: str) -> list[str]:
    """A step's command with ``python3`` replaced by the path ``python`` in the shell script, and nowhere else.

    KFP does not quote the path, and replaces the word in the step's parameters too.
    """
    return [part.replace("python3", shlex.quote(python)) if SCRIPT in part else part for part in command]


def use_this_interpreter() -> None:
    """Makes ``kfp.local`` call ``with_interpreter``."""
    subprocess_task_handler.replace_python_executable = with_interpreter
