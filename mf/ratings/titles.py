"""Movie titles from MovieLens' movies.csv."""

import csv

from mf.errors import DataError
from mf.ratings.fetch import local_copy


def titles_beside(ratings: str) -> dict[str, str]:
    """Titles by movie id, from the ``movies.csv`` (movieId, title) beside a file of ratings or clicks, a path or
    gs://bucket/object; from ``movies_small.csv`` beside ``ratings_small.csv`` or ``ratings_small.csv.gz``.

    Empty where there is no such file or it cannot be read: without titles, ids are shown.
    """
    folder, slash, name = ratings.rpartition("/")
    movies = name.removesuffix(".gz").replace("ratings", "movies") if "ratings" in name else "movies.csv"
    if movies == name or ratings.startswith("table "):  # a table's name as ``Provenance.source`` has it
        return {}
    try:
        with (
            local_copy(f"{folder}{slash}{movies}") as path,
            path.open(newline="", encoding="utf-8-sig", errors="replace") as lines,
        ):
            rows = csv.DictReader(lines)
            return {row["movieId"]: row["title"] for row in rows if row.get("movieId") and row.get("title")}
    except (OSError, csv.Error, DataError):
        return {}
