import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mf import parallel
from mf.parallel import MOST_WORKERS, cores, in_order


def test_results_keep_the_order_of_the_items() -> None:
    second = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second.wait(10)  # only a second thread sets it
        second.set()
        return item * item

    assert list(in_order(work, range(100))) == [i * i for i in range(100)]


def test_the_read_ahead_is_bounded() -> None:
    taken = []

    def items() -> Iterator[int]:
        for i in range(1000):
            taken.append(i)
            yield i

    for result in in_order(abs, items()):
        assert len(taken) <= result + MOST_WORKERS + 1


@pytest.mark.parametrize("culprit", ["function", "items"])
def test_exceptions_are_passed_on_in_order(culprit: str) -> None:
    def work(item: int) -> int:
        return 1 // (item - 7 if culprit == "function" else 1)

    def items() -> Iterator[int]:
        yield from range(20)
        if culprit == "items":
            raise ZeroDivisionError

    results: list[int] = []
    with pytest.raises(ZeroDivisionError):
        results.extend(in_order(work, items()))
    assert len(results) == 7 if culprit == "function" else len(results) <= 20


def test_the_cores_are_those_of_the_affinity_and_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def quota(text: str) -> None:
        (tmp_path / "cpu.max").write_text(text)

    monkeypatch.setattr(parallel, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert cores() == 8  # there is no such file on other systems
    for text, found in (("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8)):
        quota(text)
        assert cores() == found
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores() == 2
