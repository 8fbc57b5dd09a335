"""When `make demo` trains a run first, and its errors."""

from pathlib import Path

import pytest

from mf.errors import SupabaseError
from mf.local.tools import SUPABASE_JS
from pipelines.__main__ import main
from pipelines.laptop import demo
from pipelines.laptop import run as laptop


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The databases that were trained."""
    databases: list[str] = []
    monkeypatch.setattr(demo, "supabase_js", lambda cache: cache / "supabase.js")
    monkeypatch.setattr(laptop, "run", lambda source, parameters, home: databases.append(source.database))
    return databases


def test_the_sample_is_trained_when_no_run_of_it_is_published(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_published", lambda home, database: False)
    with pytest.raises(SupabaseError, match="the new run was not published: the lines above say why"):
        demo.demo(tmp_path)
    assert trained == ["sample"]
    assert capsys.readouterr().out == "no run of the sample is published yet: training one first\n\n"


def test_a_published_run_is_not_trained_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: list[str]
) -> None:
    def stop(*_: object) -> None:
        raise SupabaseError("served")

    monkeypatch.setattr(demo, "_published", lambda home, database: True)
    monkeypatch.setattr(demo, "LocalSupabase", stop)
    with pytest.raises(SupabaseError, match="served"):
        demo.demo(tmp_path)
    assert trained == []


def test_without_supabase_js_it_fails_in_one_line_before_any_file_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2; exit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(SystemExit) as end:
        main(["demo", "--home", str(tmp_path / "home")])
    printed = capsys.readouterr()
    cached = tmp_path / "cache" / "mf" / f"supabase-js-{SUPABASE_JS[0]}.js"
    assert printed.err == (
        "error: npm could not fetch supabase-js (npm error code ENOTFOUND): check the network, "
        f"or put the package's dist/umd/supabase.js at {cached}\n"
    )
    assert (end.value.code, printed.out, (tmp_path / "home").exists()) == (2, "", False)
