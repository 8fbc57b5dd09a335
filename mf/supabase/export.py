"""A model directory becomes the run that readers see: registered, loaded in batches, then published in one step."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
from supabase import Client

from mf.errors import SupabaseError
from mf.fold_in import prior
from mf.progress import Progress
from mf.ratings.schema import MOVIE, USER, id_type
from mf.supabase.client import call
from mf.supabase.config import ExportConfig
from mf.supabase.model_directory import Embeddings, PublishedModel, read_model
from mf.supabase.schema import command


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
        if not self.changed:
            return f"run {self.run_id} was published already"
        if self.superseded_by:
            return f"run {self.run_id} was published, and run {self.superseded_by} of another export after it"
        before = f"the run before, {self.previous}, is kept" if self.previous else "it is the first one"
        return f"published run {self.run_id}: {self.users:,} users, {self.movies:,} movies; {before}"


def export(client: Client, model_dir: Path, config: ExportConfig) -> Published:
    """Publishes the model of ``model_dir``. Until its last step readers see the run that they saw before, whole; broken
    off at any point, it is finished by running it again. The run before is kept, for ``rollback``; older ones go.

    Raises:
        DataError: the model directory is not what it should be; nothing was sent.
        SupabaseError: the migration is missing or does not fit, or the API refused; readers see what they saw before.
    """
    model = read_model(model_dir)
    run_id = model.header.run_id
    check_migration(client, model.users.ids, model.movies.ids, config)
    registered = call(client.rpc("mf_register", {"run": _run(model)}), f"register run {run_id}")
    published = run_id
    if registered["status"] == "loading":
        _load(client, "mf_movie_embeddings", MOVIE, run_id, model.movies, config.rows_per_request)
        _load(client, "mf_user_embeddings", USER, run_id, model.users, config.rows_per_request)
        published = call(client.rpc("mf_publish", {"run": run_id}), f"publish run {run_id}")["published"]
    elif registered["status"] == "retired":
        rollback(client, run_id)
    call(client.rpc("mf_prune"), f"remove old runs (run {run_id} is published)")
    return Published(
        run_id,
        len(model.users),
        len(model.movies),
        changed=registered["status"] != "published",
        previous=registered["published"],
        superseded_by=published if published != run_id else None,
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
    client: Client, user_ids: pa.Array | pa.ChunkedArray, movie_ids: pa.Array | pa.ChunkedArray, config: ExportConfig
) -> None:
    """Whether the database is made for these ids and views.

    Raises:
        SupabaseError: it is not, with the command that prints the migration to apply, or the API refused.
    """
    made = call(client.rpc("mf_schema"), "read what the migration was made for")
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


def _run(model: PublishedModel) -> dict[str, Any]:
    counts = {"n_users": len(model.users), "n_movies": len(model.movies)}
    # What recommend_from_ratings knows of new users.
    known = prior(model.users.vectors, model.users.bias, model.noise_variance).ravel().tolist()
    return asdict(model.header) | counts | {"content_hash": model.content_hash, "prior": known}


def _load(client: Client, table: str, key: str, run_id: str, side: Embeddings, rows_per_request: int) -> None:
    with Progress(f"export to {table}", total=len(side)) as progress:
        for start in range(0, len(side), rows_per_request):
            rows = _rows(key, run_id, side, slice(start, start + rows_per_request))
            request = client.table(table).upsert(rows, on_conflict=f"run_id,{key}", returning="minimal")  # type: ignore[arg-type]
            call(request, f"write to table {table}")
            progress.advance(len(rows))


def _rows(key: str, run_id: str, side: Embeddings, part: slice) -> list[dict[str, Any]]:
    """A vector goes as text: float32's shortest digits are exact and a third of what a JSON list of doubles takes."""
    return [
        {
            "run_id": run_id,
            key: id_,
            "bias": bias,
            "embedding": orjson.dumps(v, option=orjson.OPT_SERIALIZE_NUMPY).decode(),
        }
        for id_, bias, v in zip(side.ids[part].to_pylist(), side.bias[part].tolist(), side.vectors[part], strict=True)
    ]
