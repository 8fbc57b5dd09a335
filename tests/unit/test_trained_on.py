"""What a model notes of the ratings that it was trained on."""

from dataclasses import asdict, replace
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from mf.ratings.schema import TIMESTAMP, Provenance, TrainedOn, content_hash

PROVENANCE = Provenance("table public.ratings", 4, 0, 0, 4, columns={"user_id": "user", "rated_at": "time"})


def table(*years: int | None) -> pa.Table:
    times = [year and datetime(year, 1, 1, tzinfo=UTC) for year in years]
    ids = list(range(len(years)))
    columns = {"user_id": ids, "movie_id": ids, "rating": pa.array([3.0] * len(ids), pa.float32())}
    return pa.table({**columns, "rated_at": pa.array(times, TIMESTAMP)})


def test_it_holds_the_source_the_rows_and_the_time_of_the_newest_rating_of_both_parts() -> None:
    train, validation = table(2001, None, 1999), table(2002)
    noted = TrainedOn.of(PROVENANCE, train, validation)
    assert noted == TrainedOn(
        "table public.ratings", PROVENANCE.columns, content_hash(train), "2002-01-01T00:00:00+00:00", noted.seen_hash
    )
    other = TrainedOn.of(PROVENANCE, train, table(2004))
    assert (other.content_hash, len({other.seen_hash, noted.seen_hash, ""})) == (noted.content_hash, 3)
    assert TrainedOn.of(PROVENANCE, table(2003), validation).until == "2003-01-01T00:00:00+00:00"


@pytest.mark.parametrize("train", [table(None), table(), table(2000).drop_columns("rated_at")])
def test_without_times_it_holds_none(train: pa.Table) -> None:
    assert TrainedOn.of(PROVENANCE, train, train).until is None


def test_a_source_is_the_same_with_other_rows_and_another_with_other_columns() -> None:
    noted = TrainedOn.of(PROVENANCE, table(2001), table())
    assert noted.is_same_source(replace(noted, content_hash="", until=None))
    assert not noted.is_same_source(replace(noted, source="table public.old_ratings"))
    assert not noted.is_same_source(replace(noted, columns={"user_id": "rater"}))


def test_what_was_noted_is_read_back_and_anything_else_is_nothing() -> None:
    noted = TrainedOn.of(PROVENANCE, table(2001), table())
    assert TrainedOn.read(asdict(noted)) == noted
    assert [TrainedOn.read(other) for other in (None, {}, "text", {**asdict(noted), "more": 1})] == [None] * 4
    wrong: list[dict[str, object]] = [{"until": "yesterday"}, {"until": 5}, {"columns": 5}, {"split": {"a": 1}}]
    assert [TrainedOn.read({**asdict(noted), **values}) for values in wrong] == [None] * 4


def test_a_training_that_starts_from_a_model_has_seen_what_that_one_has() -> None:
    noted = TrainedOn.of(PROVENANCE, table(2001), table())
    older, newer = (TrainedOn.of(PROVENANCE, table(year), table()) for year in (1999, 2003))
    assert noted.after(older).until == noted.until
    assert noted.after(newer).until == newer.until
    assert noted.after(None).until is noted.after(replace(older, until=None)).until is None
    assert replace(noted, until=None).after(older).until is None
    hashes = [one.content_hash for one in (noted, noted.after(older), noted.after(newer), noted.after(None))]
    assert len({*hashes}) == 4
    assert noted.after(older) == noted.after(older)
    assert noted.after(older).is_same_source(noted)
