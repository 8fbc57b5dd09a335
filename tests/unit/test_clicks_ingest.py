"""Clicks: files and tables without ratings, and ratings that are all the same."""

from pathlib import Path

import pytest

from mf.errors import DataError
from mf.ingest import ingest
from mf.ratings.config import IngestConfig
from mf.ratings.schema import Provenance, read_ratings

OR_NONE = r"name it with --rating_column, or none where there are no ratings \(clicks, plays, purchases\)"


def read(
    folder: Path, text: str, for_training: bool = False, **options: str
) -> tuple[list[str], list[tuple], Provenance]:  # type: ignore[type-arg]
    (folder / "clicks.csv").write_text(text)
    config = IngestConfig.of(ratings_csv=str(folder / "clicks.csv"), **{"max_reject_fraction": 0.5, **options})
    provenance = ingest(config, folder / "out.parquet", folder / "rejects.csv", for_training=for_training)
    table, _ = read_ratings(folder / "out.parquet")
    return table.column_names, [tuple(row.values()) for row in table.select([0, 1]).to_pylist()], provenance


@pytest.mark.parametrize(
    "text",
    [
        "userId,movieId\n1,10\n1,20\n1,10\n2,10\n",
        "user_id;item_id\n1;10\n1;20\n1;10\n2;10\n",
        "item,user,plays\n10,1,3\n20,1,1\n10,1,1\n10,2,99\n",
        "userId,itemId,play_count\n1,10,1\n1,20,2.0\n1,10,1e5\n2,10,1\n",
    ],
)
def test_a_file_of_a_user_and_an_item_is_one_of_clicks(tmp_path: Path, text: str) -> None:
    columns, pairs, provenance = read(tmp_path, text, for_training=True)
    assert columns == ["user_id", "movie_id"]
    assert pairs == [(1, 10), (1, 20), (2, 10)]  # each pair once
    assert (provenance.rows_read, provenance.rows_replaced, provenance.rows_kept) == (4, 1, 3)
    assert not provenance.has_ratings
    assert "1 repeats of a pair, 3 kept; without ratings: only the columns" in provenance.summary()


def test_a_time_is_kept_and_the_newest_of_a_pair_counts(tmp_path: Path) -> None:
    columns, _, _ = read(tmp_path, "userId,movieId,timestamp,count\n1,10,500,1\n1,10,100,7\n2,10,300,1\n")
    table, _ = read_ratings(tmp_path / "out.parquet")
    assert columns == ["user_id", "movie_id", "rated_at"]
    assert [time.timestamp() for time in table["rated_at"].to_pylist()] == [500, 300]


@pytest.mark.parametrize(
    "header",
    ["userId,movieId,tag", "userId,movieId,score,timestamp", "id,userId,movieId", "userId,movieId,plays,clicks"],
)
def test_another_column_is_an_error_that_offers_none(tmp_path: Path, header: str) -> None:
    row = ",".join("1" * (header.count(",") + 1))
    with pytest.raises(
        DataError, match=f'no column recognised as rating, found "{header.replace(",", ", ")}"; {OR_NONE}'
    ):
        read(tmp_path, f"{header}\n{row}\n")
    columns, pairs, _ = read(tmp_path, f"{header}\n{row}\n", rating_column="none")
    assert (columns[:2], pairs) == (["user_id", "movie_id"], [(1, 1)])


def test_a_rating_column_is_ignored_with_none_and_the_summary_says_so(tmp_path: Path) -> None:
    columns, pairs, provenance = read(tmp_path, "userId,movieId,rating\n1,10,five\n1,20,3\n", rating_column="none")
    assert (columns, pairs) == (["user_id", "movie_id"], [(1, 10), (1, 20)])
    assert provenance.columns == {"user_id": "userId", "movie_id": "movieId"}
    assert "without ratings: only the columns userId, movieId are read" in provenance.summary()


def test_a_file_without_a_header_names_its_columns(tmp_path: Path) -> None:
    _, pairs, _ = read(tmp_path, "1,10,3\n1,20,1\n", columns="userId,movieId,plays")
    assert pairs == [(1, 10), (1, 20)]


def test_what_happened_no_time_is_a_bad_row(tmp_path: Path) -> None:
    _, pairs, provenance = read(tmp_path, "user,item,views\n1,10,0\n1,20,1\n1,30,-2\n2,10,1\n2,20,some\n2,30,4\n")
    assert (pairs, provenance.rows_rejected) == ([(1, 20), (2, 10), (2, 30)], 3)
    rejects = (tmp_path / "rejects.csv").read_text()
    for reason in ('count ""0"" is not above 0', 'count ""-2"" is not above 0', 'count ""some"" is not a number'):
        assert reason in rejects


def test_ratings_that_are_all_the_same_are_refused_where_they_are_to_be_trained_on(tmp_path: Path) -> None:
    same = "userId,movieId,rating\n1,10,1\n1,20,1.0\n"
    with pytest.raises(DataError, match=r"found no other rating than 1, in 2 rows, expected .* use rating_column=none"):
        read(tmp_path, same, for_training=True)
    assert not (tmp_path / "out.parquet").exists()
    read(tmp_path, same)  # a test file may be of one rating
