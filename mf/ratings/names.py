"""Names of the columns of ratings, and the types of ids in a database."""

from typing import Literal

USER, MOVIE, RATING, RATED_AT = "user_id", "movie_id", "rating", "rated_at"
COUNT = "count"  # of a source without ratings: how often; any number above 0 is "at least once"
IdType = Literal["bigint", "text", "uuid"]
