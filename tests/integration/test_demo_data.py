"""Ratings and titles of a table for the demo, from a project of the user's own and from the embedded Supabase."""

from pathlib import Path

import pytest
from faults import FaultySupabase

from mf.errors import SupabaseError
from mf.local import delete_home
from pipelines.__main__ import main
from pipelines.laptop.demo import data

TABLES = """
create table public.votes (who integer, movie_id integer, stars real, primary key (who, movie_id));
insert into public.votes select u, m, 1 + (u + m) % 5 from generate_series(1, 30) u, generate_series(1, 50) m
  where (u * m) % 3 <> 0;
create table public.movies ("movieId" integer primary key, "Name" text, genre text[], released date, poster text);
insert into public.movies select m, 'Film ' || m, array['war', 'drama'], '1999-05-01', 'x'
  from generate_series(1, 1100) m;
grant select on public.votes, public.movies to service_role;
"""
COLUMNS = {"user_column": "who", "rating_column": "stars"}


@pytest.fixture(scope="module")
def project(fresh_stack) -> FaultySupabase:
    supabase = fresh_stack()
    supabase.migrate(TABLES)
    return supabase


def test_a_table_of_the_users_project_is_read_with_its_titles_and_nothing_is_written_there(
    project: FaultySupabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUPABASE_KEY", project.secret_key)
    project.gateway.requests.clear()
    found = data.project_data(project.url, "votes", COLUMNS, tmp_path)
    assert {request.method for request in project.gateway.requests} == {"GET"}
    assert capsys.readouterr().out == ""
    with project.connect() as connection:
        (rows,) = connection.execute("select count(*) from public.votes").fetchone() or ()
    assert len(found.ratings) == rows
    assert len(found.movies) == 1100  # more than one page
    assert found.movies["1100"] == ("Film 1100 (1999)", ("war", "drama"))
    assert len(found.people) == 5
    assert all(name.removeprefix("User ").isdecimal() for name in found.people.values())
    # The key is in no file.
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) == 2
    assert not [file for file in written if project.secret_key.encode() in file.read_bytes()]


def test_without_a_table_of_movies_a_line_says_so(
    project: FaultySupabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUPABASE_KEY", project.secret_key)
    project.migrate("alter table public.movies rename to films; create table public.movies (movie_id int, about text)")
    try:
        project.migrate("grant select on public.movies to service_role; insert into public.movies values (1, 'x')")
        assert data.project_data(project.url, "votes", COLUMNS, tmp_path).movies == {}
        said = (
            "titles    none, ids are shown: expected columns of ids and titles in table movies, found movie_id, about\n"
        )
        assert capsys.readouterr().out == said
        project.migrate("drop table public.movies")
        assert data.project_data(project.url, "votes", COLUMNS, tmp_path).movies == {}
        assert capsys.readouterr().out.startswith("titles    none, ids are shown: ")
    finally:
        project.migrate("drop table if exists public.movies; alter table public.films rename to movies")


def test_a_wrong_key_or_table_is_one_sentence(
    project: FaultySupabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPABASE_KEY", "sb_secret_wrong_wrong_wrong_wrong")
    with pytest.raises(SupabaseError) as wrong:
        data.project_data(project.url, "votes", COLUMNS, tmp_path)
    assert "wrong_wrong" not in str(wrong.value)
    monkeypatch.setenv("SUPABASE_KEY", project.secret_key)
    with pytest.raises(SupabaseError, match="nowhere"):
        data.project_data(project.url, "nowhere", COLUMNS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_seeded_table_keeps_its_titles_and_genres(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("SUPABASE_URL", "https://abc.supabase.co")  # of the user's own project, which does not count
    monkeypatch.setenv("SUPABASE_KEY", "sb_secret_hunter2hunter2")
    try:
        main(["seed-table", "--home", str(home)])
        found = data.table_data("ratings", {}, home)
    finally:
        delete_home(home / "supabase")
    assert "titles" not in capsys.readouterr().out
    assert len(found.ratings) == 11_000
    assert len(found.movies) == 240
    assert all(movie.title.startswith("The ") and len(movie.genres) == 2 for movie in found.movies.values())
    assert set(found.people) <= set(found.ratings["user_id"].to_pylist())
