"""Whose recommendations a run ends with."""

import pyarrow as pa
import pytest

from pipelines.laptop.summary import example, tell


def table(users: list[int], movies: list[int], ratings: list[float]) -> pa.Table:
    return pa.table({"user_id": users, "movie_id": movies, "rating": pa.array(ratings, pa.float32())})


def test_the_busiest_user_is_shown_with_the_best_known_of_the_movies_that_it_likes_best() -> None:
    users = [1, 1, 1, 2, 2, 3, *range(10, 30)]
    movies = [1, 2, 3, 2, 3, 2, *range(10, 30)]
    ratings = [5.0, 5.0, 1.0, 3, 3, 3, *[3.0] * 20]
    assert example(table(users, movies, ratings)) == (1, 2)


def test_a_user_who_has_rated_nearly_everything_is_passed_over() -> None:
    users = [*[1] * 28, *[2] * 4, 3]
    movies = [*range(28), *range(4), 29]
    assert example(table(users, movies, [4.0] * 33))[0] == 2


def test_where_all_have_rated_everything_the_one_with_the_fewest_ratings_is_shown() -> None:
    assert example(table([1, 1, 1, 2, 2], [1, 2, 3, 1, 2], [4.0] * 5))[0] == 2


@pytest.mark.parametrize(
    ("decision", "readers_see", "said"),
    [
        ({"publish": True, "forced": False, "reasons": []}, "r1", ""),
        ({"publish": True, "forced": True, "reasons": ["a"]}, "r1", "\npublished by force, although\n  a\n"),
        (
            {"publish": False, "forced": False, "reasons": ["a", "b"]},
            "r1",
            "\nnot published, since\n  a\n  b\nreaders see run r1\n"
            'publish it all the same: PARAMS="force_publish=true"\n',
        ),
        (
            {"publish": False, "forced": False, "reasons": ["a"]},
            None,
            "\nnot published, since\n  a\nno run is published, so nothing is recommended\n"
            'publish it all the same: PARAMS="force_publish=true"\n',
        ),
    ],
)
def test_a_run_that_did_not_pass_the_gate_says_why_and_what_readers_see(
    capsys: pytest.CaptureFixture[str], decision: dict[str, object], readers_see: str | None, said: str
) -> None:
    tell(decision, readers_see)
    assert capsys.readouterr().out == said
