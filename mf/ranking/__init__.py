"""The ranking model: top-k lists in closed form. It knows nothing of files, ids or Supabase."""

import importlib
from typing import TYPE_CHECKING, Any

from mf.ranking.config import RankingConfig, configure

if TYPE_CHECKING:
    from mf.ranking.interactions import Interactions
    from mf.ranking.model import RankingModel
    from mf.ranking.passes import PassReport

__all__ = ["Interactions", "PassReport", "RankingConfig", "RankingModel", "configure"]

_LATER = {"Interactions": "interactions", "PassReport": "passes", "RankingModel": "model"}


def __getattr__(name: str) -> Any:
    # Imported at the first use, since PyTorch comes with them: the command line's help needs the options alone.
    if name in _LATER:
        return getattr(importlib.import_module(f"mf.ranking.{_LATER[name]}"), name)
    raise AttributeError(f"module 'mf.ranking' has no attribute {name!r}")
