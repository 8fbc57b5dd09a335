"""Targets and clients of an embedded Supabase."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from pydantic import SecretStr
from supabase import Client

from mf.local import LocalSupabase
from mf.supabase.client import connect
from mf.supabase.credentials import Credentials
from mf.supabase.database import Database
from mf.supabase.direct_target import DirectTarget
from mf.supabase.recommend import Recommendation, Similar
from mf.supabase.rest_target import RestTarget


def rest(stack: LocalSupabase, key: str = "") -> RestTarget:
    return RestTarget(Credentials(stack.url, SecretStr(key or stack.secret_key)))


def api(stack: LocalSupabase) -> AbstractContextManager[Client]:
    """A client of the service role."""
    return connect(rest(stack).credentials)


def direct(stack: LocalSupabase) -> DirectTarget:
    return DirectTarget(Database(SecretStr(stack.db_url)))


def pairs(answer: Iterable[Recommendation | Similar]) -> list[tuple[Any, float]]:
    """Movie and predicted rating, or similarity, of each row."""
    return [(row[0], row.similarity if isinstance(row, Similar) else row.predicted_rating) for row in answer]
