"""Options of ingest and split."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from mf.config import Config
from mf.errors import DataError
from mf.ratings.names import COUNT, MOVIE, RATED_AT, RATING, USER

# Recognised column names, compared in lower case and without "_", "-" and spaces.
RECOGNISED = {
    USER: ("userid", "user"),
    MOVIE: ("movieid", "movie", "itemid", "item"),
    RATING: ("rating",),
    RATED_AT: ("ratedat", "timestamp", "createdat"),  # of several columns the first of these
    COUNT: (
        "count", "plays", "playcount", "listens", "clicks", "clickcount", "views", "viewcount", "visits", "purchases",
        "purchasecount", "quantity", "interactions", "events",
    ),
}  # fmt: skip
NONE = "none"  # as the name of a column: there is none, or it is not read
CLICKS_WITHOUT_RANKING = (
    "ranking=none without ratings leaves no model to train: use ranking=ease, or name the column of the ratings with "
    "rating_column"
)


def utc(text: str) -> datetime:
    """Parse a time in ISO 8601; UTC unless it has a zone.

    Raises:
        ValueError, OverflowError: ``text`` is not such a time.
    """
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _checked_moment(text: str) -> str:
    try:
        if text:
            utc(text)
    except (ValueError, OverflowError):
        raise ValueError("expected a time in ISO 8601, such as 2026-01-31 or 2026-01-31T12:00:00+02:00") from None
    return text


Moment = Annotated[str, AfterValidator(_checked_moment)]


def _checked_numbers(text: str) -> str:
    try:
        numbers = [float(number) for number in text.split(",") if text]
    except ValueError:
        numbers = [np.nan]
    if not all(abs(number) <= float(np.finfo(np.float32).max) for number in numbers):
        raise ValueError("expected numbers separated by commas, such as -1 or 0,-1")
    return text


Numbers = Annotated[str, AfterValidator(_checked_numbers)]


class IngestConfig(Config):
    """The source of the ratings and its columns."""

    ratings_csv: str = Field(
        "",
        description="ratings, CSV, JSON lines or Parquet, also compressed: a file, a folder or a glob (ratings-*.csv), "
        "local or gs://bucket/…",
    )
    import_table: str = Field("", description="Supabase table of ratings, read instead of a file")
    columns: str = Field(
        "",
        description="all column names of a file without a header, in order, separated by commas, for example "
        "userId,movieId,rating,timestamp",
    )
    user_column: str = Field("", description="column of the user id; when empty, recognised by name (userId, user_id)")
    movie_column: str = Field(
        "", description="column of the movie id; when empty, recognised by name (movieId, movie_id, item_id)"
    )
    rating_column: str = Field(
        "",
        description="column of the rating; when empty, recognised by name (rating); none: train on who chose what "
        "(clicks, plays, purchases), which is also done where the only columns are a user, an item and optionally a "
        "time and a count (counts of 1 or more are the same: at least once)",
    )
    timestamp_column: str = Field(
        "",
        description="column of the time of the rating: epoch seconds, epoch milliseconds or ISO 8601, also YYYYMMDD; "
        "when empty, recognised by name, if there is one (rated_at, timestamp or created_at, in this order); none: "
        "ignore times",
    )
    max_reject_fraction: float = Field(
        0.01, ge=0, le=1, description="largest share of bad rows, 0 to 1; with more the import fails"
    )
    ignore_ratings: Numbers = Field(
        "",
        description='ratings that mean "not rated", separated by commas, for example -1 or 0: they are counted and '
        "left out",
    )
    key_columns: str = Field(
        "",
        description="columns of a unique key of the Supabase table, separated by commas; when empty, its primary key",
    )
    rated_since: Moment = Field(
        "", description="import only the table's ratings at or after this time, ISO 8601, UTC unless it has a zone"
    )
    rated_before: Moment = Field("", description="import only the table's ratings before this time")

    @model_validator(mode="after")
    def _times_fit(self) -> Self:
        since, before = self.since, self.before
        if since and before and since >= before:
            raise ValueError(f"rated_since {self.rated_since} is not before rated_before {self.rated_before}")
        if self.ratings_csv and (since or before):
            raise ValueError("rated_since and rated_before select rows of a table; a file is read whole")
        return self

    @property
    def ignored(self) -> tuple[float, ...]:
        """The values of ``ignore_ratings``."""
        return tuple(float(number) for number in self.ignore_ratings.split(",") if number)

    @property
    def may_have_ratings(self) -> bool:
        """False where it is known before reading that there are none."""
        return self.rating_column != NONE

    @property
    def since(self) -> datetime | None:
        """``rated_since`` in UTC."""
        return utc(self.rated_since) if self.rated_since else None

    @property
    def before(self) -> datetime | None:
        """``rated_before`` in UTC."""
        return utc(self.rated_before) if self.rated_before else None

    def find_columns(self, names: Sequence[str], where: str) -> dict[str, str]:
        """Find the columns of the user, the movie, the rating and, optionally, its time: by the configured name, by
        default by a recognised one.

        Without ratings (clicks, plays, purchases) there is no rating, and there may be a count. They are without where
        ``rating_column`` is none, or empty while ``names`` are a user, an item and optionally a time and a count.

        Args:
            names: the columns of the source.
            where: the file or table, for errors.

        Returns:
            ``{"user_id": "userId", "movie_id": "movieId", "rating": "rating"[, "rated_at": "timestamp"]}``; without
            ratings ``{"user_id": …, "movie_id": …[, "rated_at": …][, "count": …]}``.

        Raises:
            DataError: a column is missing or ambiguous, or has two roles.
        """
        configured = {
            USER: (self.user_column, "--user_column"),
            MOVIE: (self.movie_column, "--movie_column"),
            RATING: (self.rating_column, "--rating_column"),
            RATED_AT: (self.timestamp_column, "--timestamp_column"),
        }
        columns: dict[str, str] = {}
        for role, (name, flag) in configured.items():
            if role in (RATING, RATED_AT) and name == NONE:
                continue
            fits = [column for column in names if (column == name if name else _is(role, column))]
            if role == RATED_AT and not name and len({plain(column) for column in fits}) > 1:
                fits = [min(fits, key=lambda column: RECOGNISED[RATED_AT].index(plain(column)))]
            if len(fits) > 1:
                several = shown(", ".join(fits), 200)
                raise DataError(
                    f"{where}: {len(fits)} columns fit {role}, {several}, expected one; name it with {flag}"
                )
            if not fits and role == RATING and not name and self._are_clicks(names, columns):
                continue
            if not fits and (name or role != RATED_AT):
                what = f"no column {name}" if name else f"no column recognised as {role}"
                none = ", or none where there are no ratings (clicks, plays, purchases)" if role == RATING else ""
                raise DataError(f"{where}: {what}, found {shown(', '.join(names), 200)}; name it with {flag}{none}")
            if fits:
                columns[role] = fits[0]
        if RATING not in columns:
            counts = [column for column in names if column not in columns.values() and _is(COUNT, column)]
            if len(counts) == 1:
                columns[COUNT] = counts[0]
        if len(set(columns.values())) < len(columns):
            uses = ", ".join(f"{role} from {column}" for role, column in columns.items())
            raise DataError(f"{where}: one column has two roles ({uses}); give each role a column of its own")
        return columns

    def _are_clicks(self, names: Sequence[str], found: Mapping[str, str]) -> bool:
        """Whether ``names``, besides the user and the movie that were ``found``, are at most one time and one count."""
        others = [name for name in names if name not in found.values()]
        times = [name for name in others if name == self.timestamp_column or _is(RATED_AT, name)]
        counts = [name for name in others if name not in times and _is(COUNT, name)]
        return len(others) == len(times) + len(counts) and len(times) <= 1 and len(counts) <= 1


def shown(text: str, length: int = 60) -> str:
    """``text`` in double quotes, on one line and cut to ``length`` characters, for an error."""
    return f'"{repr(text[:length])[1:-1]}{"…" if len(text) > length else ""}"'


def _is(role: str, column: str) -> bool:
    return plain(column) in RECOGNISED[role]


def plain(name: str) -> str:
    """A column's name in lower case, without blanks, ``_`` and ``-``."""
    return name.strip().lower().replace("_", "").replace("-", "").replace(" ", "")


class SplitConfig(Config):
    """The split into training, validation and test part."""

    split: Literal["random", "time", "leave_last"] = Field(
        "random",
        description="held-out rows. random: at random; time: the newest; leave_last: each user's newest rating",
    )
    val_size: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of all rows held out for validation; leave_last: only whether it is 0 counts",
    )
    test_size: float = Field(
        0.1, ge=0, lt=1, description="share of all rows held out for the test; leave_last: only whether it is 0 counts"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the random split")

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.val_size + self.test_size >= 1:
            raise ValueError(
                f"val_size {self.val_size} and test_size {self.test_size} leave nothing to train on; "
                "their sum must be below 1"
            )
        return self
