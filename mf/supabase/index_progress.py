"""Progress of an index build, read over a second connection."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psycopg

from mf.progress import Progress

POLL_S = 2.0
# Of the tables' pages, since pgvector counts no rows; only one's own session shows them.
BUILDING = """
select relid::regclass::text, blocks_done, blocks_total from pg_stat_progress_create_index
where pid = %s and blocks_total > 0
"""


@contextmanager
def index_progress(connect: Callable[[], psycopg.Connection[Any]], pid: int) -> Iterator[None]:
    """Within the block, show the progress of the indexes that the server process ``pid`` builds.

    Where ``connect`` fails, as for want of a free connection, nothing is shown.
    """
    finished = threading.Event()
    watching = threading.Thread(target=_watch, args=(connect, pid, finished), daemon=True)
    watching.start()
    try:
        yield
    finally:
        finished.set()
        watching.join()


def _watch(connect: Callable[[], psycopg.Connection[Any]], pid: int, finished: threading.Event) -> None:
    with suppress(psycopg.Error), connect() as connection, ExitStack() as shown:
        connection.autocommit = True
        indexed, progress = "", None
        while not finished.wait(POLL_S):
            row = connection.execute(BUILDING, [pid]).fetchone()
            if row is None:
                continue
            table, done, total = row
            if progress is None or table != indexed:
                shown.close()
                indexed, progress = table, shown.enter_context(Progress(f"index {table}", total, "pages"))
            progress.advance(done - progress.done)
