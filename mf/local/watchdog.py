"""End server processes with the program that started them, however that program ends.

Run as a script this is the watchdog: a separate process that detects the end of the program, even by kill -9, and then
ends the program's servers and every process with its marker in the environment. On Linux the kernel also ends the
servers, at once.
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
    """Starts servers that end with this program.

    While it is open, the environment holds a marker that child processes inherit: remaining ones are ended too.
    """

    def __init__(self) -> None:
        # A unique name, so that two watchdogs do not overwrite each other's marker.
        self.marker = f"{MARKER}_{secrets.token_hex(8)}"
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve()), self.marker],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, cwd="/", text=True,
            # Without the marker of another watchdog, which would end this one too early.
            env={name: value for name, value in os.environ.items() if not name.startswith(MARKER)},
        )  # fmt: skip
        os.environ[self.marker] = "1"

    def spawn(self, args: list[str], stop_by: signal.Signals, **popen: Any) -> subprocess.Popen[bytes]:
        """Start a server that ignores the terminal's Ctrl-C and shuts down cleanly on the signal ``stop_by``."""
        process = subprocess.Popen(
            args, start_new_session=True, cwd="/", preexec_fn=_death_signal(stop_by), stdin=subprocess.DEVNULL, **popen
        )
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # the watchdog was killed
            print(process.pid, int(stop_by), file=self._process.stdin, flush=True)
        return process

    def close(self) -> None:
        """End the processes that still have the marker; callers of ``spawn`` stop their own servers."""
        os.environ.pop(self.marker, None)
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def end(process: subprocess.Popen[bytes], by: signal.Signals) -> None:
    """Shut down a server cleanly; kill it after ``GRACE_S``."""
    process.send_signal(by)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _death_signal(by: signal.Signals) -> Callable[[], None] | None:
    # The kernel sends it when the *forking thread* ends, so only the main thread may request it.
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, int(by))


def _watch(marker: str, parent: int) -> None:
    servers = list[tuple[psutil.Process, int]]()
    # The pipe closes with the program; a forked child may hold its other end, so the parent is checked too.
    while os.getppid() == parent:
        if not select([sys.stdin], [], [], 0.25)[0]:
            continue
        lines = os.read(sys.stdin.fileno(), 4096)
        if not lines:
            break
        for line in lines.splitlines():
            pid, by = map(int, line.split())
            with contextlib.suppress(psutil.NoSuchProcess):
                servers.append((psutil.Process(pid), by))
    end_all([*servers, *((process, signal.SIGTERM) for process in _marked(marker))])
    for _ in range(3):  # processes started in the meantime
        end_all([(process, signal.SIGKILL) for process in _marked(marker)])


def _marked(marker: str) -> list[psutil.Process]:
    marked = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if marker in process.environ() and _runs(process):
                marked.append(process)
    return marked


def end_all(processes: list[tuple[psutil.Process, int]]) -> None:
    """Send each process its signal; kill those still running after ``GRACE_S``."""
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
    # An ended process stays a zombie until its parent reads its status.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


if __name__ == "__main__":
    _watch(sys.argv[1], os.getppid())
