"""When `make demo` trains a run first, and its errors."""

import uuid
from pathlib import Path

import pytest

from mf.errors import SupabaseError
from mf.local import tools
from mf.local.tools import SUPABASE_JS
from mf.ratings.titles import titles_beside
from pipelines.__main__ import main
from pipelines.laptop import demo
from pipelines.laptop import run as laptop
from pipelines.laptop.demo.data import example_users, file_data, movie_rows, sample_data


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The databases that were trained."""
    databases: list[str] = []
    monkeypatch.setattr(laptop, "run", lambda source, parameters, home: databases.append(source.database))
    return databases


def test_the_sample_is_trained_when_no_run_of_it_is_published(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_published", lambda home, database: False)
    with pytest.raises(SupabaseError, match="the new run was not published: the lines above say why"):
        demo.demo(sample_data(tmp_path), tmp_path / "supabase.js", {}, tmp_path)
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
        demo.demo(sample_data(tmp_path), tmp_path / "supabase.js", {}, tmp_path)
    assert trained == []


def test_a_file_gets_uuids_for_its_users_and_titles_where_there_are_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{user},m{movie},{movie % 5 + 1}" for user in range(8) for movie in range(user + 2)]
    (tmp_path / "mine.csv").write_text("\n".join(["customer,item,rating", *rows]))
    data = file_data(tmp_path / "mine.csv", {"user_column": "customer"}, tmp_path / "home")
    assert capsys.readouterr().out == f"titles    none, ids are shown: no movies.csv beside {tmp_path}/mine.csv\n"
    assert list(data.people.values()) == ["User 7", "User 6", "User 5", "User 4", "User 3"]
    assert list(data.people) == example_users(data.ratings)
    assert {uuid.UUID(user).version for user in data.ratings["user_id"].to_pylist()} == {5}
    assert len(data.ratings) == len(rows)

    (tmp_path / "movies.csv").write_text("item_id,name,genre,year\nm1,Dune,Sci-Fi,1984\nm99,Never rated,,\n")
    data = file_data(tmp_path / "mine.csv", {"user_column": "customer"}, tmp_path / "home")
    assert capsys.readouterr().out == ""
    found = {movie: (title, genres) for movie, title, genres in movie_rows(data.ratings, data.movies)}
    assert found["m1"] == ("Dune (1984)", ["Sci-Fi"])
    assert (found["m0"], found["m99"]) == (("Movie m0", []), ("Never rated", []))
    # The model's own report finds the titles too.
    assert titles_beside(data.source.parameters["ratings_csv"])["m1"] == "Dune (1984)"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--ratings", "r.csv", "--import_table", "t"], "--ratings and --import_table are both given"),
        (["--ratings", "r.csv", "--supabase_url", "https://a.supabase.co"], "--supabase_url is for --import_table"),
        (["--supabase_url", "https://a.supabase.co"], "SUPABASE_URL needs IMPORT_TABLE=ratings"),
        (["--import_table", "none"], "the embedded Supabase has no table none: create it with `make seed-table`"),
        (["--ratings", "none.csv"], "none.csv: no such file"),
    ],
)
def test_a_source_that_is_none_is_refused_in_one_line(
    flags: list[str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tools, "supabase_js", lambda cache: cache / "supabase.js")
    with pytest.raises(SystemExit) as end:
        main(["demo", "--home", str(tmp_path), *flags])
    printed = capsys.readouterr()
    assert (end.value.code, printed.out) == (2, "")
    assert printed.err.startswith(f"error: {reason}")
    assert printed.err.count("\n") == 1


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
