"""Publishing and reading the published run through the REST API."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from supabase import Client

from mf.errors import SupabaseError
from mf.model_directory import Embeddings, PublishedModel
from mf.progress import Progress
from mf.supabase import recommend
from mf.supabase.client import call, connect
from mf.supabase.config import ExportConfig
from mf.supabase.credentials import Credentials
from mf.supabase.recommend import Entity
from mf.supabase.target import HINTS, ExportResult, MigrationOptions, PublishedRun, Target

NO_TABLE = ("42P01", "PGRST205")  # error codes of a missing table


@dataclass(frozen=True)
class RestTarget(Target):
    """A Supabase project reached through its REST API."""

    credentials: Credentials

    @contextmanager
    def session(self) -> Iterator["_RestSession"]:
        with connect(self.credentials) as client:
            yield _RestSession(self.credentials, client)

    def publish(self, model: PublishedModel, config: ExportConfig) -> ExportResult:
        result = super().publish(model, config)
        # Each call is a transaction of its own, so another export may have published in between.
        run = self.published_run()
        if run and run.header.run_id != result.run_id:
            return replace(result, superseded_by=run.header.run_id)
        return result

    def published_run(self) -> PublishedRun | None:
        try:
            with connect(self.credentials) as client:
                row = recommend.published_run(client)
        except SupabaseError as error:
            if error.code in NO_TABLE:
                return None
            raise
        return PublishedRun.of(row) if row else None

    def embeddings(self, run: PublishedRun) -> tuple[Embeddings, Embeddings]:
        with connect(self.credentials) as client:
            return _read(client, "user", run), _read(client, "movie", run)


def _read(client: Client, entity: Entity, run: PublishedRun) -> Embeddings:
    ids, biases, vectors = [], [], []
    for page in recommend.pages(client, entity, run.header.run_id):
        ids += [row[f"{entity}_id"] for row in page]
        biases += [row["bias"] for row in page]
        texts = ",".join(row["embedding"] for row in page)
        vectors.append(np.array(orjson.loads(f"[{texts}]"), np.float32))
    return Embeddings(pa.array(ids), np.array(biases, np.float32), np.concatenate(vectors))


class _RestSession:
    """Calls through one client, loads through several; each request is a transaction of its own."""

    def __init__(self, credentials: Credentials, client: Client) -> None:
        self._credentials, self._client = credentials, client

    def call(self, function: str, doing: str, **arguments: Any) -> Any:
        return call(self._client.rpc(function, arguments), doing, HINTS)

    def commit(self, doing: str) -> None:
        """Nothing to do."""

    def load(self, model: PublishedModel, options: MigrationOptions, config: ExportConfig) -> None:
        clients: SimpleQueue[Client] = SimpleQueue()
        with ExitStack() as opened, ThreadPoolExecutor(config.clients) as pool:
            for _ in range(config.clients):
                clients.put(opened.enter_context(connect(self._credentials)))
            for entity, rows in (("movie", model.movies), ("user", model.users)):
                self._load(f"{entity}s", rows, model, config.rows_per_request, clients, pool)

    @staticmethod
    def _load(
        name: str,
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
                request = client.rpc(f"mf_load_{name}", run | _columns(rows, part))
                call(request, f"write {name} {part.start:,} to {part.stop - 1:,} of run {model.header.run_id}", HINTS)
            finally:
                clients.put(client)
            return part.stop - part.start

        with Progress(f"export {name}", total=len(rows)) as progress:
            batches = [pool.submit(send, start) for start in range(0, len(rows), rows_per_request)]
            try:
                for batch in as_completed(batches):
                    progress.advance(batch.result())
            finally:
                # After a failure no further batch starts.
                for batch in batches:
                    batch.cancel()


def _columns(rows: Embeddings, part: slice) -> dict[str, Any]:
    """Arguments of ``mf_load_…``. A vector goes as text: float32's shortest digits are exact and a third of the size
    of a JSON list of doubles."""
    return {
        "ids": rows.ids[part].to_pylist(),
        "biases": rows.bias[part].tolist(),
        "embeddings": [orjson.dumps(v, option=orjson.OPT_SERIALIZE_NUMPY).decode() for v in rows.vectors[part]],
    }
