"""Trials of a sweep and their journal file, from which a killed sweep resumes."""

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mf.errors import ConfigError, DataError
from mf.files import written_aside

JOURNAL = "trials.json"  # in a model directory that is not finished


@dataclass(frozen=True)
class Trial:
    """One training of a sweep."""

    number: int  # from 1; the first has the options of the run
    solver: str  # or ease: the ranking model
    options: dict[str, float] = field(default_factory=dict)  # values of all options that the sweep changes
    value: float | None = None  # of the objective; None: it failed
    seconds: float = 0.0
    failure: str = ""  # why there is no value
    # What Optuna is told: the values within their ranges. The first trial's may lie outside.
    params: dict[str, Any] = field(default_factory=dict)

    def shown(self) -> str:
        """``vb: rank 12, fits 4``."""
        values = ", ".join(f"{name} {value:.4g}" for name, value in self.options.items())
        return f"{self.solver}: {values}" if values else self.solver


class Journal:
    """The finished trials of a sweep in a JSON file, replaced atomically after every trial.

    Args:
        path: the file; it need not exist. ``None``: the trials are not kept.
        sweep: what the trials belong to: ratings, options, seed.
    """

    def __init__(self, path: Path | None, sweep: Mapping[str, Any]) -> None:
        self.path = path
        self.sweep = json.loads(json.dumps(sweep))  # as it is read

    def read(self) -> list[Trial]:
        """The finished trials.

        Raises:
            DataError: the file is not a journal.
            ConfigError: its trials belong to another sweep.
        """
        if not self.path or not self.path.exists():
            return []
        try:
            saved = json.loads(self.path.read_text())
            sweep, trials = saved["sweep"], [Trial(**trial) for trial in saved["trials"]]
            if [trial.number for trial in trials] != [*range(1, len(trials) + 1)]:
                raise ValueError("trials are missing")
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"{self.path} is not a journal of trials: {' '.join(str(error).split())[:200]}; delete it to start "
                "from scratch"
            ) from None
        differing = [name for name in {**self.sweep, **sweep} if self.sweep.get(name) != sweep.get(name)]
        if differing:
            raise ConfigError(
                f"{self.path} holds {len(trials)} trials of another sweep, with other {' and '.join(differing)}: use "
                "the same ratings and options, or delete the file to start from scratch"
            )
        return trials

    def write(self, trials: Sequence[Trial]) -> None:
        """Replaces the file."""
        if self.path:
            document = {"sweep": self.sweep, "trials": [asdict(trial) for trial in trials]}
            with written_aside(self.path) as aside:
                aside.write_text(json.dumps(document, indent=1) + "\n")


def remove_journal(path: Path) -> None:
    """Deletes a journal, and unfinished files of killed processes."""
    path.unlink(missing_ok=True)
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        part.unlink(missing_ok=True)
