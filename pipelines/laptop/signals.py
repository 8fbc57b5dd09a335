"""Clean shutdown of a local run on signals."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import psutil

EXECUTOR = "kfp.dsl.executor_main"  # part of the command line of every step's process


@contextmanager
def terminating_steps() -> Iterator[None]:
    """Terminates the running step before the program ends on Ctrl-C, on SIGTERM, or with the ``make`` that started it.

    The ``finally`` blocks of the program run then: Ctrl-C raises KeyboardInterrupt, SIGTERM raises SystemExit.
    """

    def stop(number: int, _: FrameType | None) -> NoReturn:
        # kfp.local waits for the step's process, so the step has to end first.
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # Ctrl-C in a terminal reaches the step too, so it may be gone
                if EXECUTOR in child.cmdline():
                    child.terminate()
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    ended = threading.Event()
    if "MAKELEVEL" in os.environ:
        threading.Thread(target=_terminate_with_parent, args=[os.getppid(), ended], daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate_with_parent(parent: int, ended: threading.Event) -> None:
    """Sends SIGTERM to this process when its parent is gone."""
    while not ended.wait(0.5):
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            return
