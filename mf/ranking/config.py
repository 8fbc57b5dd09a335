"""Options of the ranking model, and the choice to train none."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from mf.config import Config
from mf.errors import ConfigError

Ranking = Literal["ease", "none"]
RANKINGS: dict[str, str] = {
    "ease": "the ranking model, in closed form",
    "none": "no ranking model, lists are ordered by predicted rating",
}
RANKING_HELP = "; ".join(f"{name}: {meaning}" for name, meaning in RANKINGS.items())
DEFAULT_RANKING: Ranking = "ease"
NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


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
        description="the regularisation is the squared singular value at this index, or at a tenth of the users where "
        "that is less; a smaller index regularises more",
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


def configure(ranking: str, options: Mapping[str, Any], shared: Mapping[str, Any] = NO_OPTIONS) -> RankingConfig | None:
    """The options of the ranking model; ``None`` where there is to be no ranking model.

    Args:
        ranking: one of ``RANKINGS``.
        options: the value of ``ranking_options``.
        shared: options that have a parameter of their own; ``options`` may override them.

    Raises:
        ConfigError: an unknown name, an unknown option or a value out of range; names every fault.
    """
    if ranking not in RANKINGS:
        raise ConfigError(f"ranking: found {ranking!r}, expected one of {', '.join(RANKINGS)}")
    if ranking == "none":
        if options:
            raise ConfigError(f"ranking_options: found {', '.join(options)}, expected none of them with ranking=none")
        return None
    own = RankingConfig.model_fields
    if unknown := [name for name in options if name not in own]:
        raise ConfigError(
            *(
                f"ranking_options.{name}: not an option of the ranking model; its options are {', '.join(own)}"
                for name in unknown
            )
        )
    try:
        return RankingConfig.of(**{**shared, **options})
    except ConfigError as error:
        of_options = tuple(f"{name}:" for name in options)
        faults = (f"ranking_options.{fault}" if fault.startswith(of_options) else fault for fault in error.faults)
        raise ConfigError(*faults) from None
