"""Publishing and reading the published run through the REST API."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
from supabase import Client

from mf.errors import SupabaseError
from mf.model_directory import PublishedModel
from mf.progress import Progress
from mf.supabase import recommend
from mf.supabase.client import NO_RESPONSE, call, connect
from mf.supabase.config import ExportConfig
from mf.supabase.credentials import Credentials
from mf.supabase.run_tables import RunTable, TableRows, rows_of
from mf.supabase.target import HINTS, ExportResult, Judged, MigrationOptions, PublishedRun, Target

NO_TABLE = ("42P01", "PGRST205")  # error codes of a missing table
# Advice for the API's time limits; a build that has begun goes on for up to a quarter of an hour.
_BUILDING = (
    "an index of many movies takes longer than the API waits, and the database may still be building it: export again "
    "in a quarter of an hour, or set SUPABASE_DB_URL, which has no time limit"
)
INDEX_HINTS = HINTS | dict.fromkeys((NO_RESPONSE, "57014", "55P03"), _BUILDING)


@dataclass(frozen=True)
class RestTarget(Target):
    """A Supabase project reached through its REST API."""

    credentials: Credentials

    @contextmanager
    def session(self) -> Iterator["_RestSession"]:
        with connect(self.credentials) as client:
            yield _RestSession(self.credentials, client)

    def publish(self, model: PublishedModel, config: ExportConfig, judged: Judged | None = None) -> ExportResult:
        result = super().publish(model, config, judged)
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

    def read(self, table: RunTable, run_id: str, n: int) -> TableRows:
        with connect(self.credentials) as client:
            pages = list(recommend.table_pages(client, table, run_id, n))
        ids = pa.array([row[table.key] for page in pages for row in page])
        return TableRows(table, ids, tuple(_floats(pages, name) for name in table.columns))


def _floats(pages: list[recommend.Page], name: str) -> npt.NDArray[np.float32]:
    if not pages:
        return np.empty((0, 0), np.float32)
    if name == "bias":
        return np.array([row[name] for page in pages for row in page], np.float32)
    # Page by page: Python's numbers take four times the memory of the text.
    texts = (",".join(row[name] for row in page) for page in pages)
    return np.concatenate([np.array(orjson.loads(f"[{text}]"), np.float32) for text in texts])


class _RestSession:
    """Calls through one client, loads through several; each request is a transaction of its own."""

    def __init__(self, credentials: Credentials, client: Client) -> None:
        self._credentials, self._client = credentials, client

    def call(self, function: str, doing: str, **arguments: Any) -> Any:
        return call(self._client.rpc(function, arguments), doing, INDEX_HINTS if function == "mf_index" else HINTS)

    def commit(self, doing: str) -> None:
        """Nothing to do."""

    def load(self, model: PublishedModel, options: MigrationOptions, config: ExportConfig) -> None:
        clients: SimpleQueue[Client] = SimpleQueue()
        with ExitStack() as opened, ThreadPoolExecutor(config.clients) as pool:
            for _ in range(config.clients):
                clients.put(opened.enter_context(connect(self._credentials)))
            for rows in rows_of(model, options):
                self._load(rows, model, config.rows_per_request, clients, pool)

    @staticmethod
    def _load(
        rows: TableRows,
        model: PublishedModel,
        rows_per_request: int,
        clients: "SimpleQueue[Client]",
        pool: ThreadPoolExecutor,
    ) -> None:
        run = {"run": model.header.run_id, "content": model.content_hash}
        label = rows.table.label

        def send(start: int) -> int:
            part = slice(start, min(start + rows_per_request, len(rows)))
            client = clients.get()
            try:
                request = client.rpc(rows.table.function, run | _arguments(rows, part))
                call(request, f"write {label} {part.start:,} to {part.stop - 1:,} of run {model.header.run_id}", HINTS)
            finally:
                clients.put(client)
            return part.stop - part.start

        with Progress(f"export {label}", total=len(rows)) as progress:
            batches = [pool.submit(send, start) for start in range(0, len(rows), rows_per_request)]
            try:
                for batch in as_completed(batches):
                    progress.advance(batch.result())
            finally:
                # After a failure no further batch starts.
                for batch in batches:
                    batch.cancel()


def _arguments(rows: TableRows, part: slice) -> dict[str, Any]:
    """Arguments of ``mf_load_…``. A vector goes as text: float32's shortest digits are exact and a third of the size
    of a JSON list of doubles."""
    arguments = {"ids": rows.ids[part].to_pylist()}
    for name, values in zip(rows.table.arguments, rows.values, strict=True):
        arguments[name] = values[part].tolist() if values.ndim == 1 else [_text(vector) for vector in values[part]]
    return arguments


def _text(vector: npt.NDArray[np.float32]) -> str:
    return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY).decode()
