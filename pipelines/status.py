"""Exit statuses of submitting and following a run."""

NOT_STARTED = 4
NOT_FOLLOWED = 5  # the run continues
FAILED = 6


def watch_hint(run: str) -> str:
    """How to follow a run again."""
    return f"to follow it again: make watch JOB={run}"
