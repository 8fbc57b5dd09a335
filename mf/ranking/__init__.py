"""The ranking model: top-k lists in closed form. It knows nothing of files, ids or Supabase."""

from mf.ranking.config import RankingConfig, configure
from mf.ranking.fit import fit
from mf.ranking.interactions import Interactions
from mf.ranking.model import RankingModel
from mf.ranking.passes import PassReport

__all__ = ["Interactions", "PassReport", "RankingConfig", "RankingModel", "configure", "fit"]
