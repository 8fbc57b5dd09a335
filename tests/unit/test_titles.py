from pathlib import Path

import pytest

from mf.ratings.titles import titles_beside


@pytest.mark.parametrize(
    "header", ["movieId,title,genres", "movie_id,title,genre", "item_id,name,in_stock", "genres,title,id", "ID,Title,x"]
)
@pytest.mark.parametrize("ratings", ["ratings.csv", "ratings.csv.gz", "set", "set/ratings-*.csv"])
def test_titles_are_found_whatever_the_columns_are_called(tmp_path: Path, header: str, ratings: str) -> None:
    (tmp_path / "set").mkdir()
    movies = {"set": "set/movies.csv", "set/ratings-*.csv": "set/movies-*.csv"}.get(ratings, "movies.csv")
    cells = {"title": "Léon, the", "name": "Léon, the", "id": "7", "movieid": "7", "itemid": "7"}
    row = [cells.get(name.lower().replace("_", ""), "x") for name in header.split(",")]
    (tmp_path / movies).write_text(header + "\n" + ",".join(f'"{cell}"' for cell in row) + "\n")
    assert titles_beside(str(tmp_path / ratings)) == {"7": "Léon, the"}


def test_without_titles_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text("movieId,year\n1,2000\n")
    assert titles_beside(str(tmp_path / "ratings.csv")) == {}
    (tmp_path / "movies.csv").write_bytes(b"\xff\x00")
    assert titles_beside(str(tmp_path / "ratings.csv")) == {}
