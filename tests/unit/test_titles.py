"""Titles of movies, from files of many forms beside the ratings."""

import gzip
from pathlib import Path

import pytest

from mf.errors import DataError
from mf.ratings.titles import Movie, read_movies, read_titles, titles_beside

FILES = {
    "MovieLens": b"movieId,title,genres\n1,Toy Story (1995),Comedy\n2,\"Postman, The (Il Postino)\",Drama\n",
    "snake case and more columns": b"genre,movie_id,title\nx,1,Toy Story (1995)\ny,2,\"Postman, The (Il Postino)\"\n",
    "items with names": b"Item ID;Name\r\n1;Toy Story (1995)\r\n2;Postman, The (Il Postino)\r\n",
    "a byte order mark and tabs": b"\xef\xbb\xbfid\ttitle\n1.0\tToy Story (1995)\n2.0\tPostman, The (Il Postino)\n",
    "UTF-16": "movieId,title\n1,Toy Story (1995)\n2,\"Postman, The (Il Postino)\"\n".encode("utf-16"),
    "MovieLens' movies.dat": b"1::Toy Story (1995)::Comedy\n2::Postman, The (Il Postino)::Drama\n",
    "gzip": gzip.compress(b'movieId,title\n1,Toy Story (1995)\n2,"Postman, The (Il Postino)"\n'),
}  # fmt: skip
EXPECTED = {"1": "Toy Story (1995)", "2": "Postman, The (Il Postino)"}


@pytest.mark.parametrize("form", FILES)
def test_titles_are_read_from_files_of_many_forms(form: str, tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_bytes(FILES[form])
    assert read_titles(str(tmp_path / "movies.csv")) == EXPECTED


def test_latin_1_is_read_and_empty_titles_are_not(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("movieId,title\n1,Léon\n2,\n,x\n3\n".encode("latin-1"))
    assert read_titles(str(tmp_path / "m.csv")) == {"1": "Léon"}


def test_a_title_that_is_too_long_is_cut(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"movieId,title,year\n1,{'a' * 100_000},1995\n")
    assert read_titles(str(tmp_path / "m.csv")) == {"1": f"{'a' * 300}… (1995)"}


def test_the_column_of_the_ratings_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("Book Code,Title\nb1,Dune\n")
    assert read_titles(str(tmp_path / "m.csv"), "Book Code") == {"b1": "Dune"}
    with pytest.raises(DataError, match=r'm.csv: expected a column of movie ids .* found "Book Code, Title"'):
        read_titles(str(tmp_path / "m.csv"))


@pytest.mark.parametrize(
    ("ratings", "movies"),
    [
        ("ratings.csv", "movies.csv"),
        ("ratings.csv.gz", "movies.csv"),
        ("Ratings.dat", "movies.dat"),
        ("mine.csv", "movies.csv"),
    ],
)
def test_the_file_of_movies_is_found_beside_the_ratings(ratings: str, movies: str, tmp_path: Path) -> None:
    (tmp_path / ratings).touch()
    (tmp_path / movies).write_bytes(FILES["MovieLens"])
    said: list[str] = []
    assert titles_beside(str(tmp_path / ratings), say=said.append) == EXPECTED
    assert said == []


def test_a_table_has_no_titles_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("movies.csv").write_bytes(FILES["MovieLens"])
    assert titles_beside("table public.ratings", say=pytest.fail) == {}


def test_a_line_says_why_there_are_no_titles(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").touch()
    said: list[str] = []
    assert titles_beside(str(tmp_path / "ratings.csv"), say=said.append) == {}
    assert said.pop() == f"titles    none, ids are shown: no movies.csv beside {tmp_path}/ratings.csv"
    (tmp_path / "movies.csv").write_text("a,b\n1,2\n")
    assert titles_beside(str(tmp_path / "ratings.csv"), say=said.append) == {}
    assert said[0].startswith(f"titles    none, ids are shown: {tmp_path}/movies.csv: expected a column of movie ids")


def test_the_titles_of_a_folder_are_in_it_and_act_on_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text("movieId,title\n1,\x1b[31mRed\u202e\n")
    assert titles_beside(str(tmp_path)) == {"1": r"\x1b[31mRed\u202e"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("movieId,title,genres\n1,Toy (1995),Comedy|Drama|Comedy\n", Movie("Toy (1995)", ("Comedy", "Drama"))),
        ("movie_id;Name;Genre;Year\n1;Toy;Sci-Fi, War;1995\n", Movie("Toy (1995)", ("Sci-Fi", "War"))),
        ('id,title,genres,release_date\n1,Toy (1995),"[""A"", ""B""]",1996-01-01\n', Movie("Toy (1995)", ("A", "B"))),
        ("1::Toy::Comedy|War\n", Movie("Toy", ("Comedy", "War"))),
        ("itemId,title,genres,year\n1,Toy,(no genres listed),unknown\n", Movie("Toy")),
        ("itemId,title,genres\n1,Toy\n", Movie("Toy")),
        ("itemId,title,genres\n1,Toy,\x1b[31mRed\n", Movie("Toy", (r"\x1b[31mRed",))),
    ],
)
def test_genres_and_years_are_read_as_the_titles_are(text: str, expected: Movie, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(text)
    assert read_movies(str(tmp_path / "m.csv")) == {"1": expected}
