"""Runs the pipeline on this machine, against an embedded Supabase.

``kfp.local`` runs the same pipeline function that is compiled for Vertex AI.
"""

import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from kfp import local
from kfp.local import subprocess_task_handler

from mf.errors import MfError
from mf.local import LocalSupabase
from mf.supabase.schema import migration
from pipelines.laptop.interpreter import use_this_interpreter
from pipelines.laptop.signals import terminating_steps
from pipelines.laptop.sources import LocalSource
from pipelines.laptop.step_log import StepLog
from pipelines.laptop.summary import print_summary
from pipelines.settings import Settings
from pipelines.training import NAME, NO_GPU, build

KEPT_RUNS = 3  # per source


def run(source: LocalSource, parameters: Mapping[str, Any], home: Path) -> None:
    """Runs all steps of the pipeline, then prints a summary.

    Args:
        source: the ratings and their database.
        parameters: of the pipeline, in addition to the source's.
        home: folder of the databases and of the steps' outputs.

    Raises:
        MfError: a step failed, or the embedded Supabase did.
    """
    folder = home / "runs" / source.database
    folder.mkdir(parents=True, exist_ok=True)
    no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY"), os.environ.get("no_proxy"), "127.0.0.1"]))
    with (
        terminating_steps(),
        environment(NO_PROXY=no_proxy, no_proxy=no_proxy),
        LocalSupabase(home / "supabase", source.database) as supabase,
    ):
        views = {k: v for k, v in parameters.items() if k.endswith("_export_table")}
        schema = source.schema(supabase)
        supabase.migrate(migration(type(schema).of(**{**schema.model_dump(), **views})))
        # KFP leaves each step's source code in the temporary folder.
        with (
            tempfile.TemporaryDirectory(dir=folder) as temporary,
            environment(SUPABASE_URL=supabase.url, SUPABASE_KEY=supabase.secret_key, TMPDIR=temporary),
        ):
            earlier = sorted(folder.glob(f"{NAME}-*"))
            run_steps({**parameters, **source.parameters, "supabase_url": supabase.url}, folder)
        (outputs,) = set(folder.glob(f"{NAME}-*")).difference(earlier)
        for outdated in earlier[: -KEPT_RUNS + 1]:
            shutil.rmtree(outdated)
        print_summary(source, schema, supabase, outputs)


def run_steps(parameters: Mapping[str, Any], folder: Path) -> None:
    """Runs the pipeline's steps in sequence, each in its own process.

    Prints the steps' output, and writes everything that kfp.local prints to ``log.txt`` in ``folder``.

    Raises:
        MfError: a step failed.
    """
    use_this_interpreter()
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder))
    with (
        closing(StepLog(folder / "log.txt", sys.stdout)) as log,
        redirect_stdout(log),
        warnings.catch_warnings(),
        statuses() as ended,
    ):
        # These warnings are about machine types and images, which a local run does not use.
        warnings.filterwarnings(
            "ignore", message=".*(have no effect in the current local runner|non-Python base image)"
        )
        try:
            # A GPU is optional here, and used when there is one. Retrying would only repeat an error.
            gpus = parameters.get("train_accelerator_count", 0)
            pipeline = build(Settings(retries=0), {"train_accelerator_count": gpus})
            pipeline(**{name: value for name, value in parameters.items() if gpus or name not in NO_GPU})
        except RuntimeError:
            reason = f": {log.error}" if log.error else f"{_death(ended)}; see {folder / 'log.txt'}"
            raise MfError(f"the step {log.step} failed{reason}") from None


@contextmanager
def statuses() -> Iterator[list[int]]:
    """The exit statuses of the steps' processes, which kfp.local does not tell; negative: the signal that ended it."""
    ended: list[int] = []
    wait_for = subprocess_task_handler.run_local_subprocess

    def run_local_subprocess(*arguments: Any, **options: Any) -> int:
        ended.append(wait_for(*arguments, **options))
        return ended[-1]

    subprocess_task_handler.run_local_subprocess = run_local_subprocess
    try:
        yield ended
    finally:
        subprocess_task_handler.run_local_subprocess = wait_for


def _death(ended: list[int]) -> str:
    """The signal that ended the last process; a shell gives it as 128 + number."""
    number = -ended[-1] if ended and ended[-1] < 0 else ended[-1] - 128 if ended else 0
    if number not in set(signal.Signals):
        return ""
    memory = ", probably for lack of memory" if number == signal.SIGKILL else ""
    return f": its process was ended by {signal.Signals(number).name}{memory}"


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Sets environment variables for the steps, and removes the ``SUPABASE_…`` variables of the user's own project."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("SUPABASE_"):
            del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
