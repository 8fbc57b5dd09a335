"""Rules for ids, ratings and times: parsing, validation, the reason for a bad cell.

Every source calls ``check`` on its columns, so that a file and a table with the same cells give the same ratings.
"""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mf.ratings.config import shown, utc
from mf.ratings.schema import COUNT, MOVIE, RATED_AT, RATING, TIMESTAMP, UNKNOWN_TIME, USER, instants

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
INTEGER = "^-?[0-9]+$"
# An integer id in canonical form (not 007, +7, -0), also as pandas writes it in a column with gaps (7.0).
INTEGER_ID = r"^(0|-?[1-9][0-9]{0,18})(\.0+)?$"
# Numbers that are times: up to nanoseconds, which int64 holds.
INTEGER_TIME = "^-?([0-9]{1,18}|[1-8][0-9]{18})$"
DECIMAL_TIME = r"^-?[0-9]{1,19}(\.[0-9]*([eE]\+?[0-9]{1,2})?|[eE]\+?[0-9]{1,2})$"
# Forms beside ISO 8601 in capitals: 2020/01/02, a blank before the zone, and its name.
OTHER_FORM = r"(?i)^[0-9]{4}/|[ \t][+-][0-9:]+$|[ \t]z$|(utc|gmt)$|(?-i:[tz])"
DATE = "^[0-9]{4}-[0-9]{2}-[0-9]{2}"
LARGEST_SECONDS = 10**11  # as seconds the year 5138, as milliseconds March 1973
LARGEST_MILLIS, LARGEST_MICROS = 10**14, 10**17  # likewise
LARGEST_NANOS = 41 * 10**17  # the year 2099: pandas' nanoseconds are read, what int64 ends with is not
# Numbers of eight digits in this range are dates (ISO 8601 basic form), not seconds of the year 1970; with four or six
# digits more, of the time of day, they are not milliseconds of the years 1976 and 2572 to 2635.
FIRST_DATE, LAST_DATE = 1900_01_01, 2099_12_31
DAY_TIMES = (1, 10**4, 10**6)  # in which these numbers count days
# The years 1 to 9999, the range of Python's datetime.
FIRST_MICRO, LAST_MICRO = -62_135_596_800_000_000, 253_402_300_799_999_999
UNREADABLE = np.iinfo(np.int64).max
FLOAT32_MAX = float(np.finfo(np.float32).max)
# The two meanings of a number in a column of times; a source has one of them.
DATES, EPOCHS = "dates (YYYYMMDD)", "epoch times"
NO_FORM, DATE_FORM, EPOCH_FORM = range(3)

Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]
Forms = npt.NDArray[np.int8]


class Checked(NamedTuple):
    """Result of ``check``.

    Attributes:
        ratings: the usable rows, with the types of ``ratings_schema``; ids may be dictionary-encoded.
        usable: which rows of the input they are, bool [rows].
        ignored: which rows are left out for their rating, bool [rows]; the others are bad.
        time_forms: for ``DATES`` and ``EPOCHS``, the first usable row with such a time, and the time as text.
    """

    ratings: pa.Table
    usable: Bools
    ignored: Bools
    time_forms: dict[str, tuple[int, str]]


def check(raw: pa.Table, *, is_file: bool, ignore: Sequence[float] = ()) -> Checked:
    """Parse and validate the cells of some rows.

    - An id is an integer or a text that is not empty, without white space at either end.
    - A rating is a finite number that float32 can hold; a count is one above 0.
    - A time is a date and time in ISO 8601, UTC unless it has a zone, or a number: epoch seconds, beyond 1e11
      milliseconds, beyond 1e14 microseconds, beyond 1e17 nanoseconds until 2099, and from 19000101 to 20991231 a date,
      also with hhmm or hhmmss.
      A null or empty time is unknown. The years are 1 to 9999.

    Args:
        raw: user_id and movie_id (int64 or string) and optionally rating and count (number or string) and rated_at
            (timestamp, number or string); with nulls.
        is_file: cells are texts without nulls, trimmed by ``trim``; ids become int64 when all are integers in
            canonical form (7, not 007 or 7.0), else dictionary-encoded texts, which ``Collector.finish`` decides about.
            The ids of a table keep their type.
        ignore: ratings, rounded to float32, whose rows are left out.
    """
    columns = {name: raw[name].combine_chunks() for name in raw.column_names}
    usable = np.ones(len(raw), np.bool_)
    values = {USER: columns[USER], MOVIE: columns[MOVIE]}
    if RATING in columns:
        ratings = _ratings(columns[RATING])
        usable &= np.isfinite(ratings)
        values[RATING] = pa.array(ratings)
    if COUNT in columns:
        counts = _ratings(columns[COUNT])
        usable &= np.isfinite(counts) & (counts > 0)
    for role in (USER, MOVIE):
        if is_file:
            usable &= _numpy(pc.not_equal(values[role], ""))
        elif pa.types.is_integer(values[role].type):
            usable &= _numpy(values[role].is_valid())
        else:
            values[role] = values[role].dictionary_encode()
            usable &= _numpy(_is_id(values[role].dictionary).take(values[role].indices).fill_null(False))
    forms = np.zeros(len(raw), np.int8)
    if RATED_AT in columns:
        micros, forms = _times(columns[RATED_AT], is_file)
        usable &= micros != UNREADABLE
        values[RATED_AT] = instants(micros)
    ignored = np.zeros(len(raw), np.bool_)
    if ignore and RATING in columns:
        ignored = usable & np.isin(ratings, np.array(ignore, np.float32))
    usable &= ~ignored
    table = pa.table(values)
    if not usable.all():
        # Encoded again by whoever needs it: the dictionary holds the bad ids too.
        table = pa.table(values | {role: columns[role] for role in (USER, MOVIE)}).filter(pa.array(usable))
    if is_file:
        for place, role in enumerate((USER, MOVIE)):
            table = table.set_column(place, role, _integers_or_texts(table[role].combine_chunks()))
    return Checked(table, usable, ignored, _first_of_each(forms, usable, columns))


def reason(cells: Mapping[str, Any]) -> str:
    """Why ``check`` refuses a row.

    Args:
        cells: by role (user_id, movie_id, rating, count, rated_at) the value as the source has it: text, number or
            None.
    """
    for role, what in ((USER, "user id"), (MOVIE, "movie id")):
        text = cell_text(cells[role])
        if not text.strip():
            return f"empty {what}"
        if text != text.strip():
            return f"{what} {shown(text)} has white space at its start or end"
    for role in (RATING, COUNT):
        if role in cells and (why := _bad_number(role, cell_text(cells[role]))):
            return why
    time = cell_text(cells[RATED_AT]).strip()
    if NUMBER.fullmatch(time) and _is_date(np.array([float(time)]))[0]:
        return f"timestamp {shown(time)} is not a date of the calendar (YYYYMMDD)"
    return f"timestamp {shown(time)} is neither epoch seconds, epoch milliseconds nor ISO 8601"


def _bad_number(role: str, text: str) -> str:
    """Why ``text`` is no rating, or no count; empty if it is one."""
    if not text:
        return f"empty {role}"
    if text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return f"{role} {shown(text)} is not finite"
    if not NUMBER.fullmatch(text):
        return f"{role} {shown(text)} is not a number"
    with np.errstate(over="ignore"):
        if not np.isfinite(np.float32(float(text))):
            return f"{role} {shown(text)} is larger than float32 can hold"
    return f"{role} {shown(text)} is not above 0" if role == COUNT and np.float32(float(text)) <= 0 else ""


def cell_text(value: Any) -> str:
    """A cell as text; a number as PostgreSQL writes it where it is not finite."""
    if value is None:
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return str(value)


def trim(texts: pa.Array) -> pa.Array:
    """Texts without the white space at their ends, as ``str.strip`` does."""
    return pc.utf8_trim_whitespace(texts)


def _numpy(bools: pa.Array) -> Bools:
    array: Bools = bools.to_numpy(zero_copy_only=False)
    return array


def _first_of_each(forms: Forms, usable: Bools, columns: Mapping[str, pa.Array]) -> dict[str, tuple[int, str]]:
    first = {}
    for name, form in ((DATES, DATE_FORM), (EPOCHS, EPOCH_FORM)):
        is_form = (forms == form) & usable
        if is_form.any():
            row = int(is_form.argmax())
            first[name] = row, cell_text(columns[RATED_AT][row].as_py())
    return first


def _is_id(texts: pa.Array) -> pa.Array:
    return pc.and_(pc.not_equal(texts, ""), pc.equal(texts, trim(texts)))


def integer_ids(texts: pa.StringArray) -> pa.Int64Array:
    """Ids as int64, null where the text is not an integer; 7.0 is 7."""
    is_integer = pc.match_substring_regex(texts, INTEGER_ID)
    digits = pc.replace_substring_regex(texts, r"\.0+$", "")
    is_long = pc.and_(is_integer, pc.greater(pc.binary_length(digits), 18))
    if pc.any(is_long).as_py():
        pairs = zip(is_long.to_pylist(), digits.to_pylist(), strict=True)
        fits = [not long or -(2**63) <= int(text) < 2**63 for long, text in pairs]
        is_integer = pc.and_(is_integer, pa.array(fits))
    return pc.if_else(is_integer, digits, pa.scalar(None, pa.string())).cast(pa.int64())


def odd_ids(ids: pa.ChunkedArray) -> Bools:
    """Which rows have an id that is not an integer, not even one written as 7.0."""
    if not pa.types.is_dictionary(ids.type) or pa.types.is_integer(ids.type.value_type):
        return np.zeros(len(ids), np.bool_)
    encoded = ids.combine_chunks()
    return _numpy(integer_ids(encoded.dictionary).is_null().take(encoded.indices))


def _integers_or_texts(texts: pa.StringArray) -> pa.Array:
    """int64 when every id is an integer in the canonical form that PostgreSQL and Python write, else the texts;
    dictionary-encoded where the check had to encode them."""
    if _is_decimal(texts, 18):
        integers = texts.cast(pa.int64())
        # Any other form of a number that is not negative is longer.
        if pc.sum(pc.binary_length(texts)).as_py() == _digits(integers.to_numpy()):
            return integers
    encoded = texts.dictionary_encode()
    # The first text decides for most files; a cast would write an error for each text.
    if not pc.all(pc.match_substring_regex(encoded.dictionary.slice(0, 1), INTEGER)).as_py():
        return encoded
    try:
        integers = encoded.dictionary.cast(pa.int64())
    except pa.ArrowInvalid:
        return encoded
    if not integers.cast(pa.string()).equals(encoded.dictionary):
        return encoded
    return pa.DictionaryArray.from_arrays(encoded.indices, integers)


def _digits(numbers: Int64s) -> int:
    """Sum of the numbers' digit counts; no number is negative."""
    powers = 10 ** np.arange(1, len(str(numbers.max(initial=0))), dtype=np.int64)
    return len(numbers) + sum(int(np.count_nonzero(numbers >= power)) for power in powers)


def _is_decimal(texts: pa.StringArray, digits: int) -> bool:
    """Whether each text is 1 to ``digits`` decimal digits; several times as fast as a regular expression."""
    is_short = not len(texts) or pc.max(pc.binary_length(texts)).as_py() <= digits
    return is_short and bool(pc.all(pc.ascii_is_decimal(texts)).as_py())


def _ratings(values: pa.Array) -> npt.NDArray[np.float32]:
    """Ratings as float32; NaN or infinite where the cell is not a rating."""
    with np.errstate(over="ignore"):
        if pa.types.is_string(values.type):
            encoded = values.dictionary_encode()
            texts = encoded.dictionary.to_pylist()
            numbers = [float(text) if NUMBER.fullmatch(text) else np.nan for text in texts]
            distinct = np.array([*numbers, np.nan], np.float64).astype(np.float32)
            indices = encoded.indices.fill_null(len(texts)) if encoded.null_count else encoded.indices
            by_index: npt.NDArray[np.float32] = distinct[indices.to_numpy()]
            return by_index
        if pa.types.is_integer(values.type):
            values = values.cast(pa.float64(), safe=False)
        floats: npt.NDArray[np.float32] = values.fill_null(np.nan).to_numpy().astype(np.float32, copy=False)
        return floats


def _times(values: pa.Array, is_file: bool) -> tuple[Int64s, Forms]:
    """Times in microseconds since 1970, ``UNKNOWN_TIME`` where the cell is empty and ``UNREADABLE`` where it is not a
    time; and the form of each."""
    forms = np.zeros(len(values), np.int8)
    if pa.types.is_string(values.type):
        micros, forms = _text_times(values if is_file else trim(values.fill_null("")))
    else:
        if pa.types.is_timestamp(values.type):
            micros = values.cast(pa.int64()).fill_null(0).to_numpy().clip(UNKNOWN_TIME + 1)
        else:
            micros, forms = _number_times(values.fill_null(0).to_numpy())
        if values.null_count:
            is_null = _numpy(values.is_null())
            micros[is_null], forms[is_null] = UNKNOWN_TIME, NO_FORM
    is_far = (micros < FIRST_MICRO) | (micros > LAST_MICRO)
    micros[is_far & (micros != UNKNOWN_TIME)] = UNREADABLE
    return micros, forms


def micros_of(time: str) -> int:
    """Microseconds since 1970 of the text of a usable time."""
    return int(_text_times(trim(pa.array([time])))[0][0])


def _text_times(texts: pa.StringArray) -> tuple[Int64s, Forms]:
    is_known = _numpy(pc.not_equal(texts, ""))
    if is_known.all():
        return _known_times(texts)
    micros, forms = np.full(len(texts), UNKNOWN_TIME), np.zeros(len(texts), np.int8)
    micros[is_known], forms[is_known] = _known_times(texts.filter(pa.array(is_known)))
    return micros, forms


def _known_times(texts: pa.StringArray) -> tuple[Int64s, Forms]:
    if _is_decimal(texts, 18):
        return _number_times(texts.cast(pa.int64()).to_numpy())
    forms = np.zeros(len(texts), np.int8)
    if (moments := _arrow_times(texts)) is not None:
        return moments, forms
    micros, is_left = np.zeros(len(texts), np.int64), np.ones(len(texts), np.bool_)
    for pattern, kind in ((INTEGER_TIME, pa.int64()), (DECIMAL_TIME, pa.float64())):
        is_number = _numpy(pc.match_substring_regex(texts, pattern))
        if is_number.any():
            numbers = texts.filter(pa.array(is_number)).cast(kind)
            micros[is_number], forms[is_number] = _number_times(numbers.to_numpy())
            is_left &= ~is_number
    if is_left.any():
        micros[is_left] = _iso_times(texts.filter(pa.array(is_left)))
    return micros, forms


def _number_times(numbers: npt.NDArray[Any]) -> tuple[Int64s, Forms]:
    """Times of int64 or float64, any year."""
    is_date = _is_date(numbers)
    # What is clipped here, NaN included, is beyond LARGEST_NANOS.
    if numbers.dtype == np.int64:
        numbers = np.clip(numbers, -(2**62), 2**62)
    else:
        numbers = np.clip(np.nan_to_num(numbers, nan=np.inf), -(2.0**62), 2.0**62)
    size = np.abs(numbers)
    if size.max(initial=0) <= LARGEST_MILLIS:
        micros = np.where(size > LARGEST_SECONDS, numbers * 1_000, numbers * 1_000_000)
    else:
        sizes = [size <= LARGEST_SECONDS, size <= LARGEST_MILLIS, size <= LARGEST_MICROS]
        # Seconds beyond their size overflow, and are not chosen.
        with np.errstate(over="ignore"):
            micros = np.select(sizes, [numbers * 1_000_000, numbers * 1_000, numbers], numbers // 1_000)
    micros = np.where(size > LARGEST_NANOS, UNREADABLE, np.rint(micros).astype(np.int64))
    if is_date.any():
        micros[is_date] = _calendar(numbers[is_date].astype(np.int64))
    return micros, np.where(is_date, DATE_FORM, EPOCH_FORM).astype(np.int8)


def _is_date(numbers: npt.NDArray[Any]) -> Bools:
    """Whether each number is of the form YYYYMMDD, also with hhmm or hhmmss; not whether the calendar has it."""
    ranges = [(numbers >= FIRST_DATE * unit) & (numbers < (LAST_DATE + 1) * unit) for unit in DAY_TIMES]
    is_date: Bools = np.logical_or.reduce(ranges)
    return is_date if numbers.dtype == np.int64 else is_date & (np.trunc(numbers) == numbers)


def _calendar(dates: Int64s) -> Int64s:
    """Numbers of these forms as microseconds; ``UNREADABLE`` where the calendar or the day has no such time."""
    missing = np.select([dates > LAST_DATE * 10**5, dates > LAST_DATE], [1, 100], 10**6)  # 14, 12 and 8 digits
    dates, clock = np.divmod(dates * missing, 10**6)
    years, months, days = dates // 10_000, dates // 100 % 100, dates % 100
    hours, minutes, seconds = clock // 10_000, clock // 100 % 100, clock % 100
    first_of_month = ((years - 1970) * 12 + months - 1).astype("datetime64[M]")
    day = first_of_month.astype("datetime64[D]") + (days - 1)
    exists = (months >= 1) & (months <= 12) & (day.astype("datetime64[M]") == first_of_month)
    exists &= (hours < 24) & (minutes < 60) & (seconds < 60)
    of_day = (hours * 3600 + minutes * 60 + seconds) * 1_000_000
    micros: Int64s = np.where(exists, day.astype("datetime64[us]").astype(np.int64) + of_day, UNREADABLE)
    return micros


def _arrow_times(texts: pa.StringArray) -> Int64s | None:
    """Microseconds of times as PostgreSQL writes them, the fast way; None when Arrow cannot read one of them."""
    for kind in (TIMESTAMP, pa.timestamp("us")):
        with suppress(pa.ArrowInvalid):
            texts[:1].cast(kind)  # a failed cast takes long: it writes an error for each text
            micros: Int64s = texts.cast(kind).cast(pa.int64()).to_numpy().copy()
            return micros
    return None


def _iso_times(texts: pa.StringArray) -> Int64s:
    """Microseconds of times in ISO 8601, ``UNREADABLE`` where the text is none."""
    if (read := _arrow_times(texts)) is not None:
        return read
    if pc.any(pc.match_substring_regex(texts, OTHER_FORM)).as_py():
        texts = pc.ascii_upper(texts)
        texts = pc.replace_substring_regex(texts, "^([0-9]{4})/([0-9]{2})/([0-9]{2})", r"\1-\2-\3")
        texts = pc.replace_substring_regex(texts, r"[ \t]+([+-][0-9:]+)$", r"\1")
        texts = pc.replace_substring_regex(texts, r"[ \t]*(Z|UTC|GMT)$", "Z")
        if (read := _arrow_times(texts)) is not None:
            return read
    dates = pc.if_else(pc.match_substring_regex(texts, DATE), texts, pa.scalar(None, pa.string()))
    # Digits below a microsecond would make pandas count in nanoseconds, which end in 2262, for every row.
    dates = pc.replace_substring_regex(dates, r"(\.[0-9]{6})[0-9]+", r"\1")
    parsed = pd.to_datetime(dates.to_pandas(), format="ISO8601", utc=True, errors="coerce").dt.as_unit("us")
    dated = pa.Array.from_pandas(parsed, type=TIMESTAMP)
    micros: Int64s = dated.cast(pa.int64()).fill_null(UNREADABLE).to_numpy().copy()
    is_left = micros == UNREADABLE
    if is_left.any():
        # The basic form and week dates.
        encoded = texts.filter(pa.array(is_left)).dictionary_encode()
        moments = pa.array([_moment(text) for text in encoded.dictionary.to_pylist()], TIMESTAMP)
        micros[is_left] = moments.cast(pa.int64()).fill_null(UNREADABLE).take(encoded.indices).to_numpy()
    return micros


def _moment(text: str) -> datetime | None:
    with suppress(ValueError, OverflowError):
        return utc(text)
    return None
