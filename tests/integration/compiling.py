"""What most of a command's time that submits or schedules goes to: compiling, and the SDK's reading of the result."""

import functools

import pytest
import yaml

from pipelines import compiled
from pipelines.settings import Settings

COMPILED: dict[str, str] = {}  # by settings


def compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets what the same settings were compiled to before stand for compiling them again, and libyaml read YAML."""
    compile_now = compiled.compiled

    def from_before(settings: Settings) -> str:
        return COMPILED.get(repr(settings)) or COMPILED.setdefault(repr(settings), compile_now(settings))

    monkeypatch.setattr(compiled, "compiled", from_before)
    monkeypatch.setattr(yaml, "safe_load", functools.partial(yaml.load, Loader=yaml.CSafeLoader))
