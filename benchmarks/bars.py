"""Bounds for measured values, and whether they are met."""

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.report import number, table


class Bar(NamedTuple):
    """A measured value and its bound; a missing value (``None``) does not meet it."""

    what: str
    found: float | None
    at_most: float | None = None
    at_least: float | None = None
    digits: int = 2

    @property
    def met(self) -> bool:
        return (
            self.found is not None
            and (self.at_most is None or self.found <= self.at_most)
            and (self.at_least is None or self.found >= self.at_least)
        )

    @property
    def bound(self) -> str:
        if self.at_most is not None:
            return f"at most {number(self.at_most, self.digits)}"
        return f"at least {number(self.at_least, self.digits)}"


def bars(them: Iterable[Bar]) -> str:
    """A Markdown table, one row per bar."""
    lines = [(bar.what, bar.bound, number(bar.found, bar.digits), "met" if bar.met else "NOT MET") for bar in them]
    return table(("bar", "", "found", ""), lines)


def quotient(of: float | None, to: float | None) -> float | None:
    """``of / to``; ``None`` when either is missing."""
    return None if of is None or not to else of / to
