"""Ids to rows and back."""

import numpy as np
import pyarrow as pa
import pytest

from mf.errors import DataError
from mf.ratings.vocabulary import Vocabulary

IDS = {"integers": [30, -7, 30, 2**60, 5], "text": ["ä", "b", "ä", "10", "9"]}
# By value, and text by its code points.
ROWS = {"integers": [2, 0, 2, 3, 1], "text": [3, 2, 3, 0, 1]}


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("chunks", [1, 3])
def test_rows_are_the_places_of_ids_that_are_sorted(ids: str, chunks: int) -> None:
    values = IDS[ids]
    column = pa.chunked_array([values[: chunks - 1], values[chunks - 1 :]]) if chunks > 1 else pa.array(values)
    vocabulary, rows = Vocabulary.encode(column)
    assert vocabulary.ids.to_pylist() == sorted(set(values))
    assert rows.tolist() == ROWS[ids]
    assert rows.dtype == np.int32
    assert Vocabulary.of(column).ids.equals(vocabulary.ids)
    assert vocabulary.rows(column).tolist() == ROWS[ids]


@pytest.mark.parametrize("ids", IDS)
def test_an_encoded_column_is_its_values_and_not_those_of_its_dictionaries(ids: str) -> None:
    column = pa.chunked_array([IDS[ids], IDS[ids][:1]])
    whole = pa.chunked_array([chunk.dictionary_encode() for chunk in column.chunks])
    vocabulary, rows = Vocabulary.encode(whole)
    assert vocabulary.ids.equals(Vocabulary.of(column).ids)
    assert rows.tolist() == [*ROWS[ids], ROWS[ids][0]]
    assert vocabulary.rows(whole).tolist() == rows.tolist()
    part = whole.slice(1, 2)
    assert Vocabulary.of(part).ids.to_pylist() == sorted(set(IDS[ids][1:3]))
    assert vocabulary.rows(part).tolist() == rows[1:3].tolist()
    assert len(Vocabulary.of(whole.slice(0, 0))) == 0


def test_an_id_that_is_not_there_has_row_minus_1() -> None:
    assert Vocabulary.of(pa.array([4, 2])).rows(pa.array([2, 3, 4])).tolist() == [0, -1, 1]
    assert Vocabulary.of(pa.array(["a"])).rows(pa.array(["b", "a"])).tolist() == [-1, 0]


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_of_no_ids_there_is_an_empty_vocabulary(kind: pa.DataType) -> None:
    for column in (pa.array([], kind), pa.chunked_array([], kind)):
        vocabulary, rows = Vocabulary.encode(column)
        assert len(vocabulary) == len(rows) == 0
        assert vocabulary.rows(pa.array([1] if kind == pa.int64() else ["1"], kind)).tolist() == [-1]


def test_ids_of_another_type_are_refused() -> None:
    with pytest.raises(DataError, match="ids of type string cannot be looked up among ids of type int64"):
        Vocabulary.of(pa.array([1])).rows(pa.array(["1"]))
