"""One training: its sweep, both models, checkpoint and journal. The library, the commands and the pipeline run it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from mf.checkpoint import CheckpointFile, reporter
from mf.config import Config
from mf.model_directory import TrainedModel
from mf.ranking import RankingConfig
from mf.ratings.schema import in_memory
from mf.sweep.config import Choices, SweepConfig
from mf.sweep.journal import remove_journal
from mf.sweep.search import Found, search
from mf.train import train


@dataclass(frozen=True)
class Plan:
    """What to train, with fixed options or with those that a sweep finds.

    Attributes:
        config: the solver's options.
        ranking: options of the ranking model; None: none is trained.
        sweep, choices: the sweep, if one is wanted, and what it may change.
        checkpoint: file that the star model's training resumes from; None: none is written.
        journal: file that the sweep resumes from; None: none is written.
    """

    config: Config
    ranking: RankingConfig | None
    sweep: SweepConfig
    choices: Choices
    checkpoint: CheckpointFile | None = None
    journal: Path | None = None

    def train(
        self,
        ratings: pa.Table | Path,
        validation: pa.Table | Path,
        *,
        device: torch.device,
        say: Callable[[str], None],
        relevance_threshold: float | None = None,
        **options: Any,
    ) -> tuple[TrainedModel, Found | None]:
        """Trains on ``ratings``; returns the model and, after a sweep, what was found.

        Args:
            ratings, validation, device, options: as for ``mf.train.train``.
            say: gets a line per trial, per epoch and per pass of the ranking model.
            relevance_threshold: as for ``mf.sweep.search.search``.

        Raises:
            MfError: as ``mf.train.train`` and ``mf.sweep.search.search``.
        """
        config, ranking, found = self.config, self.ranking, None
        if self.sweep.wanted:
            ratings, validation = map(in_memory, (ratings, validation))
            found = search(
                ratings, validation, self.sweep, self.choices,
                device=device, seed=config.model_dump()["seed"], relevance_threshold=relevance_threshold,
                journal=self.journal, say=say,
            )  # fmt: skip
            config, ranking = found.config, found.ranking
            say(found.line())
        model = train(
            ratings, validation, config,
            device=device, callbacks=[reporter(self.checkpoint, say)], checkpoint=self.checkpoint, ranking=ranking,
            progress=lambda report: say(report.line()), **options,
        )  # fmt: skip
        if found:
            model.metrics["sweep"] = found.record()
        return model, found

    def clean_up(self) -> None:
        """Removes the checkpoint and the journal, once the model is safe."""
        if self.checkpoint:
            self.checkpoint.remove()
        if self.journal and self.sweep.wanted:
            remove_journal(self.journal)
