"""The pipeline on one machine: the function that is compiled for Vertex AI, run through ``kfp.local`` against an
embedded Supabase."""

import os
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil
from kfp import local

from mf.errors import MfError
from mf.local import LocalSupabase
from mf.supabase.schema import migration
from pipelines.laptop.sources import Source
from pipelines.laptop.step_log import StepLog
from pipelines.laptop.summary import summarise
from pipelines.settings import Settings
from pipelines.training import NAME, build

KEPT_RUNS = 3  # of each source
EXECUTOR = "kfp.dsl.executor_main"  # stands in the command of every step's process


def run(source: Source, parameters: Mapping[str, Any], home: Path) -> None:
    """Trains, evaluates and, when the gate lets it, publishes; then prints what a reader of the published run gets.

    Args:
        source: the ratings.
        parameters: of the pipeline, beyond the source's own.
        home: folder for the databases and for what the steps write.

    Raises:
        MfError: a step failed, or the embedded Supabase did.
    """
    folder = home / "runs" / source.database
    folder.mkdir(parents=True, exist_ok=True)
    direct = ",".join(filter(None, [os.environ.get("NO_PROXY"), os.environ.get("no_proxy"), "127.0.0.1"]))
    with (
        stopping(),
        environment(NO_PROXY=direct, no_proxy=direct),
        LocalSupabase(home / "supabase", source.database) as supabase,
    ):
        views = {k: v for k, v in parameters.items() if k.endswith("_export_table")}
        schema = source.schema(supabase)
        supabase.migrate(migration(type(schema).of(**{**schema.model_dump(), **views})))
        # KFP leaves each step's source in the temporary folder.
        with (
            tempfile.TemporaryDirectory(dir=folder) as temporary,
            environment(SUPABASE_URL=supabase.url, SUPABASE_KEY=supabase.secret_key, TMPDIR=temporary),
        ):
            old = sorted(folder.glob(f"{NAME}-*"))
            run_steps({**parameters, **source.parameters, "supabase_url": supabase.url}, folder)
        (outputs,) = set(folder.glob(f"{NAME}-*")).difference(old)
        for earlier in old[: -KEPT_RUNS + 1]:
            shutil.rmtree(earlier)
        summarise(source, schema, supabase, outputs)


def run_steps(parameters: Mapping[str, Any], folder: Path) -> None:
    """Runs the pipeline's steps one after another, each in a process of its own; shows their lines, and keeps all that
    the runner prints in ``log.txt``."""
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder))
    with closing(StepLog(folder / "log.txt", sys.stdout)) as log, redirect_stdout(log), warnings.catch_warnings():
        # A laptop has the machine it has; the image is not used.
        warnings.filterwarnings(
            "ignore", message=".*(have no effect in the current local runner|non-Python base image)"
        )
        try:
            # No GPU has to be there; one that is there is used. What fails here fails again.
            build(Settings(retries=0))(**{"train_accelerator_count": 0, **parameters})
        except RuntimeError:
            failed = f"the step {log.step} failed"
            raise MfError(f"{failed}: {log.error}" if log.error else f"{failed}; see {folder / 'log.txt'}") from None


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Sets variables that the steps' processes inherit, in place of any Supabase project of the user's own."""
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


@contextmanager
def stopping() -> Iterator[None]:
    """Ctrl-C, SIGTERM and the end of a ``make`` that started this end the step that runs, and then the program in good
    order."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        # kfp.local waits for the step's process, so that has to end first.
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # Ctrl-C on a terminal reaches it too: it may end meanwhile
                if EXECUTOR in child.cmdline():
                    child.terminate()
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    over = threading.Event()
    if "MAKELEVEL" in os.environ:
        threading.Thread(target=_end_with_parent, args=[os.getppid(), over], daemon=True).start()
    try:
        yield
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent(parent: int, over: threading.Event) -> None:
    while not over.wait(0.5):
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            return
