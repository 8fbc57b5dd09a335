"""Options of the evaluation and of the gate."""

from pydantic import Field

from mf.config import Config

PUBLISH, REFUSE = "publish", "refuse"  # the gate's two verdicts


class EvaluateConfig(Config):
    """Options of the evaluation on the test part."""

    k: int = Field(10, ge=1, le=1000, description="length of the recommendation lists that are scored")
    relevance_threshold: float | None = Field(
        None,
        description="lowest test rating that counts as relevant in a recommendation list; default: three quarters of "
        "the way up the range of the training ratings",
    )
    bootstrap: int = Field(1000, ge=0, description="bootstrap samples for the confidence intervals; 0: no intervals")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the bootstrap")


class GateConfig(Config):
    """Limits that a model must keep to be published.

    The default of ``max_regression`` is four times the difference between seeds of the same training on MovieLens
    latest-small, and less than half of what the factors gain there over user + movie biases (docs/evaluation.md).
    ``min_rows``, ``min_users`` and ``min_movies`` keep a model of a nearly empty table from replacing a good one; raise
    them to fit your data.
    """

    max_regression: float = Field(
        0.01,
        ge=0,
        description="largest increase of the test RMSE over the published run's at which a model is still published, "
        "in rating units",
    )
    max_ndcg_regression: float = Field(
        0.01, ge=0, description="largest loss of NDCG@k against the published run on the same test ratings"
    )
    max_rmse: float = Field(
        0, ge=0, description="largest test RMSE at which a model is published, in rating units; 0: no limit"
    )
    min_rows: int = Field(1000, ge=0, description="least number of training ratings of a published model")
    min_users: int = Field(20, ge=0, description="least number of users of a published model")
    min_movies: int = Field(20, ge=0, description="least number of movies of a published model")
    force_publish: bool = Field(False, description="publish even if a check of the gate fails; the report says so")
