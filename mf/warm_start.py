"""An earlier model to start a training from: a model directory, or the run that is published."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from mf.files import directory_written_aside
from mf.model import write_embeddings
from mf.ratings.schema import MOVIE, USER, TrainedOn
from mf.ratings.vocabulary import Vocabulary
from mf.solvers.base import Initial, InitialRows
from mf.supabase.destination import Destination
from mf.supabase.model_directory import Embeddings, Header, read_model

PUBLISHED = "published"
CARD = "model.json"
INIT_FROM = (
    f"start from an earlier model, and train for fewer epochs: a model directory, or {PUBLISHED}, the run that is "
    "published in Supabase; adam and sgd alone"
)


@dataclass(frozen=True)
class EarlierModel:
    """What was exported of a model."""

    header: Header
    users: Embeddings
    movies: Embeddings
    trained_on: TrainedOn | None = None  # None where it does not tell

    @classmethod
    def asked_for(cls, init_from: str, destination: Callable[[], Destination]) -> "EarlierModel | None":
        """The model in the directory ``init_from`` or, for "published", the one that is published at
        ``destination()``; ``None`` when none is asked for or nothing is published. Prints which it is.

        Raises:
            DataError: the directory is no model directory.
            ConfigError: there is no such destination.
            SupabaseError: Supabase cannot be reached, or refused.
        """
        if not init_from:
            return None
        if init_from != PUBLISHED:
            earlier = cls.read(Path(init_from))
        else:
            where = destination()
            run = where.published_run()
            if run is None:
                print("nothing is published yet: starting from nothing")
                return None
            earlier = cls(run.header, *where.embeddings(run), run.trained_on)
        print(f"starting from model {earlier.header.run_id}")
        return earlier

    @classmethod
    def read(cls, directory: Path) -> "EarlierModel":
        """Reads a model directory, or what ``save`` wrote.

        Raises:
            DataError: it is none.
        """
        model = read_model(directory)
        return cls(model.header, model.users, model.movies, model.trained_on)

    def save(self, directory: Path) -> None:
        """Writes what ``asked_for`` reads of a directory, aside and then renamed."""
        with directory_written_aside(directory, seal=CARD) as aside:
            for name, key, side in (("user", USER, self.users), ("movie", MOVIE, self.movies)):
                write_embeddings(aside / f"{name}_embeddings.parquet", key, side.ids, side.bias, side.vectors)
            noted = {"trained_on": self.trained_on and asdict(self.trained_on)}
            (aside / CARD).write_text(json.dumps(asdict(self.header) | noted))

    def initial(self, users: Vocabulary, movies: Vocabulary) -> Initial:
        """It in the rows of ``users`` and ``movies``, as far as it knows them. Ids that it keeps as text are looked up
        as text.

        Raises:
            DataError: its ids are of another type.
        """
        return Initial(self.header.run_id, self.header.mu, _side(self.users, users), _side(self.movies, movies))


def _side(earlier: Embeddings, vocabulary: Vocabulary) -> InitialRows:
    rows = earlier.rows(vocabulary.ids)
    known = np.flatnonzero(rows >= 0)
    columns = known, earlier.vectors[rows[known]], earlier.bias[rows[known]]
    return InitialRows(*map(torch.from_numpy, columns))
