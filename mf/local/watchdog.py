"""Nothing outlives the program that started it, however that program ends.

Run as a script this is the watchdog: a process of its own that sees the program end, even by kill -9, and then ends the
program's servers and every process that carries its marker. On Linux the kernel ends the servers too, at once.
"""

import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from select import select
from typing import Any

import psutil

MARKER = "MF_LOCAL_SUPABASE"
PR_SET_PDEATHSIG = 1
GRACE_S = 10.0


class Watchdog:
    """Starts servers that end with this program. While it stands, the environment carries a marker that the program's
    child processes inherit: those that are left are ended too."""

    def __init__(self) -> None:
        # A name of its own for each, so that two of them never overwrite one another.
        self.marker = f"{MARKER}_{secrets.token_hex(8)}"
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve()), self.marker],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, cwd="/", text=True,
            # Without the marker of another one, which would end this one before its work is done.
            env={name: value for name, value in os.environ.items() if not name.startswith(MARKER)},
        )  # fmt: skip
        os.environ[self.marker] = "1"

    def spawn(self, args: list[str], stop_by: signal.Signals, **popen: Any) -> subprocess.Popen[bytes]:
        """Starts a server that Ctrl-C on the terminal does not reach and that ``stop_by`` ends in good order."""
        process = subprocess.Popen(
            args, start_new_session=True, cwd="/", preexec_fn=_death_signal(stop_by), stdin=subprocess.DEVNULL, **popen
        )
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # a watchdog that was killed watches nothing
            print(process.pid, int(stop_by), file=self._process.stdin, flush=True)
        return process

    def close(self) -> None:
        """Ends what still carries the marker; the servers are stopped by whoever started them."""
        os.environ.pop(self.marker, None)
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def end(process: subprocess.Popen[bytes], by: signal.Signals) -> None:
    """Ends a server in good order, by force when that takes longer than ``GRACE_S``."""
    process.send_signal(by)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _death_signal(by: signal.Signals) -> Callable[[], None] | None:
    # The kernel sends it when the *thread* that forked ends, so only the main thread may ask for it.
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, int(by))


def _watch(marker: str, parent: int) -> None:
    servers = list[tuple[psutil.Process, int]]()
    # The pipe ends with the program; a child that it forked may hold the other end, so the parent is looked at too.
    while os.getppid() == parent:
        if not select([sys.stdin], [], [], 0.25)[0]:
            continue
        told = os.read(sys.stdin.fileno(), 4096)
        if not told:
            break
        for line in told.splitlines():
            pid, by = map(int, line.split())
            with contextlib.suppress(psutil.NoSuchProcess):
                servers.append((psutil.Process(pid), by))
    end_all([*servers, *((process, signal.SIGTERM) for process in _marked(marker))])
    for _ in range(3):  # what the marked processes started meanwhile
        end_all([(process, signal.SIGKILL) for process in _marked(marker)])


def _marked(marker: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if marker in process.environ() and _runs(process):
                found.append(process)
    return found


def end_all(processes: list[tuple[psutil.Process, int]]) -> None:
    """Sends each its signal, and ends by force what still runs after ``GRACE_S``."""
    for process, by in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(by)
    deadline = time.monotonic() + GRACE_S
    while (left := [process for process, _ in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _runs(process: psutil.Process) -> bool:
    # One that ended stays a zombie for as long as its parent does not ask for its status.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


if __name__ == "__main__":
    _watch(sys.argv[1], os.getppid())
