"""Initial values for training from an earlier model: a model directory or the published run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mf.model_directory import Embeddings, Header, no_star_model, read_model, write_published
from mf.ratings.schema import TrainedOn
from mf.ratings.vocabulary import Vocabulary
from mf.solvers.base import Initial, InitialRows
from mf.solvers.config import PUBLISHED
from mf.supabase.target import Target


@dataclass(frozen=True)
class EarlierModel:
    """The exported part of an earlier model."""

    header: Header
    users: Embeddings
    movies: Embeddings
    trained_on: TrainedOn | None = None  # None: not recorded

    @classmethod
    def find(cls, init_from: str, target: Callable[[], Target]) -> "EarlierModel | None":
        """The model that ``init_from`` names; prints which one it is.

        Args:
            init_from: a model directory; "published": the published run of ``target()``; "": no model.

        Returns:
            ``None`` for "", and for "published" when no run is published or it was trained on clicks.

        Raises:
            DataError: the directory is not a model directory.
            ConfigError: ``target`` is not configured.
            SupabaseError: Supabase cannot be reached, or refused.
        """
        if not init_from:
            return None
        if init_from != PUBLISHED:
            earlier = cls.read(Path(init_from))
        else:
            supabase = target()
            run = supabase.published_run()
            if run is None:
                print("no run is published yet: training starts from scratch")
                return None
            if not run.header.has_stars:
                print(f"the published run {run.header.run_id} has no star model: training starts from scratch")
                return None
            if run.judged and run.judged.run_id:
                # The published run has seen the test ratings, and so would a model that starts from it.
                twin = run.judged.directory()
                if twin is None:
                    print(
                        f"the published run {run.header.run_id} was trained on all ratings, and the model that was "
                        "judged before is not here: training starts from scratch"
                    )
                    return None
                earlier = cls.read(twin)
            else:
                earlier = cls(run.header, *supabase.embeddings(run), run.trained_on)
        print(f"starting from model {earlier.header.run_id}")
        return earlier

    @classmethod
    def read(cls, directory: Path) -> "EarlierModel":
        """Read a model directory, or a directory written by ``save``.

        Raises:
            DataError: a file is missing or malformed, or the model was trained on clicks.
        """
        model = read_model(directory)
        if model.users is None or model.movies is None:
            raise no_star_model(model.header.run_id)
        return cls(model.header, model.users, model.movies, model.trained_on)

    def save(self, directory: Path) -> None:
        """Write what ``read`` reads, atomically."""
        write_published(directory, self.header, self.users, self.movies, self.trained_on)

    def initial(self, users: Vocabulary, movies: Vocabulary) -> Initial:
        """Initial vectors and biases for the rows of ``users`` and ``movies`` that this model knows. Where its ids are
        text they are compared as text.

        Raises:
            DataError: its ids are of another type.
        """
        return Initial(
            self.header.run_id, self.header.stars()["mu"], _initial(self.users, users), _initial(self.movies, movies)
        )


def _initial(earlier: Embeddings, vocabulary: Vocabulary) -> InitialRows:
    rows = earlier.rows(vocabulary.ids)
    known = np.flatnonzero(rows >= 0)
    columns = known, earlier.vectors[rows[known]], earlier.bias[rows[known]]
    return InitialRows(*map(torch.from_numpy, columns))
