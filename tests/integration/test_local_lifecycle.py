"""Start, crash recovery and shutdown of the embedded Supabase."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from supabase import create_client

from mf.errors import SupabaseError
from mf.local import LocalSupabase, databases, delete_home, place, recreate_database

pytestmark = pytest.mark.database
# Opens a home in the main thread or another, starts a child that would sleep for long, and ends as it is told.
PROGRAM = """
import subprocess, sys, threading
from pathlib import Path
from mf.local import LocalSupabase

def run():
    with LocalSupabase(Path(sys.argv[1])) as sb:
        with sb.connect() as connection:
            connection.execute("create table if not exists kept (id int)")
            connection.execute("insert into kept values (1)")
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        print("started", flush=True)
        order = sys.stdin.readline().strip()
        if order == "raise":
            raise ValueError("as told")

if sys.argv[2] == "thread":
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
else:
    run()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    """One home for the module: each start after the first is quick."""
    home = tmp_path_factory.mktemp("lifecycle") / "home"
    yield home
    delete_home(home)


@contextlib.contextmanager
def program(home: Path, way: str = "main", prefix: tuple[str, ...] = ()) -> Iterator[subprocess.Popen]:
    command = [*prefix, sys.executable, "-c", PROGRAM, str(home), way]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()


def family(process: subprocess.Popen) -> dict[psutil.Process, str]:
    """The processes started by the program, by command line: watchdog, PostgreSQL, PostgREST, sleeper."""
    parts = ("bin/postgres -D", "/postgrest", "watchdog.py", "time.sleep")
    deadline = time.monotonic() + 900
    while True:
        commands = {}
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # PostgreSQL's short-lived workers
                commands[child] = " ".join(child.cmdline())
        if all(any(part in command for command in commands.values()) for part in parts):
            return commands
        assert time.monotonic() < deadline, commands


def alive(processes: Iterable[psutil.Process], timeout_s: float = 900.0) -> list[psutil.Process]:
    """Processes still running after the time; zombies do not count, as not every container's init reaps them."""
    deadline = time.monotonic() + timeout_s
    while (left := [process for process in processes if runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_program_that_a_signal_ends(home, by):
    with program(home) as process:
        started = family(process)
        os.killpg(process.pid, by)  # as Ctrl-C does: the whole foreground group
        assert alive(started) == []


@pytest.mark.parametrize("order", ["return", "raise"])
def test_nothing_outlives_a_program_that_ends_by_itself(home, order):
    with program(home) as process:
        started = family(process)
        process.communicate(f"{order}\n")
        assert process.returncode == (1 if order == "raise" else 0)
        assert alive(started, 0.0) == []


def test_the_watchdog_alone_is_enough(home):
    # Servers that were started from a thread do not have the kernel's help.
    with program(home, "thread") as process:
        started = family(process)
        process.kill()
        assert alive(started) == []


if sys.platform == "linux":  # elsewhere the kernel has no such help to give

    def test_the_servers_end_without_the_watchdog_too(home):
        with program(home) as process:
            started = family(process)
            others = {child for child, command in started.items() if "watchdog.py" in command or "sleep" in command}
            for child in others:
                child.kill()
            process.kill()
            assert alive(set(started) - others) == []


def test_what_was_committed_survives_a_kill_of_everything(home):
    with LocalSupabase(home) as sb, sb.connect() as connection:
        connection.execute("drop table if exists kept")
    for _ in range(3):
        with program(home) as process:
            for victim in [*family(process), psutil.Process(process.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
    with LocalSupabase(home) as sb, sb.connect() as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (3,)


def test_a_start_right_after_a_kill_waits_for_the_old_server(home):
    with program(home) as process:
        process.kill()
        process.wait()
        with LocalSupabase(home) as sb, sb.connect() as connection:
            assert connection.execute("select 1").fetchone() == (1,)


def test_a_home_in_use_by_another_program_is_refused(home):
    with program(home) as process, pytest.raises(SupabaseError, match=f"is in use by process {process.pid}: "):
        databases(home)


def test_a_stale_pid_file_with_the_pid_of_another_process_does_not_prevent_a_start(home):
    with LocalSupabase(home) as sb:
        data = Path(sb.connect().execute("show data_directory").fetchone()[0])
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n")
    with LocalSupabase(home) as sb, sb.connect() as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_an_interrupted_first_start_is_started_again_from_scratch(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    try:
        (place.place(home).data / "PG_VERSION").write_text("18\n")  # initdb writes it first
        with LocalSupabase(home) as sb, sb.connect() as connection:
            assert connection.execute("select 1").fetchone() == (1,)
    finally:
        delete_home(home)


def test_a_home_holds_several_databases_and_one_can_be_recreated(home):
    with LocalSupabase(home, "ratings_a") as a, LocalSupabase(home, "ratings_b", postgres=a.postgres) as b:
        a.migrate("create table t (id int)")
        b.migrate("create table t (id text)")
    recreate_database(home, "ratings_a")
    assert {"ratings_a", "ratings_b"} <= set(databases(home))
    with LocalSupabase(home, "ratings_a") as a, LocalSupabase(home, "ratings_b", postgres=a.postgres) as b:
        assert [one.connect().execute("select to_regclass('t')::text").fetchone()[0] for one in (a, b)] == [None, "t"]


def test_an_unused_folder_has_no_databases(tmp_path):
    assert databases(tmp_path / "nothing") == []
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_cannot_be_written_to_is_an_error_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SupabaseError, match=r"file/home: cannot write to this folder \(Not a directory\): choose"):
        recreate_database(tmp_path / "file" / "home", "sample")


def test_the_second_start_makes_no_new_server(home):
    version = place.place(home).data / "PG_VERSION"  # initdb writes it
    with LocalSupabase(home):
        made = version.stat()
    with LocalSupabase(home):
        assert version.stat() == made


def test_a_closed_home_and_closed_programs_work_for_root_too(monkeypatch, tmp_path):
    # tmp_path lies in a folder of mode 0700; as in a checkout under root's home, nobody else reaches what is in it.
    tmp_path.chmod(0o700)
    programs = place.find_programs()
    libraries = programs.parent.with_name(f"{programs.parent.name}.libs")  # of the package
    for folder in filter(Path.exists, (programs, libraries)):
        shutil.copytree(folder, tmp_path / folder.relative_to(programs.parents[1]), symlinks=True)
    closed = tmp_path / programs.relative_to(programs.parents[1])
    monkeypatch.setattr(place, "find_programs", lambda: closed)
    home = tmp_path / "home"
    try:
        for expected in (1, 2):
            with LocalSupabase(home) as sb, sb.connect() as connection:
                connection.execute("create table if not exists kept (id int)")
                connection.execute("insert into kept values (1)")
                assert connection.execute("select count(*) from kept").fetchone() == (expected,)
        moved = os.geteuid() == 0
        assert (home / "pgdata").is_symlink() is moved
        assert place.private_path(home).exists() is moved
    finally:
        delete_home(home)
    assert not place.private_path(home).exists()


def test_a_user_other_than_root_runs_it_as_that_user(tmp_path):
    prefix: tuple[str, ...] = ()
    home = tmp_path / "home"
    home.mkdir()
    if os.geteuid() == 0:
        # The capability lets that user read a checkout and an environment that only root may enter.
        prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                  "--inh-caps=+dac_override", "--ambient-caps=+dac_override")  # fmt: skip
        os.chown(home, 65534, 65534)
    with program(home, prefix=prefix) as process:
        started = family(process)
        postgres = next(child for child, command in started.items() if "bin/postgres -D" in command)
        assert postgres.uids() == psutil.Process(process.pid).uids()
        assert postgres.uids().real != 0
        process.kill()
        assert alive(started) == []
    assert not (home / "pgdata").is_symlink()


@contextlib.contextmanager
def command(home: Path, *flags: str) -> Iterator[dict[str, str]]:
    """What ``python -m mf local`` prints; it is ended with Ctrl-C."""
    words = [sys.executable, "-m", "mf", "local", "--home", str(home), *flags]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        shown = dict(process.stdout.readline().strip().split("=", 1) for _ in range(4))
        started = psutil.Process(process.pid).children(recursive=True)
        try:
            yield shown
        finally:
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(900) == 0
            finally:
                process.kill()  # or the block's end would wait for one that does not stop
    assert alive(started, 0.0) == []


def test_the_command_prints_where_it_is_keeps_its_keys_and_ends_with_ctrl_c(home):
    with command(home, "--database", "shown") as shown:
        pass
    assert list(shown) == ["SUPABASE_URL", "SUPABASE_KEY", "SUPABASE_PUBLISHABLE_KEY", "SUPABASE_DB_URL"]
    assert shown["SUPABASE_KEY"].startswith("sb_secret_")
    assert shown["SUPABASE_DB_URL"].endswith("/shown?sslmode=disable")
    assert (home / "keys.json").stat().st_mode & 0o777 == 0o600
    port = shown["SUPABASE_URL"].rpartition(":")[2]
    with command(home, "--database", "shown", "--port", port) as again:
        names = ("SUPABASE_URL", "SUPABASE_KEY", "SUPABASE_PUBLISHABLE_KEY")
        assert [again[name] for name in names] == [shown[name] for name in names]


def test_the_command_fills_a_database_from_a_csv_whose_users_can_sign_in(home, tmp_path):
    known = "0b0f6a5e-6d0f-4d4e-8f0a-0c5d2c6b7a11"
    rows = f"userId,movieId,rating,timestamp\n7,10,4.5,1000000000\n7,20,2,1000000001\n{known},10,3,1000000002\n"
    (tmp_path / "ratings.csv").write_text(rows)
    (tmp_path / "movies.csv").write_text('movieId,title\n10,"Harbour, The"\n')
    (tmp_path / "more.sql").write_text("create table if not exists public.more (id int)")
    flags = [
        "--database",
        "filled",
        "--ratings_csv",
        str(tmp_path / "ratings.csv"),
        "--sql",
        str(tmp_path / "more.sql"),
    ]
    for _ in range(2):  # the second start finds the rows
        with command(home, *flags) as shown:
            client = create_client(shown["SUPABASE_URL"], shown["SUPABASE_PUBLISHABLE_KEY"])
            me = client.auth.sign_in_with_password({"email": "user7@example.com", "password": "password"}).user
            own = client.table("ratings").select("user_id, movie_id, rating").order("movie_id").execute().data
            assert own == [
                {"user_id": me.id, "movie_id": 10, "rating": 4.5}, {"user_id": me.id, "movie_id": 20, "rating": 2},
            ]  # fmt: skip
            titles = client.table("movies").select("movie_id, title").order("movie_id").execute().data
            assert [row["title"] for row in titles] == ["Harbour, The", "20"]
            with psycopg.connect(shown["SUPABASE_DB_URL"]) as connection:
                users = connection.execute("select id::text from auth.users order by email").fetchall()
                assert users == [(known,), (me.id,)]
                assert connection.execute("select to_regclass('public.more')").fetchone() != (None,)


def test_the_command_reports_a_mistake_in_one_line(tmp_path):
    words = [sys.executable, "-m", "mf", "local", "--home", str(tmp_path / "home"), "--database", "No Name"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: database 'No Name': expected")
    assert not (tmp_path / "home").exists()
