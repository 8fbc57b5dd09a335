"""Run each measurement in its own process, with its own memory and threads."""

import importlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The measured values, with cpu_seconds (user and system) and peak_mb (resident, ratings included); after a failure
# {"error": reason}.
Result = dict[str, Any]


def apart(function: Callable[..., Result], **arguments: Any) -> Result:
    """Calls a module-level ``function`` in a new process; ``arguments`` must be JSON values."""
    words = [function.__module__, function.__name__, json.dumps(arguments)]
    done = subprocess.run([sys.executable, "-m", "benchmarks.apart", *words], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"exit status {done.returncode}"}
    result: Result = json.loads(done.stdout.splitlines()[-1])  # libraries may print before it
    return result


def run(label: str, function: Callable[..., Result], **arguments: Any) -> Result:
    """As ``apart``, and prints the result."""
    print(f"{label}:", end=" ", flush=True)
    result = apart(function, **arguments)
    numbers = (f"{key} {value:.5g}" for key, value in result.items() if isinstance(value, int | float))
    print(result.get("error") or ", ".join(numbers), flush=True)
    return result


def twice(label: str, function: Callable[..., Result], **arguments: Any) -> Result:
    """As ``run``, with the result of a second run as ``again``."""
    first = run(label, function, **arguments)
    return first if "error" in first else {**first, "again": run(f"{label}, again", function, **arguments)}


def main() -> None:
    module, function, arguments = sys.argv[1:]
    measured = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    print("\n" + json.dumps({**measured, "cpu_seconds": time.process_time(), "peak_mb": _peak_mb()}))


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    # Not on Linux, where it starts at the parent's memory. In bytes on a Mac.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


if __name__ == "__main__":
    main()
