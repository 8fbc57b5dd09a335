"""Which code this is."""

import os
import subprocess
from pathlib import Path


def git_sha() -> str:
    """The commit of this code: ``MF_GIT_SHA`` (an image carries it), else what git says of the checkout that holds this
    file, with ``-dirty`` behind it when files differ; ``unknown`` outside of both."""
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
