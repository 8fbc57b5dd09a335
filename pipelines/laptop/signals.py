"""Clean shutdown of a local run on signals."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import psutil

MAKE = "MF_MAKE_PID"  # variable with the process id of the make that started the program
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
    if make := os.environ.get(MAKE):
        threading.Thread(target=_terminate_with, args=[int(make), ended], daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate_with(make: int, ended: threading.Event) -> None:
    """Sends SIGTERM to this process when ``make`` is not one of its ancestors any more.

    It may be gone before this program has started, and a shell between the two may outlive it.
    """
    this = psutil.Process()
    while make in (ancestor.pid for ancestor in this.parents()):
        if ended.wait(0.5):
            return
    os.kill(os.getpid(), signal.SIGTERM)
