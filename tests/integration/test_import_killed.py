"""An import that is killed with -9 in the middle leaves nothing half-written, and does not hold up the next."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mf.ingest import ingest
from mf.local.gateway import Request
from mf.ratings.config import IngestConfig
from mf.ratings.schema import Provenance, read_ratings

ROOT = Path(__file__).parents[2]
ROWS = 1_200_000  # of the larger table: the database gives it in several parts
SETUP = f"""
create table ratings (user_id bigint, movie_id bigint, rating real, primary key (user_id, movie_id));
insert into ratings select u, m, 3 from generate_series(1, 100) u, generate_series(1, 100) m;
create view many as select i / 100 as user_id, i % 100 as movie_id, 3::real as rating
  from generate_series(1, {ROWS}) i;
grant select on ratings to service_role;
"""
# The rows wait in a file from the first one on.
PROGRAM = """if True:
    import sys
    from pathlib import Path
    from mf.ratings import spill
    from mf.supabase.tables import pages
    from mf.ratings.config import IngestConfig
    from mf.ingest import ingest
    pages.PAGES, spill.IN_MEMORY = 2, 1
    table, folder = sys.argv[1], Path(sys.argv[2])
    config = IngestConfig.of(import_table=table)
    ingest(config, folder / "ratings.parquet", folder / "rejects.csv")
"""


@pytest.fixture(scope="module")
def database(fresh_stack):
    database = fresh_stack(legacy_grants=False)
    database.migrate(SETUP)
    return database


@pytest.fixture
def folder(tmp_path):
    """A step's outputs, with what an earlier import wrote there."""
    source = tmp_path / "before.csv"
    source.write_text("userId,movieId,rating\n1,1,4\n")
    (tmp_path / "out").mkdir()
    into(tmp_path / "out", IngestConfig.of(ratings_csv=str(source)))
    return tmp_path / "out"


def into(folder: Path, config: IngestConfig) -> Provenance:
    return ingest(config, folder / "ratings.parquet", folder / "rejects.csv")


def started(table: str, folder: Path, temporary: Path, **environ: str) -> "subprocess.Popen[bytes]":
    temporary.mkdir()
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE_")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, table, str(folder)],
        env=outside | environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
    )


def kept(folder: Path) -> dict[str, bytes]:
    """What a later step may read: a name with a dot before it is nobody's."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_one_that_is_killed_between_two_pages_changes_nothing_and_a_second_one_is_whole(
    database, folder, tmp_path, monkeypatch
):
    environ = {"SUPABASE_URL": database.url, "SUPABASE_KEY": database.secret_key}
    before = kept(folder)
    process = started("ratings", folder, tmp_path / "temporary", **environ)
    served = []

    def kill_at_the_seventh_page(request: Request) -> None:
        served.extend(["a page"] if "limit=1000" in request.path else [])
        if len(served) == 7:
            process.send_signal(signal.SIGKILL)

    database.gateway.faults.append(kill_at_the_seventh_page)
    assert process.wait(900) == -signal.SIGKILL
    database.gateway.faults.clear()
    assert 7 <= len(served) < 12  # of the 13 that it takes
    assert kept(folder) == before
    assert list((tmp_path / "temporary").iterdir()) == []

    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert into(folder, IngestConfig.of(import_table="ratings")).rows_kept == 10_000
    assert len(read_ratings(folder / "ratings.parquet")[0]) == 10_000


def test_one_that_is_killed_while_it_writes_what_the_database_gives_changes_nothing_and_a_second_one_is_whole(
    database, folder, tmp_path, monkeypatch
):
    before = kept(folder)
    process = started("many", folder, tmp_path / "temporary", SUPABASE_DB_URL=database.db_url)
    # The file has more than its first bytes when a part is written.
    while process.poll() is None and not any(path.stat().st_size > 1000 for path in folder.glob(".ratings.parquet.*")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(900) == -signal.SIGKILL
    assert kept(folder) == before
    assert list((tmp_path / "temporary").iterdir()) == []

    monkeypatch.setenv("SUPABASE_DB_URL", database.db_url)
    assert into(folder, IngestConfig.of(import_table="many")).rows_kept == ROWS
    assert len(read_ratings(folder / "ratings.parquet")[0]) == ROWS
    with database.connect() as connection:
        of_imports = "select count(*) from pg_stat_activity where application_name = 'mf'"
        assert connection.execute(of_imports).fetchone() == (0,)
