"""Time and memory of a command's processes, sampled while it runs."""

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.apart import Result, run

EVERY_S = 0.1


@dataclass
class Seen:
    """A process of a command: seconds since the command began, CPU seconds, largest resident memory in MB."""

    process: psutil.Process
    started_s: float
    ended_s: float = 0.0
    cpu_s: float = 0.0
    peak_mb: float = 0.0
    words: Sequence[str] = field(default_factory=list)  # its command line


@dataclass(frozen=True)
class Finished:
    """An ended command, with its output on stdout and stderr."""

    seconds: float
    status: int
    output: str
    processes: list[Seen]


def servers_cpu_s() -> float:
    """CPU seconds so far of PostgreSQL, its ended backends included, and PostgREST that this process started."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("postg"):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def beside_servers(label: str, function: Callable[..., Result], **arguments: Any) -> Result:
    """As ``run``, with server_cpu_s: the CPU seconds meanwhile of the embedded Supabase that this process holds."""
    before = servers_cpu_s() + time.process_time()  # the gateway is a thread of this process
    result = run(label, function, **arguments)
    return {**result, "server_cpu_s": servers_cpu_s() + time.process_time() - before}


def watch(command: Sequence[str]) -> Finished:
    """Runs a command and samples it and its descendants every ``EVERY_S``.

    The figures of a process are those of its last sample, so its CPU time and end may be up to ``EVERY_S`` too low.
    """
    began, started = time.time(), time.perf_counter()
    ended = threading.Event()
    before = set(psutil.pids())
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        seen: dict[int, Seen] = {}
        sampler = threading.Thread(target=_sample, args=(process.pid, began, before, seen, ended), daemon=True)
        sampler.start()
        output, _ = process.communicate()
        seconds = time.perf_counter() - started
        ended.set()
        sampler.join()
    return Finished(seconds, process.returncode, output, list(seen.values()))


def _sample(root: int, began: float, others: set[int], seen: dict[int, Seen], ended: threading.Event) -> None:
    """Samples the process ``root`` and its descendants into ``seen`` by process id, until ``ended``."""
    while not ended.wait(EVERY_S):
        for pid in psutil.pids():
            if pid not in others:
                with contextlib.suppress(psutil.Error, OSError):
                    _look(pid, root, began, seen)


def _look(pid: int, root: int, began: float, seen: dict[int, Seen]) -> None:
    if pid not in seen:
        process = psutil.Process(pid)
        if pid != root and process.ppid() not in seen:
            return
        # Their clock is coarse, so the first one's creation is the beginning.
        first = seen[root].process if seen else process
        seen[pid] = Seen(process, process.create_time() - first.create_time())
    one = seen[pid]
    peak = _peak_mb(one.process)
    times = one.process.cpu_times()
    one.cpu_s, one.peak_mb = times.user + times.system, max(one.peak_mb, peak)
    one.ended_s = time.time() - began
    one.words = one.process.cmdline() or one.words


def _peak_mb(process: psutil.Process) -> float:
    status = Path(f"/proc/{process.pid}/status")
    if status.exists():
        peak = status.read_text().partition("VmHWM:")[2].split()
        if not peak:  # it has ended, and its parent has not asked yet
            raise psutil.ZombieProcess(process.pid)
        return int(peak[0]) / 1024
    return float(process.memory_info().rss) / (1 << 20)
