"""Movie titles from the file movies.csv beside the ratings."""

import csv
import re
from pathlib import Path

from mf.errors import DataError
from mf.ratings.config import RECOGNISED, plain
from mf.ratings.fetch import local_copy
from mf.ratings.schema import MOVIE
from mf.terminal import printable


def titles_beside(ratings: str) -> dict[str, str]:
    """Titles by movie id, from the ``movies.csv`` (an id column that ingest would recognise, and title or name) beside
    ``ratings.csv`` or ``ratings.csv.gz`` or in the folder ``ratings``; a path or gs://bucket/….

    Empty where there is no such file or it cannot be read: without titles, ids are shown.
    """
    folder, slash, name = ratings.rpartition("/")
    movies = re.sub(r"\.(gz|bz2|xz|zst|zip)$", "", name).replace("ratings", "movies")
    if Path(ratings).is_dir() or not name:
        folder, slash, movies = ratings.rstrip("/"), "/", "movies.csv"
    elif "ratings" not in name:
        return {}
    try:
        with (
            local_copy(f"{folder}{slash}{movies}") as path,
            path.open(newline="", encoding="utf-8-sig", errors="replace") as lines,
        ):
            rows = csv.DictReader(lines)
            names = {plain(name): name for name in reversed(rows.fieldnames or ())}
            key = next((names[name] for name in (*RECOGNISED[MOVIE], "id") if name in names), "")
            title = next((names[name] for name in ("title", "name") if name in names), "")
            return {row[key]: printable(row[title]) for row in rows if row.get(key) and row.get(title)}
    except (OSError, csv.Error, DataError):
        return {}
