"""Measurements, each in a process of its own: its memory and its threads are then nobody else's."""

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What was measured, with cpu_seconds (user and system) and peak_mb (resident, the ratings included); or, when it could
# not be measured, {"error": why}.
Result = dict[str, Any]


def apart(function: Callable[..., Result], **arguments: Any) -> Result:
    """Calls a module's ``function`` in a new process, with ``arguments`` that JSON can carry."""
    words = [function.__module__, function.__name__, json.dumps(arguments)]
    done = subprocess.run([sys.executable, "-m", "benchmarks.apart", *words], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return {"error": said[-1] if said else f"it ended with status {done.returncode}"}
    result: Result = json.loads(done.stdout.splitlines()[-1])  # a library may have printed before it
    return result


def run(label: str, function: Callable[..., Result], **arguments: Any) -> Result:
    """As ``apart``, and prints what came of it."""
    print(f"{label}:", end=" ", flush=True)
    result = apart(function, **arguments)
    numbers = (f"{key} {value:.5g}" for key, value in result.items() if isinstance(value, int | float))
    print(result.get("error") or ", ".join(numbers), flush=True)
    return result


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    module, function, arguments = sys.argv[1:]
    measured = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    print("\n" + json.dumps({**measured, "cpu_seconds": time.process_time(), "peak_mb": _peak_mb()}))


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    # Not on Linux, where it begins with the memory of the process that started this one. In bytes on a Mac.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


if __name__ == "__main__":
    main()
