"""What the pipeline can be run on here, and the database that each source gets."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mf.errors import ConfigError
from mf.local import LocalSupabase
from mf.supabase.config import SchemaConfig
from mf.supabase.schema import migration
from pipelines.laptop import sources

RATINGS = "userId,movieId,rating\n" + "".join(f"u{i % 7},{i},3.5\n" for i in range(30))


def test_a_file_asks_for_its_own_id_types_whatever_views_its_database_had(
    fresh_stack: Callable[..., LocalSupabase], tmp_path: Path
) -> None:
    (tmp_path / "ratings.csv").write_text(RATINGS)
    source, database = sources.file(tmp_path / "ratings.csv", {}), fresh_stack()
    expected = SchemaConfig(user_id_type="text", movie_id_type="bigint")
    assert source.schema(database) == expected
    database.migrate(migration(expected.model_copy(update={"movie_export_table": "films"})))
    assert source.schema(database) == expected


def test_a_files_database_depends_on_its_content_and_on_how_it_is_read(tmp_path: Path) -> None:
    for name, text in (("a.csv", RATINGS), ("b.csv", RATINGS), ("c.csv", RATINGS + "u1,99,1\n")):
        (tmp_path / name).write_text(text)
    first, same, other = (sources.file(tmp_path / f"{name}.csv", {}).database for name in "abc")
    read_otherwise = sources.file(tmp_path / "a.csv", {"user_column": "movieId", "movie_column": "userId"}).database
    assert first == same
    assert len({first, other, read_otherwise}) == 3


def test_a_seeded_table_is_a_source_of_its_own_with_its_titles(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(RATINGS)
    (tmp_path / "movies.csv").write_text("movieId,title\n3,A Title\n")
    said = sources.seed("public.stars", tmp_path / "ratings.csv", {}, tmp_path / "home")
    assert said.endswith("make run IMPORT_TABLE=stars")
    source = sources.table("stars", {}, tmp_path / "home")
    with LocalSupabase(tmp_path / "home" / "supabase", source.database) as database:
        schema = source.schema(database)
        assert (schema.user_id_type, schema.movie_id_type, schema.ratings_table) == ("text", "bigint", "stars")
        assert source.titles(database) == {"3": "A Title"}
        with database.connect() as connection:
            assert connection.execute("select count(*), min(rating) from public.stars").fetchone() == (30, 3.5)


@pytest.mark.parametrize("name", ["movies", "mf_runs", "My Table", "", "public.movies"])
def test_a_name_that_no_table_can_have_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a table of the embedded Supabase cannot be called"):
        sources.seed(name, tmp_path / "ratings.csv", {}, tmp_path / "home")
    with pytest.raises(ConfigError, match="a table of the embedded Supabase cannot be called"):
        sources.table(name, {}, tmp_path / "home")
    assert list(tmp_path.iterdir()) == []


def test_titles_that_cannot_be_read_are_done_without(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(RATINGS)
    source = sources.file(tmp_path / "ratings.csv", {})
    assert source.titles(None) == {}
    (tmp_path / "movies.csv").write_text('movieId,title\n1,"unclosed' + "a" * 140_000)
    assert source.titles(None) == {}
    (tmp_path / "movies.csv").write_bytes(b"\xef\xbb\xbfmovieId,title\n1,One\n")
    assert source.titles(None) == {"1": "One"}
