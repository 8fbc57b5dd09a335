"""Options of the migration and of the export."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from mf.config import Config
from mf.ratings.names import IdType

BECAUSE_OF = "because_of"  # function that embeds the movie in ``because``
# Arguments and result columns of the functions that take filters: a filter of the same name would be ambiguous.
TAKEN = {"for_user", "k", "exclude_rated", "without_ids", "only_ids", "skip", "of_run", "ratings", "for_movie"}
TAKEN |= {"movie_id", "score", "predicted_rating", "because", "run_id", "similarity"}
TAKEN |= {"found"}  # a variable that every function of PL/pgSQL has
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


def _condition(text: str) -> str:
    """An SQL condition that stays within its parentheses.

    Raises:
        ValueError: it has a comment, ``;``, ``$``, an escape string, or parentheses or quotes that do not match.
    """
    if "$" in text:
        raise ValueError('expected a condition without "$"')
    if not text.replace("\n", " ").replace("\t", " ").isprintable():
        raise ValueError("expected a condition without control characters")
    # Within quotes anything may stand, but for escape strings, in which a backslash hides a quote.
    if re.search(r"(?i)(?<![a-z0-9_])(e|u&)['\"]", text):
        raise ValueError("expected a condition without escape strings (E'…', U&'…'): write '…' with '' for a quote")
    code = re.sub(r"'[^']*'|\"[^\"]*\"", "x", text)
    for refused, what in (("--", 'comments ("--")'), ("/*", 'comments ("/*")'), (";", '";"')):
        if refused in code:
            raise ValueError(f"expected one condition without {what}")
    if "'" in code or '"' in code:
        raise ValueError("expected a condition whose quotes are closed")
    depth = 0
    for character in code:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            break
    if depth:
        raise ValueError("expected a condition whose parentheses match")
    return text.strip()


Identifier = Annotated[str, AfterValidator(_identifier)]
OptionalName = Annotated[str, AfterValidator(lambda name: name and _identifier(name))]
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
    ratings_table: OptionalName = Field(
        default="",
        description="ratings table in schema public: lists follow a user's ratings as they are now, leave out rated "
        "movies (exclude_rated) and say because of which one",
    )
    user_column: Identifier = Field(default="user_id", description="column of user ids in the ratings table")
    movie_column: Identifier = Field(default="movie_id", description="column of movie ids in the ratings table")
    rating_column: Identifier = Field(
        default="rating",
        description="column of ratings in the ratings table; none: all rows count alike, as where a table lacks the "
        "column rating",
    )
    time_column: OptionalName = Field(
        default="",
        description="column of times in the ratings table, by which models with recency weight ratings; none: they "
        "weigh the same; default: rated_at, timestamp or created_at, whichever it has first",
    )
    items_table: OptionalName = Field(
        default="",
        description="table of movies in schema public: only its movies are recommended, and lists can embed its rows",
    )
    items_column: OptionalName = Field(
        default="",
        description="column of movie ids in the items table; default: movie_id or id, else its primary key",
    )
    items_where: Annotated[str, AfterValidator(_condition)] = Field(
        default="",
        description="condition on columns of the items table that recommended movies fulfil, such as "
        "'in_stock and not hidden'",
    )
    items_filter: str = Field(
        default="",
        description="columns of the items table, separated by commas, that the functions get as arguments to choose "
        "from: with genre, recommend_for_me(genre => 'drama')",
    )

    @property
    def filters(self) -> list[str]:
        """The columns of ``items_filter``."""
        return [name.strip() for name in self.items_filter.split(",")] if self.items_filter.strip() else []

    @field_validator("items_filter")
    @classmethod
    def _filters_are_columns(cls, text: str) -> str:
        names = [name.strip() for name in text.split(",")] if text.strip() else []
        for name in names:
            _identifier(name)
            if name in TAKEN:
                raise ValueError(
                    f"the column {name!r} has the name of an argument or a result of the functions: rename it, or give "
                    "--items_table a view that does"
                )
        if len(set(names)) < len(names):
            raise ValueError("expected each column once")
        return ",".join(names)

    @model_validator(mode="after")
    def _tables_differ(self) -> Self:
        views = (self.movie_export_table, self.user_export_table)
        for flag, name in (("ratings_table", self.ratings_table), ("items_table", self.items_table)):
            if name in views:
                raise ValueError(f"{flag} and an export table are both {name!r}")
        if self.items_table and self.items_table in (self.ratings_table, BECAUSE_OF):
            raise ValueError(f"items_table is {self.items_table!r}, which is taken")
        if not self.items_table:
            for flag in ("items_column", "items_where", "items_filter"):
                if getattr(self, flag):
                    raise ValueError(f"{flag} needs items_table, the table that it belongs to")
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
