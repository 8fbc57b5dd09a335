"""Git commit of the running code."""

import os
import subprocess
from pathlib import Path


def git_sha() -> str:
    """The git commit: ``MF_GIT_SHA`` (set in images), else the checkout's, with ``-dirty`` when files have changed.

    ``unknown`` without either."""
    if sha := os.environ.get("MF_GIT_SHA"):
        return sha
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():
        return "unknown"
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
