"""How a model is evaluated, and what it must be to be published."""

from pydantic import Field

from mf.config import Config

PUBLISH, REFUSE = "publish", "refuse"  # the two verdicts


class EvaluateConfig(Config):
    """How a model is evaluated."""

    k: int = Field(10, ge=1, le=1000, description="length of the lists of recommendations that are evaluated")
    relevance_threshold: float | None = Field(
        None,
        description="rating from which a movie of the test part counts as liked; when empty, three quarters up the "
        "range of the training ratings",
    )
    bootstrap: int = Field(1000, ge=0, description="draws of users for the confidence intervals; 0: no intervals")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of these draws")


class GateConfig(Config):
    """The gate between the evaluation of a model and its publication.

    The default of ``max_regression`` is four times what another seed of the same training changes on MovieLens
    latest-small, and less than half of what the factors gain there over user + movie biases (docs/evaluation.md). The
    least numbers keep a table that came in nearly empty from replacing a model of a whole one; raise them to what you
    know of yours.
    """

    max_regression: float = Field(
        0.01,
        ge=0,
        description="RMSE, in rating units, by which a model may do worse than the published run on the same test "
        "ratings and still be published",
    )
    max_rmse: float = Field(0, ge=0, description="largest test RMSE that is published, in rating units; 0: any")
    min_rows: int = Field(1000, ge=0, description="least number of training ratings of a model that is published")
    min_users: int = Field(20, ge=0, description="least number of users of a model that is published")
    min_movies: int = Field(20, ge=0, description="least number of movies of a model that is published")
    force_publish: bool = Field(
        False, description="publish whatever the gate finds, for a person who knows why; the report says so"
    )
