"""The sources of a local run, and the database of each."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mf.errors import ConfigError
from mf.local import LocalSupabase
from mf.supabase.config import SchemaConfig
from mf.supabase.schema import migration
from pipelines.laptop import sources
from pipelines.laptop.seed import seed_table

RATINGS = "userId,movieId,rating\n" + "".join(f"u{i % 7},{i},{i % 5 + 0.5}\n" for i in range(30))


def test_a_file_keeps_its_id_types_whatever_views_its_database_has(
    fresh_stack: Callable[..., LocalSupabase], tmp_path: Path
) -> None:
    (tmp_path / "ratings.csv").write_text(RATINGS)
    source, database = sources.file_source(tmp_path / "ratings.csv", {}), fresh_stack()
    expected = SchemaConfig(user_id_type="text", movie_id_type="bigint")
    assert source.schema(database) == expected
    database.migrate(migration(expected.model_copy(update={"movie_export_table": "films"})))
    assert source.schema(database) == expected


def test_the_database_of_a_file_depends_on_its_content_and_on_how_it_is_read(tmp_path: Path) -> None:
    for name, text in (("a.csv", RATINGS), ("b.csv", RATINGS), ("c.csv", RATINGS + "u1,99,1\n")):
        (tmp_path / name).write_text(text)
    first, same, other = (sources.file_source(tmp_path / f"{name}.csv", {}).database for name in "abc")
    read_otherwise = sources.file_source(
        tmp_path / "a.csv", {"user_column": "movieId", "movie_column": "userId"}
    ).database
    assert first == same
    assert len({first, other, read_otherwise}) == 3


def test_a_seeded_table_is_a_source_with_titles(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(RATINGS)
    (tmp_path / "movies.csv").write_text("movieId,title\n3,A Title\n")
    report = seed_table("public.stars", tmp_path / "ratings.csv", {}, tmp_path / "home")
    assert report.endswith("make run IMPORT_TABLE=stars")
    source = sources.table_source("stars", {}, tmp_path / "home")
    with LocalSupabase(tmp_path / "home" / "supabase", source.database) as database:
        schema = source.schema(database)
        assert (schema.user_id_type, schema.movie_id_type, schema.ratings_table) == ("text", "bigint", "stars")
        assert source.titles(database) == {"3": "A Title"}
        with database.connect() as connection:
            assert connection.execute("select count(*), min(rating) from public.stars").fetchone() == (30, 0.5)


@pytest.mark.parametrize("name", ["movies", "mf_runs", "My Table", "", "public.movies"])
def test_an_invalid_table_name_is_refused_before_any_file_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a table of the embedded Supabase cannot be called"):
        seed_table(name, tmp_path / "ratings.csv", {}, tmp_path / "home")
    with pytest.raises(ConfigError, match="a table of the embedded Supabase cannot be called"):
        sources.table_source(name, {}, tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_file_of_titles_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(RATINGS)
    source = sources.file_source(tmp_path / "ratings.csv", {})
    assert source.titles(None) == {}
    (tmp_path / "movies.csv").write_text('movieId,title\n1,"unclosed' + "a" * 140_000)
    assert source.titles(None) == {}
    (tmp_path / "movies.csv").write_bytes(b"\xef\xbb\xbfmovieId,title\n1,One\n")
    assert source.titles(None) == {"1": "One"}
