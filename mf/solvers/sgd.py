"""Stochastic gradient descent on strata: the fastest solver on a CPU."""

from pydantic import Field

from mf.config import Config


class SGDConfig(Config):
    """Options of the ``sgd`` solver."""

    factors: int = Field(64, ge=1, le=2000, description="length of the user and movie vectors")
    epochs: int = Field(20, ge=1, description="passes over the training ratings, at most")
    seed: int = Field(0, ge=0, description="of the initialisation and of the order of the ratings")
