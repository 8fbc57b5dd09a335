"""`make run`: its output, and that no process is left running however it ends."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mf.local import delete_home
from pipelines.__main__ import main

pytestmark = pytest.mark.database
ROOT = Path(__file__).parents[2]
EXECUTOR = "kfp.dsl.executor_main"
# A training much longer than the tests.
LONG = ["--param", "epochs=1000000", "--param", "solver_options.patience=0"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of the module; the first test creates its database, so that later ones start quickly."""
    home = tmp_path_factory.mktemp("make_run") / "home"
    yield home
    delete_home(home / "supabase")


@pytest.fixture(scope="module")
def other_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a second program at the same time."""
    home = tmp_path_factory.mktemp("make_run") / "other"
    yield home
    delete_home(home / "supabase")


def environment() -> dict[str, str]:
    """The environment of a person's shell, also when make started the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}


def make_run(home: Path, *flags: str) -> list[str]:
    """The Makefile's recipe, with this interpreter, without installing and with its own home."""
    return ["make", "run", f"PY={sys.executable}", "INSTALLED=", f"params={' '.join(['--home', str(home), *flags])}"]


def python_run(home: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "pipelines", "run", "--home", str(home), *flags]


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    env = environment() | variables
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def reads_until(process: subprocess.Popen[str], beginning: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(
        f"the program ended before it printed {beginning!r}: {process.stderr and process.stderr.read()}"
    )


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The program and its servers, watchdog and step, as soon as all of them run."""
    parts = ("-m pipelines run", "bin/postgres -D", "/postgrest", "watchdog.py", EXECUTOR)
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        commands = [command(one) for one in processes]
        if all(any(part in command for command in commands) for part in parts):
            return processes
        time.sleep(0.01)
    raise AssertionError(f"expected {parts}, found {commands}")


def left(started: list[psutil.Process], homes: list[Path], timeout_s: float = 900.0) -> list[str]:
    """Commands still running after ``timeout_s``: of ``started``, or with one of ``homes`` in the command line."""
    deadline = time.monotonic() + timeout_s
    while True:
        others = [one for one in psutil.process_iter() if any(str(home) in command(one) for home in homes)]
        running = [command(process) for process in {*started, *others} if runs(process)]
        if not running or time.monotonic() > deadline:
            return running
        time.sleep(0.1)


def command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture(scope="module")
def finished(home: Path) -> subprocess.CompletedProcess[str]:
    temporary = home.with_name("temporary")
    temporary.mkdir()
    return run(make_run(home), TMPDIR=str(temporary))


def test_it_ends_with_rmse_beside_the_baselines_and_recommendations(
    finished: subprocess.CompletedProcess[str], home: Path
) -> None:
    assert (finished.returncode, finished.stderr) == (0, "")
    steps, ratings, rmse, lists, recommended, similar, where = finished.stdout.split("\n\n")
    for step in ("ingest", "split", "train", "evaluate", "export"):
        assert re.search(rf"^{step:<9} \S", steps, re.MULTILINE)
    assert "epoch 2/12  validation RMSE 0." in steps
    assert ratings == "ratings   11,000 rows read, 0 rejected, 11,000 kept"

    title, *figures = rmse.splitlines()
    assert title == "RMSE on 1,100 test ratings"
    values = dict(re.fullmatch(r"  (\S.*?) +(\d\.\d{4})(?:  \(.*\))?", line).groups() for line in figures)  # type: ignore[union-attr]
    assert list(values) == ["global mean", "user + movie biases", "this model", "noise floor"]
    assert sorted(values.values(), reverse=True) == list(values.values())

    assert re.fullmatch(r"lists  NDCG@10 0\.\d{3}, popularity 0\.\d{3}", lists)

    for block, heading in ((recommended, "recommended to user "), (similar, "similar to The ")):
        title, *movies = block.splitlines()
        assert title.startswith(heading)
        shown = [re.fullmatch(r"  (\d\.\d\d)  The .+ \(\d{4}\)", line) for line in movies]
        assert len(shown) == 5
        assert all(shown)
    similarities = [float(line.split()[0]) for line in similar.splitlines()[1:]]
    assert similarities == sorted(similarities, reverse=True)

    report, own_data = where.splitlines()
    assert (ROOT / report.removeprefix("report    ")).read_text().startswith("<!DOCTYPE html>")
    assert re.fullmatch(r"published, in \d+ s; your own: make run RATINGS=path/to/ratings.csv", own_data)


def test_no_process_and_no_temporary_file_is_left(finished: subprocess.CompletedProcess[str], home: Path) -> None:
    assert finished.returncode == 0
    assert left([], [home], timeout_s=0.0) == []
    assert list(home.with_name("temporary").iterdir()) == []
    runs = home / "runs" / "sample"
    assert sorted(path.name.partition("-2")[0] for path in runs.iterdir()) == ["log.txt", "mf-training"]


def test_a_refused_run_exits_with_0_and_shows_the_reasons_and_the_published_recommendations(
    finished: subprocess.CompletedProcess[str], home: Path
) -> None:
    refused = run(make_run(home, "--param epochs=1 --param lr=1e-9"))
    assert (refused.returncode, refused.stderr) == (0, "")
    steps, _, _, _, why, *recommended, where = refused.stdout.split("\n\n")
    assert not re.search("^export ", steps, re.MULTILINE)
    heading, biases, champion, kept, hint = why.splitlines()
    assert heading == "not published, since"
    assert re.fullmatch(r"  RMSE 0\.\d{4} is not below that of user \+ movie biases, 0\.\d{4}", biases)
    assert re.match(r"  RMSE 0\.\d{4} against 0\.\d{4} of the published run \S+ on the same 1,100 ratings: ", champion)
    assert kept.startswith("readers see run ")
    assert hint == 'publish it anyway: PARAMS="force_publish=true"'
    assert recommended == finished.stdout.split("\n\n")[4:6]  # still those of the published run
    assert where.startswith("report    ")
    assert re.match(r"not published: RMSE 0\.\d{4} is not below .*, in \d+ s; your own: ", where.splitlines()[-1])


def test_ctrl_c_and_sigterm_end_all_processes_cleanly(home: Path, other_home: Path) -> None:
    with started(python_run(home, *LONG)) as interrupted, started(python_run(other_home, *LONG)) as terminated:
        for process in (interrupted, terminated):
            reads_until(process, "train     epoch 3/")  # a step that runs until it is terminated
        programs = [*family(interrupted), *family(terminated)]
        os.killpg(interrupted.pid, signal.SIGINT)  # like a terminal, to the whole foreground group
        terminated.terminate()
        errors = [process.communicate(timeout=900)[1] for process in (interrupted, terminated)]
        assert (interrupted.returncode, errors[0]) == (1, "stopped\n")
        assert (terminated.returncode, errors[1]) == (128 + signal.SIGTERM, "")
        assert left(programs, [home, other_home], timeout_s=0.0) == []


def test_no_process_outlives_the_program_or_its_make_when_killed_in_training(home: Path, other_home: Path) -> None:
    with started(python_run(home, *LONG)) as program, started(make_run(other_home, *LONG)) as make:
        for process in (program, make):
            reads_until(process, "train     epoch 3/")
        programs = [*family(program), *family(make)]
        for process in (program, make):
            process.kill()
        assert left(programs, [home, other_home]) == []


def test_a_run_whose_make_is_killed_before_it_has_begun_ends(home: Path) -> None:
    with started(make_run(home)) as make:
        while not (programs := psutil.Process(make.pid).children(recursive=True)):
            time.sleep(0.01)
        make.kill()
        assert left(programs, [home]) == []
        assert make.stdout
        assert "train" not in make.stdout.read()


def test_a_missing_file_is_one_line_before_the_line_of_make() -> None:
    done = run(["make", "run", f"PY={sys.executable}", "INSTALLED=", "RATINGS=no  such.csv"])
    error, from_make = done.stderr.splitlines()
    assert error == "error: no  such.csv: no such file, expected a file of ratings"
    assert from_make.startswith("make: *** ")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ratings", "none.csv"], "error: none.csv: no such file, expected a file of ratings\n"),
        (["--param", "epochs=many"], "error: parameter epochs: expected a whole number, found 'many'\n"),
        (["--param", "ratings_csv=r.csv"], "error: parameter ratings_csv: a run on this machine sets it itself, "),
        (["--ratings", "a", "--import_table", "b"], "error: --ratings and --import_table are both given, expected one"),
        (
            ["--import_table", "none"],
            "error: the embedded Supabase has no table none: create it with `make seed-table`",
        ),
        (["--rating", "a.csv"], "error: unknown flag --rating"),
        (
            ["--supabase_url", "https://abc.supabase.co"],
            "error: SUPABASE_URL needs RATINGS=file.csv or IMPORT_TABLE=ratings: the sample is never published to your",
        ),
        (
            ["--supabase_url", "abc", "--import_table", "r"],
            "error: SUPABASE_URL is not of the form https://PROJECT.supabase.co",
        ),
        (
            ["--supabase_url", "https://abc.supabase.co", "--import_table", "r"],
            "error: no key for https://abc.supabase.co: set SUPABASE_KEY in the environment to the project",
        ),
    ],
)
def test_a_users_mistake_is_one_line_and_no_file_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    said: str,
) -> None:
    for name in [name for name in os.environ if name.startswith("SUPABASE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(SystemExit) as end:
        main(["run", "--home", str(tmp_path / "home"), *flags])
    printed = capsys.readouterr()
    assert (end.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith(said)
    assert list(tmp_path.iterdir()) == []
