"""Recommendations from ratings: matrix factorization, lists and their publication to Supabase.

``mf.fit`` trains, ``mf.load`` reads a model directory; both return a ``Model``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mf.errors import ConfigError, DataError, MfError, SupabaseError, TrainingError

if TYPE_CHECKING:
    from mf.library import Model, fit, load

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "DataError",
    "MfError",
    "Model",
    "SupabaseError",
    "TrainingError",
    "__version__",
    "fit",
    "load",
]


def __getattr__(name: str) -> Any:
    # Imported at the first use: the command line needs the version without PyTorch.
    if name in ("Model", "fit", "load"):
        return getattr(importlib.import_module("mf.library"), name)
    raise AttributeError(f"module 'mf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
