"""Movie titles and genres from the file movies.csv beside a file of ratings."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mf.errors import DataError
from mf.ratings.config import RECOGNISED, shown
from mf.ratings.fetch import local_copy
from mf.ratings.schema import MOVIE
from mf.ratings.streams import text_stream
from mf.terminal import printable

# Column names of a title, compared as those of ratings are; of several columns the first of these.
TITLES = ("title", "movietitle", "itemtitle", "name", "moviename", "itemname", "label")
GENRES = ("genres", "genre", "categories", "category", "tags")
YEARS = ("year", "releaseyear", "releasedate", "released")
DELIMITERS = ("::", "\t", ";", "|", ",")
LONGEST = 300  # characters of a title
NAMES = ("movies.csv", "movies.csv.gz", "items.csv", "titles.csv")  # where the ratings' own name gives no answer


class Movie(NamedTuple):
    """Title, with the year in brackets where it is known, and genres of a movie; printable text."""

    title: str
    genres: tuple[str, ...] = ()


def titles_beside(ratings: str, movie_column: str = "", say: Callable[[str], None] | None = None) -> dict[str, str]:
    """Titles by movie id; as ``movies_beside``."""
    return {movie: found.title for movie, found in movies_beside(ratings, movie_column, say).items()}


def movies_beside(ratings: str, movie_column: str = "", say: Callable[[str], None] | None = None) -> dict[str, Movie]:
    """Movies by id, from the file of movies beside ``ratings.csv``, a path or gs://bucket/object.

    Of ``ratings.dat.gz`` it is ``movies.dat.gz``, of any other name ``movies.csv``. Empty where there is no such file
    or it cannot be read: without titles, ids are shown.

    Args:
        ratings: the file of ratings.
        movie_column: its column of movie ids, which the file of movies may have too.
        say: is told why there are no titles.
    """
    if not ratings.startswith("gs://") and not Path(ratings).exists():
        return {}  # a table, a data frame or a glob
    if ratings.endswith("/") or Path(ratings).is_dir():
        ratings = f"{ratings.rstrip('/')}/ratings.csv"
    folder, slash, name = ratings.rpartition("/")
    same = re.sub("(?i)ratings?", "movies", name)
    reasons = []
    for candidate in dict.fromkeys((same, same.removesuffix(".gz"), *NAMES)):
        if candidate == name:
            continue
        try:
            return read_movies(f"{folder}{slash}{candidate}", movie_column)
        except DataError as error:
            reasons.append(str(error))
        if folder.startswith("gs://"):
            break  # each look is a request
    if say:
        found = next((reason for reason in reasons if "no such" not in reason), f"no movies.csv beside {ratings}")
        say(f"titles    none, ids are shown: {found}")
    return {}


def read_titles(file: str, movie_column: str = "") -> dict[str, str]:
    """Titles by movie id; as ``read_movies``."""
    return {movie: found.title for movie, found in read_movies(file, movie_column).items()}


def read_movies(file: str, movie_column: str = "") -> dict[str, Movie]:
    """Movies by id as text, from a file with columns of ids and titles; of an id that occurs twice the last one.

    Columns are recognised by name as those of ratings are (movieId, movie_id, itemId, …; title, name, …; genres,
    genre, …; year, …), with any delimiter, compression and encoding that a file of ratings may have. A file with ``::``
    and without a header (MovieLens' movies.dat) has id, title and genres.

    Raises:
        DataError: there is no such file, or it cannot be read or has no such columns.
    """
    with local_copy(file) as path, text_stream(path, file) as stream:
        data = b"".join(iter(lambda: stream.read(1 << 20), b""))
    text = _decoded(data.removeprefix(b"\xef\xbb\xbf"))
    try:
        return _read(text, file, movie_column)
    except csv.Error as error:
        raise DataError(f"{file}: {error}") from None


def _read(text: str, file: str, movie_column: str) -> dict[str, Movie]:
    header = text.lstrip("\r\n").partition("\n")[0]
    splits = {delimiter: next(_rows(header, delimiter), []) for delimiter in DELIMITERS}
    for delimiter, names in splits.items():
        if (found := movies_of(_rows(text, delimiter), names, movie_column, skip=1)) is not None:
            return found
    if len(splits["::"]) > 1 and splits["::"][0].strip().isdecimal():
        return movies_of(_rows(text, "::"), ("movieId", "title", "genres")) or {}
    names = max(splits.values(), key=len)
    raise DataError(
        f"{file}: expected a column of movie ids (movieId, movie_id, itemId) and one of titles (title, name), found "
        f"{shown(', '.join(names), 200)}"
    )


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _rows(text: str, delimiter: str) -> Iterator[list[str]]:
    if delimiter == "::":
        return (line.split("::") for line in text.splitlines() if line.strip())
    return filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True))


def movies_of(
    rows: Iterable[Sequence[object]], names: Sequence[str], movie_column: str = "", skip: int = 0
) -> dict[str, Movie] | None:
    """The movies in ``rows`` after the first ``skip``, whose columns have ``names``; None where ids or titles have no
    column."""
    places = movie_columns(names, movie_column)
    if places is None:
        return None
    movie, title, genres, year = places
    movies = {}
    for number, row in enumerate(rows):
        cells = ["" if cell is None else str(cell).strip() for cell in row]
        if number < skip or len(cells) <= max(movie, title) or not cells[movie] or not cells[title]:
            continue
        of_genres, of_year = (cells[place] if 0 <= place < len(cells) else "" for place in (genres, year))
        # As ids are read: pandas writes integers beside gaps as 7.0.
        id = re.sub(r"^(-?\d+)\.0+$", r"\1", cells[movie])
        short = cells[title] if len(cells[title]) <= LONGEST else f"{cells[title][:LONGEST]}…"
        movies[id] = Movie(printable(_with_year(short, of_year)), _genres(of_genres))
    return movies


def movie_columns(names: Sequence[str], movie_column: str = "") -> tuple[int, int, int, int] | None:
    """Positions of id, title, genres and year among ``names``, -1 where there is none; None without ids or titles."""
    plain = [_plain(name) for name in names]
    ids = (*([_plain(movie_column)] if movie_column else []), *RECOGNISED[MOVIE], "id")
    places = [next((plain.index(one) for one in wanted if one in plain), -1) for wanted in (ids, TITLES, GENRES, YEARS)]
    movie, title, genres, year = places
    return None if -1 in (movie, title) or movie == title else (movie, title, genres, year)


def _with_year(title: str, year: str) -> str:
    """``title (1995)``, where it does not end so and ``year`` begins with a year."""
    found = re.match(r"(1[89]|20)\d\d(?!\d)", year)
    return title if not found or re.search(r"\(\d{4}\)$", title) else f"{title} ({found[0]})"


def _genres(text: str) -> tuple[str, ...]:
    """Genres separated by ``|``, ``,`` or ``;``, also in brackets and quotes as JSON and Python write lists."""
    names = (name.strip(" \t\"'[]{}") for name in re.split(r"[|,;]", text))
    return tuple(dict.fromkeys(printable(name[:40]) for name in names if name and name != "(no genres listed)"))


def _plain(name: str) -> str:
    return re.sub("[-_ ]", "", name.strip().lower())
