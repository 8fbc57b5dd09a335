"""The summary at the end of a local run."""

import io
import re
from pathlib import Path

import pyarrow as pa
import pytest

from mf.ratings.schema import Provenance, write_ratings
from pipelines.laptop import summary
from pipelines.laptop.summary import example_user, lists_line, print_decision


def table(users: list[int], movies: list[int], ratings: list[float]) -> pa.Table:
    return pa.table({"user_id": users, "movie_id": movies, "rating": pa.array(ratings, pa.float32())})


def test_the_example_is_the_user_with_most_ratings_and_the_best_known_favourite(tmp_path: Path) -> None:
    users = [1, 1, 1, 2, 2, 3, *range(10, 30)]
    movies = [1, 2, 3, 2, 3, 2, *range(10, 30)]
    ratings = [5.0, 5.0, 1.0, 3, 3, 3, *[3.0] * 20]
    made = table(users, movies, ratings)
    assert example_user(made) == (1, 2)
    write_ratings(made, tmp_path / "ratings.parquet", Provenance("r.csv", 26, 0, 0, 26))
    assert example_user(tmp_path / "ratings.parquet") == (1, 2)


def test_a_user_who_has_rated_nearly_every_movie_is_left_out() -> None:
    users = [*[1] * 28, *[2] * 4, 3]
    movies = [*range(28), *range(4), 29]
    assert example_user(table(users, movies, [4.0] * 33))[0] == 2


def test_the_user_with_fewest_ratings_is_taken_when_all_have_rated_every_movie() -> None:
    assert example_user(table([1, 1, 1, 2, 2], [1, 2, 3, 1, 2], [4.0] * 5))[0] == 2


def test_lists_are_shown_beside_popularity_or_with_the_reason_why_there_are_none() -> None:
    scores = {"k": 10, "model": {"ndcg": 0.25649}, "popularity": {"ndcg": 0.1241}, "reason": ""}
    assert lists_line(scores) == "lists  NDCG@10 0.256, popularity 0.124"
    nothing = {"k": 10, "model": None, "popularity": None, "reason": "no test rating is 4 or higher"}
    assert lists_line(nothing) == "lists  no figure: no test rating is 4 or higher"


@pytest.mark.parametrize(
    ("decision", "published", "expected"),
    [
        ({"publish": True, "forced": False, "reasons": []}, "r1", ""),
        ({"publish": True, "forced": True, "reasons": ["a"]}, "r1", "\npublished by force, although\n  a\n"),
        (
            {"publish": False, "forced": False, "reasons": ["a", "b"]},
            "r1",
            '\nnot published, since\n  a\n  b\nreaders see run r1\npublish it anyway: PARAMS="force_publish=true"\n',
        ),
        (
            {"publish": False, "forced": False, "reasons": ["a"]},
            None,
            "\nnot published, since\n  a\nno run is published, so nothing is recommended\n"
            'publish it anyway: PARAMS="force_publish=true"\n',
        ),
    ],
)
def test_a_refused_run_is_reported_with_reasons_and_the_published_run(
    capsys: pytest.CaptureFixture[str], decision: dict[str, object], published: str | None, expected: str
) -> None:
    print_decision(decision, published)
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(("publish", "colour"), [(True, 32), (False, 31)])
def test_the_verdict_has_a_colour_on_a_terminal_only_and_not_with_no_color(
    monkeypatch: pytest.MonkeyPatch, publish: bool, colour: int
) -> None:
    decision = {"publish": publish, "forced": False, "reasons": [] if publish else ["a"]}
    plain = "published, in 34 s" if publish else "not published: a, in 34 s"
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert summary._verdict(decision, 34.2) == plain  # a pipe
    monkeypatch.setattr("sys.stdout", Terminal())
    word, rest = re.fullmatch(r"((?:not )?published)(.*)", plain).groups()  # type: ignore[union-attr]
    assert summary._verdict(decision, 34.2) == f"\x1b[{colour}m{word}\x1b[0m{rest}"
    monkeypatch.setenv("NO_COLOR", "1")
    assert summary._verdict(decision, 34.2) == plain


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True
