"""Variational Bayes: nothing to tune."""

from pydantic import Field

from mf.config import Config


class VBConfig(Config):
    """Options of the ``vb`` solver."""

    factors: int = Field(64, ge=1, le=2000, description="length of the user and movie vectors")
    rank: int | None = Field(None, ge=1, le=256, description="factors that are fitted; none: derived from the ratings")
    epochs: int = Field(20, ge=1, description="passes over the training ratings, at most")
    seed: int = Field(0, ge=0, description="of the initialisation")
