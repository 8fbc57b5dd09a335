"""A model directory becomes the run that readers see: registered, loaded, then published in one step."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import orjson
import pyarrow as pa
from pydantic import SecretStr
from supabase import Client

from mf.errors import SupabaseError
from mf.fold_in import prior
from mf.model_directory import Embeddings, PublishedModel, read_model
from mf.progress import Progress
from mf.ratings.schema import id_type
from mf.supabase.client import call, connect
from mf.supabase.config import ExportConfig
from mf.supabase.credentials import Credentials
from mf.supabase.recommend import published_run
from mf.supabase.schema import command

# What the migration was made for: the fields of ``SchemaConfig``.
Made = dict[str, Any]

READ_ONLY = "Supabase makes a project read-only when its disk is nearly full: enlarge the disk, then export again"
DISK_FULL = "the database's disk is full: enlarge it, or drop runs with `python -m mf runs prune`, then export again"
HINTS = {"25006": READ_ONLY, "53100": DISK_FULL}


class Way(Protocol):
    """One of the ways into the database: the REST API here, the direct connection in ``direct.py``."""

    def call(self, function: str, doing: str, **arguments: Any) -> Any:
        """What a function of the migration returns. ``doing`` says what for, in an error."""

    def load(self, model: PublishedModel, made: Made, config: ExportConfig) -> None:
        """Writes the rows of a registered run."""

    def commit(self, doing: str) -> None:
        """Makes what was done since the last one last, where calls do not do so themselves."""


@dataclass(frozen=True)
class Published:
    """What an export did."""

    run_id: str
    users: int
    movies: int
    changed: bool  # False: this run was the published one already
    previous: str | None  # the run that readers saw before
    superseded_by: str | None = None  # a run that another export published meanwhile, and that readers see now

    def summary(self) -> str:
        """One line for a person."""
        if self.superseded_by:
            return f"run {self.run_id} was published, and run {self.superseded_by} of another export after it"
        if not self.changed:
            return f"run {self.run_id} was published already"
        before = f"the run before, {self.previous}, is kept" if self.previous else "it is the first one"
        return f"published run {self.run_id}: {self.users:,} users, {self.movies:,} movies; {before}"


def export(client: Client, model_dir: Path, config: ExportConfig) -> Published:
    """Publishes the model of ``model_dir`` through the API. Until its last step readers see the run that they saw
    before, whole; broken off at any point, it is finished by running it again. The run before is kept, for
    ``rollback``; older ones go.

    Raises:
        DataError: the model directory is not what it should be; nothing was sent.
        SupabaseError: the migration is missing or does not fit, or the API refused; readers see what they saw before.
    """
    published = publish_model(Rest(client), read_model(model_dir), config)
    now = published_run(client)
    if now and now["run_id"] != published.run_id:
        return replace(published, superseded_by=now["run_id"])
    return published


def publish_model(way: Way, model: PublishedModel, config: ExportConfig) -> Published:
    """As ``export``, whichever way."""
    run_id = model.header.run_id
    made = check_migration(way, model.users.ids, model.movies.ids, config)
    registered = way.call("mf_register", f"register run {run_id}", run=_run(model))
    if registered["status"] == "loading":
        way.load(model, made, config)
    if config.hnsw_index:
        way.call("mf_index", f"index the movies of run {run_id}", run=run_id)
    if registered["status"] == "loading":
        way.call("mf_publish", f"publish run {run_id}", run=run_id)
    elif registered["status"] == "retired":
        way.call("mf_rollback", f"publish run {run_id} again", run=run_id)
    way.commit(f"publish run {run_id}")
    way.call("mf_prune", f"remove old runs (run {run_id} is published)")
    way.commit(f"remove old runs (run {run_id} is published)")
    return Published(
        run_id,
        len(model.users),
        len(model.movies),
        changed=registered["status"] != "published",
        previous=registered["published"],
    )


def rollback(client: Client, run: str | None = None) -> str:
    """Makes readers see an earlier run again and returns its id; sending it twice does no harm.

    Args:
        run: one of the runs that the database keeps; ``None``: the one that was published before the present one.

    Raises:
        SupabaseError: there is no such run.
    """
    if run is None:
        # Named before it is asked for: an unnamed call that is sent twice would come back to where it began.
        runs = call(client.rpc("mf_list_runs"), "list the runs")
        run = next((r["run_id"] for r in runs if r["status"] == "retired"), None)
    answer = call(client.rpc("mf_rollback", {"run": run}), "roll back")
    return str(answer["run_id"])


def check_migration(
    way: Way, user_ids: pa.Array | pa.ChunkedArray, movie_ids: pa.Array | pa.ChunkedArray, config: ExportConfig
) -> Made:
    """What the database's migration was made for, which is these ids and views.

    Raises:
        SupabaseError: it is not, with the command that prints the migration to apply, or the API refused.
    """
    made: Made = way.call("mf_schema", "read what the migration was made for")
    types = {"user_id_type": id_type(user_ids), "movie_id_type": id_type(movie_ids)}
    # Text holds every id.
    wanted = made | {name: made[name] if made[name] == "text" else found for name, found in types.items()}
    wanted |= {name: getattr(config, name) for name in ("user_export_table", "movie_export_table")}
    for name, value in wanted.items():
        if value != made[name]:
            raise SupabaseError(
                f"this export needs a database whose {name} is {value!r}, and its migration was made for "
                f"{made[name]!r}: apply what `{command(wanted)}` prints"
            )
    return made


class Rest:
    """Through the API, with the clients that ``client`` is the first of."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def call(self, function: str, doing: str, **arguments: Any) -> Any:
        return call(self._client.rpc(function, arguments), doing, HINTS)

    def commit(self, doing: str) -> None:
        """Every call was a transaction."""

    def load(self, model: PublishedModel, made: Made, config: ExportConfig) -> None:
        with self._clients(config.clients) as clients, ThreadPoolExecutor(config.clients) as pool:
            for side in ("movies", "users"):
                self._load_side(side, getattr(model, side), model, config.rows_per_request, clients, pool)

    @contextmanager
    def _clients(self, n: int) -> Iterator["SimpleQueue[Client]"]:
        """``n`` clients, for as many threads."""
        credentials = Credentials(str(self._client.supabase_url), SecretStr(self._client.supabase_key))
        clients: SimpleQueue[Client] = SimpleQueue()
        with ExitStack() as stack:
            for _ in range(n):
                clients.put(stack.enter_context(connect(credentials)))
            yield clients

    @staticmethod
    def _load_side(
        side: str,
        rows: Embeddings,
        model: PublishedModel,
        rows_per_request: int,
        clients: "SimpleQueue[Client]",
        pool: ThreadPoolExecutor,
    ) -> None:
        run = {"run": model.header.run_id, "content": model.content_hash}

        def send(start: int) -> int:
            part = slice(start, min(start + rows_per_request, len(rows)))
            client = clients.get()
            try:
                request = client.rpc(f"mf_load_{side}", run | _columns(rows, part))
                call(request, f"write {side} {part.start:,} to {part.stop - 1:,} of run {model.header.run_id}", HINTS)
            finally:
                clients.put(client)
            return part.stop - part.start

        with Progress(f"export {side}", total=len(rows)) as progress:
            batches = [pool.submit(send, start) for start in range(0, len(rows), rows_per_request)]
            try:
                for batch in as_completed(batches):
                    progress.advance(batch.result())
            finally:
                # After a failure no other batch begins.
                for batch in batches:
                    batch.cancel()


def _run(model: PublishedModel) -> dict[str, Any]:
    counts = {"n_users": len(model.users), "n_movies": len(model.movies)}
    # What recommend_from_ratings knows of new users.
    known = prior(model.users.vectors, model.users.bias, model.noise_variance).ravel().tolist()
    noted = {"content_hash": model.content_hash, "trained_on": model.trained_on and asdict(model.trained_on)}
    return asdict(model.header) | counts | noted | {"prior": known}


def _columns(rows: Embeddings, part: slice) -> dict[str, Any]:
    """A vector goes as text: float32's shortest digits are exact and a third of what a JSON list of doubles takes."""
    return {
        "ids": rows.ids[part].to_pylist(),
        "biases": rows.bias[part].tolist(),
        "embeddings": [orjson.dumps(v, option=orjson.OPT_SERIALIZE_NUMPY).decode() for v in rows.vectors[part]],
    }
