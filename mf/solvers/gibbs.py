"""Bayesian matrix factorization by Gibbs sampling: the most accurate solver."""

from pydantic import Field

from mf.config import Config


class GibbsConfig(Config):
    """Options of the ``gibbs`` solver."""

    factors: int = Field(64, ge=1, le=2000, description="length of the user and movie vectors")
    rank: int | None = Field(None, ge=1, le=256, description="factors that are sampled; none: derived from the ratings")
    epochs: int = Field(120, ge=2, description="passes over the training ratings, at most")
    burn_in: int = Field(20, ge=0, description="passes before the first sample that counts")
    seed: int = Field(0, ge=0, description="of the initialisation and of the samples")
