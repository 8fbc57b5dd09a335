"""Runs the pipeline on this machine, against an embedded Supabase.

``kfp.local`` runs the same pipeline function that is compiled for Vertex AI.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from kfp import local
from kfp.local import subprocess_task_handler

from mf.errors import MfError
from mf.local import LocalSupabase
from mf.reuse import FOLDER
from mf.supabase.config import ExportConfig
from mf.supabase.find import find_target
from mf.supabase.schema import migration
from pipelines.laptop.interpreter import use_this_interpreter
from pipelines.laptop.own import OwnSource
from pipelines.laptop.signals import terminating_steps
from pipelines.laptop.sources import LocalSource
from pipelines.laptop.step_log import StepLog
from pipelines.laptop.summary import print_own_summary, print_summary
from pipelines.settings import Settings
from pipelines.training import NAME, NO_GPU, build

KEPT_RUNS = 3  # per source
LOCAL = Settings(retries=0)


def run(source: LocalSource, parameters: Mapping[str, Any], home: Path, fresh: bool = False) -> None:
    """Runs all steps of the pipeline, then prints a summary.

    Args:
        fresh: read a file again that an earlier run has read.
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
        environment(NO_PROXY=no_proxy, no_proxy=no_proxy, **ingested(home, fresh)),
        LocalSupabase(home / "supabase", source.database) as supabase,
    ):
        views = {k: v for k, v in parameters.items() if k.endswith("_export_table")}
        schema = source.schema(supabase)
        supabase.migrate(migration(type(schema).of(**{**schema.model_dump(), **views})))
        remove_leftovers(folder)
        # KFP leaves each step's source code in the temporary folder.
        with (
            tempfile.TemporaryDirectory(dir=folder) as temporary,
            environment(
                SUPABASE_URL=supabase.url,
                SUPABASE_KEY=supabase.secret_key,
                SUPABASE_DB_URL=supabase.db_url,  # faster than the API
                TMPDIR=temporary,
            ),
        ):
            earlier = sorted(folder.glob(f"{NAME}-*"))
            started = time.monotonic()
            run_steps({**parameters, **source.parameters, "supabase_url": supabase.url}, folder)
            (outputs,) = set(folder.glob(f"{NAME}-*")).difference(earlier)
            remove_outdated(earlier[: -KEPT_RUNS + 1])
        print_summary(source, schema, supabase, outputs, time.monotonic() - started)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed runs left in ``folder``: temporary folders, and outputs without an evaluation.

    No other run uses the folder: the caller holds the lock of its database.
    """
    unfinished = [one for one in folder.glob(f"{NAME}-*") if not (one / "evaluate" / "evaluation.json").exists()]
    for leftover in [*folder.glob(f"{tempfile.gettempprefix()}*"), *unfinished]:
        shutil.rmtree(leftover, ignore_errors=True)


def remove_outdated(folders: Iterable[Path]) -> None:
    """Removes the outputs of earlier runs, but not those with which the next run is compared."""
    published = find_target().published_run()
    compared = published and published.judged and published.judged.directory()
    for folder in folders:
        if not (compared and compared.is_relative_to(folder)):
            shutil.rmtree(folder)


def ingested(home: Path, fresh: bool) -> dict[str, str]:
    """The environment variable that says where the checked and split ratings of unchanged sources are kept."""
    folder = home / "ingested"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    return {FOLDER: str(folder)}


def run_own(source: OwnSource, parameters: Mapping[str, Any], home: Path, fresh: bool = False) -> None:
    """Runs all steps of the pipeline against the user's own project, then prints a summary.

    Args:
        fresh: read a file again that an earlier run has read.
        source: the ratings and the project.
        parameters: of the pipeline, in addition to the source's.
        home: folder of the steps' outputs; the last report and verdict are copied there.

    Raises:
        MfError: the project does not fit, or a step failed.
    """
    folder = home / "runs" / source.folder
    folder.mkdir(parents=True, exist_ok=True)
    with terminating_steps(), environment(**source.project.environment(), **ingested(home, fresh)):
        views = {name: value for name, value in parameters.items() if name in ExportConfig.model_fields}
        schema = source.project.schema(views)
        with tempfile.TemporaryDirectory(dir=folder) as temporary, environment(True, TMPDIR=temporary):
            earlier = sorted(folder.glob(f"{NAME}-*"))
            started = time.monotonic()
            run_steps({**parameters, **source.parameters}, folder)
        (outputs,) = set(folder.glob(f"{NAME}-*")).difference(earlier)
        remove_outdated(earlier[: -KEPT_RUNS + 1])
        shutil.copy(outputs / "evaluate" / "report.html", home / "report.html")
        shutil.copy(outputs / "verdict.txt", home / "verdict.txt")
        print_own_summary(source, schema, outputs, time.monotonic() - started)


def run_steps(parameters: Mapping[str, Any], folder: Path, settings: Settings = LOCAL) -> None:
    """Runs the pipeline's steps in sequence, each in its own process.

    Prints the steps' output, and writes everything that kfp.local prints to ``log.txt`` in ``folder``. Images, machines
    and secrets of the settings have no effect here.

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
            pipeline = build(settings, {"train_accelerator_count": gpus})
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
def environment(keep_supabase: bool = False, /, **values: str) -> Iterator[None]:
    """Sets environment variables for the steps, and removes the ``SUPABASE_…`` variables of the user's own project,
    unless told to keep them."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("SUPABASE_") and not keep_supabase:
            del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
