"""Options of the ranking model."""

from pydantic import Field

from mf.config import Config


class RankingConfig(Config):
    """Options of the ranking model. None needs tuning; docs/ranking.md says where each enters."""

    factors: int = Field(
        64, ge=1, le=1024, description="length of the ranking vectors; independent of the star model's factors"
    )
    teacher_rank: int | None = Field(
        None,
        ge=1,
        le=8192,
        description="singular vectors that the ranking model is computed from before it is cut to factors; default: "
        "all where there are up to 768, else 512 below 8 million ratings and 64 more per eightfold number",
    )
    regularization_index: int = Field(
        64,
        ge=1,
        description="the regularisation is the squared singular value at this index, or at a tenth of the users or "
        "half of the singular values where that is less; a smaller index regularises more",
    )
    rho: float = Field(
        0.5,
        ge=0,
        le=10,
        description="weight of a rating one standard deviation above the mean against that of having rated at all",
    )
    input_exponent: float = Field(
        0.4, ge=0, le=1, description="what a user rated counts (n / mean of n) ^ -this, for a user with n ratings"
    )
    target_exponent: float = Field(0.25, ge=0, le=1, description="the same for what is to be predicted of the user")
    rated_target: float = Field(
        0.5, ge=0, le=1, description="target of a movie rated below relevance_threshold; that of a relevant one is 1"
    )
    prior_ratings: float = Field(
        10.0,
        ge=0,
        description="popularity prior added to every user's ratings, in ratings of the average movie; it orders the "
        "list of an unseen user",
    )
    taste: float = Field(
        0.3,
        ge=0,
        le=10,
        description="weight of what tells a movie's high ratings from its low ones; 0: only whether it is rated counts",
    )
    relevance_threshold: float | None = Field(
        None,
        description="rating from which a movie counts as liked; default: three quarters up the range of the training "
        "ratings",
    )
    rated_only: bool = Field(False, description="use which movies were rated, and not the ratings")
    recency: bool = Field(
        False,
        description="weight a user's ratings by max(0.25, 2^(-place/10)), place 0 being the newest; needs timestamps",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the randomised singular value decomposition")
