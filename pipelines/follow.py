"""Following a run to its end, and the exit statuses of commands that start or follow one."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TypeVar

from mf.errors import MfError
from pipelines.settings import Settings

NOT_STARTED = 4
NOT_FOLLOWED = 5  # the run continues
FAILED = 6
FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELLED", "CANCELED", "PAUSED", "SKIPPED")
POLL_S = 15
MAX_FAILED_POLLS = 10  # in a row
T = TypeVar("T")


def watch_command(settings: Settings, run: str) -> str:
    """The command that follows a run."""
    return f"make watch {settings.on_make}JOB={run}"


def follow_run(
    states: Callable[[], Mapping[str, str]], errors: Callable[[], Iterable[str]], console: str, watch: str
) -> int:
    """Prints every change of state of a run and its steps until the run ends, and the errors of a failed run.

    Ctrl-C stops following, with exit status 130; the run continues.

    Args:
        states: fetches the state by step, and that of the run under "run"; it raises an ``MfError`` if it cannot.
        errors: sentences about a run that failed.
        console: address of the run's page.
        watch: the command that follows it again.

    Returns:
        An exit status: 0, the run succeeded; ``FAILED``; or ``NOT_FOLLOWED``, when the states cannot be fetched.
    """
    again = f"to follow it again: {watch}"
    now: Mapping[str, str] = {}
    try:
        while now.get("run") not in FINAL_STATES:
            if now:
                time.sleep(POLL_S)
            before, now = now, states()
            for name, state in now.items():
                if state != before.get(name):
                    print(f"{datetime.now():%H:%M:%S}  {name:<9} {state.lower().replace('_', ' ')}", flush=True)
    except KeyboardInterrupt:
        print(f"stopped following; the run continues: {console}; {again}", file=sys.stderr)
        sys.exit(130)
    except MfError as error:
        print(f"error: {error}; {again}", file=sys.stderr)
        return NOT_FOLLOWED
    if now["run"] == "SUCCEEDED":
        return 0
    if now["run"] == "PAUSED":
        print(f"error: the run is paused; {again}", file=sys.stderr)
        return NOT_FOLLOWED
    for line in errors():
        print(f"error: {line}", file=sys.stderr)
    return FAILED


def fetched(
    fetch: Callable[[], T],
    failures: tuple[type[Exception], ...],
    is_final: Callable[[Exception], bool],
    is_gone: Callable[[Exception], bool],
    words: Callable[[object], str],
) -> T:
    """What ``fetch`` returns, tried for some minutes, so that following a run of hours survives an outage.

    Args:
        failures: the errors that it raises when it cannot reach the service.
        is_final: whether one of them would come again.
        is_gone: whether one of them says that there is no such run.
        words: an error in one line.

    Raises:
        MfError: it cannot be fetched.
    """
    failed = 0
    while True:
        try:
            return fetch()
        except failures as error:
            if is_gone(error):
                raise MfError("there is no such run any more; it may have been deleted") from error
            failed += 1
            if failed == MAX_FAILED_POLLS or is_final(error):
                raise MfError(f"the run continues, but its state cannot be fetched: {words(error)}") from error
            time.sleep(POLL_S)
