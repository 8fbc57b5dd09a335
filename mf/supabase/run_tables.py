"""Tables that hold the rows of runs: their columns, and the functions that load them through the API."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mf.errors import SupabaseError
from mf.model_directory import PublishedModel

Entity = Literal["user", "movie"]

READ_RUN = "read the published run"  # in errors


@dataclass(frozen=True)
class RunTable:
    """A table with the key (run_id, user_id or movie_id)."""

    name: str
    entity: Entity
    columns: tuple[str, ...]  # ``bias`` is real, ``n`` integer, the others are vectors
    function: str  # loads rows through the API
    arguments: tuple[str, ...]  # of the function, one per column

    @property
    def key(self) -> str:
        return f"{self.entity}_id"

    @property
    def counted(self) -> list[str]:
        """Where a row of ``mf_runs`` has the number of rows: the path of its JSON."""
        of_ranking = self.name not in ("mf_user_embeddings", "mf_movie_embeddings")
        return ["ranking", f"{self.entity}s"] if of_ranking else [f"n_{self.entity}s"]

    @property
    def label(self) -> str:
        """What the rows are, for progress lines and error messages."""
        return self.function.removeprefix("mf_load_").replace("_", " ")


USERS = RunTable("mf_user_embeddings", "user", ("bias", "embedding"), "mf_load_users", ("biases", "embeddings"))
MOVIES = RunTable("mf_movie_embeddings", "movie", ("bias", "embedding"), "mf_load_movies", ("biases", "embeddings"))
USER_RANKING = RunTable("mf_user_ranking", "user", ("vector",), "mf_load_user_ranking", ("vectors",))
MOVIE_RANKING = RunTable("mf_movie_ranking", "movie", ("vector",), "mf_load_movie_ranking", ("vectors",))
MOVIE_HISTORY = RunTable(
    "mf_movie_history", "movie", ("history", "liking"), "mf_load_movie_history", ("histories", "likings")
)
MOVIE_COUNTS = RunTable("mf_movie_counts", "movie", ("n",), "mf_load_movie_counts", ("counts",))


@dataclass(frozen=True)
class TableRows:
    """The rows of one run in a table: ``ids`` [n], and float32[n], int32[n] or float32[n, factors] per column."""

    table: RunTable
    ids: pa.Array
    values: tuple[npt.NDArray[Any], ...]

    def __len__(self) -> int:
        return len(self.ids)


def stores_user_ranking(options: Mapping[str, Any]) -> bool:
    """Whether users' ranking vectors are stored; a migration that knows the table of ratings sums them up itself."""
    return not options["ratings_table"]


def rows_of(model: PublishedModel, options: Mapping[str, Any]) -> list[TableRows]:
    """The rows that publish ``model``, table by table; without a star model, bias and embedding are null.

    Args:
        options: of the database's migration.
    """
    if model.movies and model.users:
        rows = [
            TableRows(MOVIES, model.movies.ids, (model.movies.bias, model.movies.vectors)),
            TableRows(USERS, model.users.ids, (model.users.bias, model.users.vectors)),
        ]
    else:
        ids = ((MOVIES, model.movie_ids), (USERS, model.user_ids))
        rows = [TableRows(replace(table, columns=(), arguments=()), each, ()) for table, each in ids]
    if counts := model.movie_counts:
        rows.append(TableRows(MOVIE_COUNTS, counts.ids, (counts.ratings,)))
    if ranking := model.ranking:
        vectors = np.column_stack([ranking.embedding, ranking.bias])
        rows += [
            TableRows(MOVIE_RANKING, ranking.movie_ids, (vectors,)),
            TableRows(MOVIE_HISTORY, ranking.movie_ids, (ranking.history, ranking.liking)),
        ]
        if stores_user_ranking(options):
            rows.append(TableRows(USER_RANKING, ranking.user_ids, (ranking.vectors,)))
    return rows


def incomplete(run_id: str) -> SupabaseError:
    """The error for a run that is missing rows."""
    return SupabaseError(
        f"run {run_id} is not, or no longer, complete in the database: start again with the published run"
    )
