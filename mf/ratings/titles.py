"""What movies are called, where a file says so."""

import csv

from mf.errors import DataError
from mf.ratings.fetch import local_copy


def titles_beside(ratings: str) -> dict[str, str]:
    """Titles by movie id, from the file of movies beside a file of ratings, as MovieLens has it: ``movies.csv``
    (movieId, title) beside ``ratings.csv`` or ``ratings.csv.gz``, a path or gs://bucket/object.

    Empty where no such file is, or none that can be read: titles are an ornament, the ids do as well.
    """
    folder, slash, name = ratings.rpartition("/")
    if "ratings" not in name:
        return {}
    movies = name.removesuffix(".gz").replace("ratings", "movies")
    try:
        with (
            local_copy(f"{folder}{slash}{movies}") as path,
            path.open(newline="", encoding="utf-8-sig", errors="replace") as lines,
        ):
            rows = csv.DictReader(lines)
            return {row["movieId"]: row["title"] for row in rows if row.get("movieId") and row.get("title")}
    except (OSError, csv.Error, DataError):
        return {}
