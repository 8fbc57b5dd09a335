"""Movie titles from the file movies.csv beside a file of ratings."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mf.errors import DataError
from mf.ratings.config import RECOGNISED, shown
from mf.ratings.fetch import local_copy
from mf.ratings.schema import MOVIE
from mf.ratings.streams import text_stream
from mf.terminal import printable

# Column names of a title, compared as those of ratings are; of several columns the first of these.
TITLES = ("title", "movietitle", "itemtitle", "name", "moviename", "itemname", "label")
DELIMITERS = ("::", "\t", ";", "|", ",")
NAMES = ("movies.csv", "movies.csv.gz", "items.csv", "titles.csv")  # where the ratings' own name gives no answer


def titles_beside(ratings: str, movie_column: str = "", say: Callable[[str], None] | None = None) -> dict[str, str]:
    """Titles by movie id, from the file of movies beside ``ratings.csv``, a path or gs://bucket/object.

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
            return read_titles(f"{folder}{slash}{candidate}", movie_column)
        except DataError as error:
            reasons.append(str(error))
        if folder.startswith("gs://"):
            break  # each look is a request
    if say:
        found = next((reason for reason in reasons if "no such" not in reason), f"no movies.csv beside {ratings}")
        say(f"titles    none, ids are shown: {found}")
    return {}


def read_titles(file: str, movie_column: str = "") -> dict[str, str]:
    """Titles by movie id as text, from a file with a column of each; of an id that occurs twice the last one.

    Columns are recognised by name as those of ratings are (movieId, movie_id, itemId, …; title, name, …), with any
    delimiter, compression and encoding that a file of ratings may have. A file with ``::`` and without a header
    (MovieLens' movies.dat) has id and title first.

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


def _read(text: str, file: str, movie_column: str) -> dict[str, str]:
    header = text.lstrip("\r\n").partition("\n")[0]
    splits = {delimiter: next(_rows(header, delimiter), []) for delimiter in DELIMITERS}
    for delimiter, names in splits.items():
        if (columns := _columns(names, movie_column)) is not None:
            return _titles(_rows(text, delimiter), *columns, skip=1)
    if len(splits["::"]) > 1 and splits["::"][0].strip().isdecimal():
        return _titles(_rows(text, "::"), 0, 1, skip=0)
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


def _columns(names: Sequence[str], movie_column: str) -> tuple[int, int] | None:
    """Positions of the id and of the title; None where one is missing."""
    plain = [_plain(name) for name in names]
    ids = (*([_plain(movie_column)] if movie_column else []), *RECOGNISED[MOVIE], "id")
    places = [next((plain.index(name) for name in wanted if name in plain), -1) for wanted in (ids, TITLES)]
    return None if -1 in places or places[0] == places[1] else (places[0], places[1])


def _plain(name: str) -> str:
    return re.sub("[-_ ]", "", name.strip().lower())


def _titles(rows: Iterator[list[str]], movie: int, title: int, skip: int) -> dict[str, str]:
    titles = {}
    for number, row in enumerate(rows):
        if number >= skip and len(row) > max(movie, title) and row[movie].strip() and row[title].strip():
            # As ids are read: pandas writes integers beside gaps as 7.0.
            titles[re.sub(r"^(-?\d+)\.0+$", r"\1", row[movie].strip())] = printable(row[title].strip())
    return titles
