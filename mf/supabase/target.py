"""A Supabase project that models are published to, over either connection.

``RestTarget`` uses the REST API, ``DirectTarget`` the database connection; ``mf.supabase.find`` chooses one of them.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from mf.errors import DataError, SupabaseError
from mf.fold_in import prior
from mf.model_directory import (
    STARS,
    Embeddings,
    Header,
    PublishedModel,
    PublishedRanking,
    no_star_model,
    read_model,
    read_run_id,
)
from mf.ratings.schema import TrainedOn, id_type
from mf.ratings.vocabulary import Vocabulary
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.run_tables import (
    MOVIE_HISTORY,
    MOVIE_RANKING,
    MOVIES,
    USER_RANKING,
    USERS,
    RunTable,
    TableRows,
    stores_user_ranking,
)
from mf.supabase.schema import command

# The options that the database's migration was printed with, as mf_schema() returns them: fields of SchemaConfig.
MigrationOptions = dict[str, Any]

READ_ONLY = "Supabase makes a project read-only when its disk is nearly full: enlarge the disk, then export again"
DISK_FULL = "the database's disk is full: enlarge it, or drop runs with `python -m mf runs prune`, then export again"
HINTS = {"25006": READ_ONLY, "53100": DISK_FULL}


@dataclass(frozen=True)
class ExportResult:
    """The result of an export."""

    run_id: str
    users: int
    movies: int
    changed: bool  # False: the run was published before
    previous: str | None  # the run published before this export
    superseded_by: str | None = None  # the run that another export has published since

    def summary(self) -> str:
        """One line for a person."""
        if self.superseded_by:
            return f"published run {self.run_id}; another export has published run {self.superseded_by} since"
        if not self.changed:
            return f"run {self.run_id} was already published"
        before = f"the previous run, {self.previous}, is kept" if self.previous else "it is the first run"
        return f"published run {self.run_id}: {self.users:,} users, {self.movies:,} movies; {before}"


@dataclass(frozen=True)
class Judged:
    """How a run was judged before it was published; in its record."""

    forced: bool  # published by force_publish although a check failed
    reasons: tuple[str, ...] = ()  # the failed checks
    run_id: str | None = None  # of the model that was judged, if the published one was fitted to all ratings after it
    model: str | None = None  # its directory or gs:// address, where it may still be

    @classmethod
    def read(cls, record: Any) -> "Judged | None":
        """The record from its JSON object; None where it is missing or something else."""
        if not isinstance(record, dict) or not isinstance(record.get("forced"), bool):
            return None
        return cls(record["forced"], tuple(record.get("reasons") or ()), record.get("run_id"), record.get("model"))

    def directory(self) -> Path | None:
        """The judged model's directory if it can be read here: a folder, or a bucket that is mounted under /gcs."""
        if not self.run_id or not self.model:
            return None
        found = Path(self.model.replace("gs://", "/gcs/", 1))
        try:
            return found if read_run_id(found) == self.run_id else None
        except DataError:
            return None


@dataclass(frozen=True)
class PublishedRun:
    """The published run as its row of ``mf_runs`` describes it."""

    header: Header
    users: int
    movies: int
    published_at: str  # ISO 8601
    trained_on: TrainedOn | None  # None: not recorded
    ranking: dict[str, Any] | None = None  # numbers of the ranking model; None: the run has none
    judged: Judged | None = None  # None: not recorded

    @classmethod
    def of(cls, row: dict[str, Any]) -> "PublishedRun":
        """From a row of ``mf_runs``, of this migration or of an earlier one."""
        # JSON has no way to tell 5.0 from 5.
        stars = (None if row[name] is None else float(row[name]) for name in STARS)
        header = Header(row["run_id"], row["factors"], *stars)
        trained_on = TrainedOn.read(row.get("trained_on"))
        judged = Judged.read(row.get("judged"))
        return cls(header, row["n_users"], row["n_movies"], row["published_at"], trained_on, row.get("ranking"), judged)


class Session(Protocol):
    """An open connection to a target."""

    def call(self, function: str, doing: str, **arguments: Any) -> Any:
        """Call a function of the migration and return its result; ``doing`` goes into the error message."""

    def load(self, model: PublishedModel, options: MigrationOptions, config: ExportConfig) -> None:
        """Write the rows of a registered run."""

    def commit(self, doing: str) -> None:
        """Commit the transaction, where calls do not commit by themselves."""


class Target(ABC):
    """A Supabase project to publish to and to read the published run from."""

    @abstractmethod
    def session(self) -> AbstractContextManager[Session]:
        """Connect; closed at the end of the block, and rolled back unless committed.

        Raises:
            SupabaseError: the database cannot be reached.
        """

    @abstractmethod
    def published_run(self) -> PublishedRun | None:
        """The published run; ``None`` when no run is published or the migration is not applied.

        Raises:
            SupabaseError: the database cannot be reached, or refused.
        """

    @abstractmethod
    def read(self, table: RunTable, run_id: str, n: int) -> TableRows:
        """The ``n`` rows of a run in one table, in any order; fewer if users have been forgotten since.

        Raises:
            SupabaseError: the run has been removed since; or as ``published_run``.
        """

    def embeddings(self, run: PublishedRun) -> tuple[Embeddings, Embeddings]:
        """The star model's users and movies of ``run``, even if another run has been published since.

        Raises:
            DataError: the run was trained on clicks: it has no star model.
            SupabaseError: the run has been removed since; or as ``published_run``.
        """
        if not run.header.has_stars:
            raise no_star_model(run.header.run_id)
        users = self.read(USERS, run.header.run_id, run.users)
        movies = self.read(MOVIES, run.header.run_id, run.movies)
        return Embeddings(users.ids, *users.values), Embeddings(movies.ids, *movies.values)

    def ranking(self, run: PublishedRun) -> PublishedRanking | None:
        """The ranking model of ``run``, even if another run has been published since; ``None`` when it has none.

        Without users where the database sums up their vectors itself, from its table of ratings.

        Raises:
            SupabaseError: as ``embeddings``.
        """
        if run.ranking is None:
            return None
        users = self.read(USER_RANKING, run.header.run_id, run.ranking["users"])
        movies, histories = (
            self.read(table, run.header.run_id, run.ranking["movies"]) for table in (MOVIE_RANKING, MOVIE_HISTORY)
        )
        order = Vocabulary(histories.ids).rows(movies.ids)
        history, liking = (values[order] for values in histories.values)
        (vectors,) = movies.values
        return PublishedRanking(
            run.ranking, movies.ids, vectors[:, -1], vectors[:, :-1], history, liking, users.ids, users.values[0]
        )

    def check(
        self,
        user_ids: pa.Array | pa.ChunkedArray | None,
        movie_ids: pa.Array | pa.ChunkedArray | None,
        config: ExportConfig,
    ) -> MigrationOptions:
        """Check that the migration is applied and fits these ids, as far as they are known, and views; returns its
        options.

        Raises:
            SupabaseError: it is not or does not; the message names the command that prints the right migration.
        """
        with self.session() as session:
            return _check_migration(session, user_ids, movie_ids, config)

    def export(self, model_dir: Path, config: ExportConfig, judged: Judged | None = None) -> ExportResult:
        """Publish the model of ``model_dir``, judged as ``judged`` says; atomic for readers and idempotent.

        Readers see the previous run until the last step. An interrupted export is finished by running it again. The
        previous run is kept for a rollback; older runs are removed.

        Raises:
            DataError: the model directory is malformed; nothing was sent.
            SupabaseError: the database cannot be reached or refused, the migration is missing or does not fit, or
                another export holds the lock; readers still see the previous run.
        """
        return self.publish(read_model(model_dir), config, judged)

    def publish(self, model: PublishedModel, config: ExportConfig, judged: Judged | None = None) -> ExportResult:
        """Publish a model that has been read; otherwise as ``export``."""
        run_id = model.header.run_id
        with self.session() as session:
            options = _check_migration(session, model.user_ids, model.movie_ids, config)
            registered = session.call(
                "mf_register", f"register run {run_id}", run=_registration(model, judged, options)
            )
            if registered["status"] == "loading":
                session.load(model, options, config)
            if config.hnsw_index:
                session.call("mf_index", f"index the movies of run {run_id}", run=run_id)
            if registered["status"] == "loading":
                session.call("mf_publish", f"publish run {run_id}", run=run_id)
            elif registered["status"] == "retired":
                session.call("mf_rollback", f"publish run {run_id} again", run=run_id)
            session.commit(f"publish run {run_id}")
            prune = f"remove old runs (run {run_id} is published)"
            session.call("mf_prune", prune)
            session.commit(prune)
        return ExportResult(
            run_id,
            len(model.user_ids),
            len(model.movie_ids),
            changed=registered["status"] != "published",
            previous=registered["published"],
        )


def _check_migration(
    session: Session,
    user_ids: pa.Array | pa.ChunkedArray | None,
    movie_ids: pa.Array | pa.ChunkedArray | None,
    config: ExportConfig,
) -> MigrationOptions:
    options: MigrationOptions = session.call("mf_schema", "read the options of the migration")
    if lacking := SchemaConfig.model_fields.keys() - options.keys():
        raise SupabaseError(
            f"the database's migration is older than this release, without {', '.join(sorted(lacking))}: apply what "
            f"`{command(options)}` prints"
        )
    ids = {"user_id_type": user_ids, "movie_id_type": movie_ids}
    types = {name: id_type(known) for name, known in ids.items() if known is not None}
    # A text column holds ids of every type.
    required = options | {name: options[name] if options[name] == "text" else kind for name, kind in types.items()}
    required |= {name: getattr(config, name) for name in ("user_export_table", "movie_export_table")}
    for name, value in required.items():
        if value != options[name]:
            raise SupabaseError(
                f"this export needs a database whose {name} is {value!r}, but its migration was made for "
                f"{options[name]!r}: apply what `{command(required)}` prints"
            )
    return options


def _registration(model: PublishedModel, judged: Judged | None, options: MigrationOptions) -> dict[str, Any]:
    """The argument of ``mf_register``."""
    covariance = None
    if model.users and model.noise_variance is not None:
        # recommend_from_ratings needs the prior for new users.
        covariance = prior(model.users.vectors, model.users.bias, model.noise_variance).ravel().tolist()
    return asdict(model.header) | {
        "n_users": len(model.user_ids),
        "n_movies": len(model.movie_ids),
        "content_hash": model.content_hash,
        "trained_on": model.trained_on and asdict(model.trained_on),
        "ignore_ratings": model.ignore_ratings,
        "prior": covariance,
        "ranking": model.ranking and _ranking_numbers(model.ranking, options),
        "judged": judged and asdict(judged) | ({"sweep": model.sweep} if model.sweep else {}),
        "n_counts": len(model.movie_counts) if model.movie_counts else None,
    }


def _ranking_numbers(ranking: PublishedRanking, options: MigrationOptions) -> dict[str, Any]:
    users = len(ranking.user_ids) if stores_user_ranking(options) else 0
    size = {"users": users, "movies": len(ranking.movie_ids)}
    return ranking.numbers | size | {"factors": ranking.embedding.shape[1]}
