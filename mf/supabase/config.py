"""Options of the migration and of the export."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from mf.config import Config
from mf.ratings.names import IdType

MAX_NAME_BYTES = 63  # PostgreSQL truncates longer identifiers without an error


def _identifier(name: str) -> str:
    if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
        raise ValueError(f"expected a name of 1 to {MAX_NAME_BYTES} bytes")
    # The migration uses names inside dollar-quoted blocks.
    if not name.isprintable() or "$" in name:
        raise ValueError('expected a name without control characters and "$"')
    return name


def _view_name(name: str) -> str:
    if name.startswith("mf_"):
        raise ValueError("names that start with mf_ are reserved for the tables behind the views: choose another")
    return name


Identifier = Annotated[str, AfterValidator(_identifier)]
ViewName = Annotated[Identifier, AfterValidator(_view_name)]
MovieView = Annotated[ViewName, Field(description="view of the published movie embeddings in schema public")]
UserView = Annotated[ViewName, Field(description="view of the published user embeddings in schema public")]


class _Views(Config):
    movie_export_table: MovieView = "movie_embeddings"
    user_export_table: UserView = "user_embeddings"

    @model_validator(mode="after")
    def _two_views(self) -> Self:
        if self.movie_export_table == self.user_export_table:
            raise ValueError(f"movie_export_table and user_export_table are both {self.user_export_table!r}")
        return self


class SchemaConfig(_Views):
    """Options of the migration."""

    user_id_type: IdType = Field(default="bigint", description="type of user ids in the database")
    movie_id_type: IdType = Field(default="bigint", description="type of movie ids in the database")
    public_read: Literal["none", "movies"] = Field(
        default="none",
        description="access without sign-in: none, or movies (the movie view and similar_movies; no user data)",
    )
    ratings_table: Annotated[str, AfterValidator(lambda name: name and _identifier(name))] = Field(
        default="",
        description="ratings table in schema public; lets recommend_movies leave out rated movies (exclude_rated)",
    )
    user_column: Identifier = Field(default="user_id", description="column of user ids in the ratings table")
    movie_column: Identifier = Field(default="movie_id", description="column of movie ids in the ratings table")
    rating_column: Identifier = Field(
        default="rating",
        description="column of ratings in the ratings table, from which recommend_movies says because of which rated "
        "movie; none: it does not",
    )

    @model_validator(mode="after")
    def _ratings_table_is_no_view(self) -> Self:
        if self.ratings_table in (self.movie_export_table, self.user_export_table):
            raise ValueError(f"ratings_table and an export table are both {self.ratings_table!r}")
        return self


class ExportConfig(_Views):
    """Options of the export to Supabase."""

    hnsw_index: bool = Field(
        default=False,
        description="build an HNSW index of the movies before publishing: faster recommendations, at most one in a "
        "hundred missed",
    )
    rows_per_request: int = Field(default=1000, ge=1, le=20_000, description="rows per API request")
    clients: int = Field(default=4, ge=1, le=32, description="concurrent API requests")
