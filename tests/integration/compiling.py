"""Compiling once for all tests: it is most of what a command that submits or schedules takes."""

import pytest

from pipelines import compiled
from pipelines.settings import Settings

COMPILED: dict[str, str] = {}  # by settings


def compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets what the same settings were compiled to before stand for compiling them again."""
    compile_now = compiled.compiled

    def from_before(settings: Settings) -> str:
        return COMPILED.get(repr(settings)) or COMPILED.setdefault(repr(settings), compile_now(settings))

    monkeypatch.setattr(compiled, "compiled", from_before)
