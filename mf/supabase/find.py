"""Choosing the connection to Supabase from arguments and environment variables."""

from pydantic import SecretStr

from mf.supabase.credentials import Credentials
from mf.supabase.database import Database
from mf.supabase.target import Target


def find_target(url: str = "", key: SecretStr | None = None) -> Target:
    """The database of ``SUPABASE_DB_URL``, which needs no key, else the REST API of ``url`` or ``SUPABASE_URL``.

    Raises:
        ConfigError: neither is set, one is malformed, or the two are different projects.
        SupabaseError: Secret Manager does not return a secret.
    """
    # Either client is imported only where it is used.
    if database := Database.find():
        from mf.supabase.direct_target import DirectTarget

        database.check_project(url)
        return DirectTarget(database)
    from mf.supabase.rest_target import RestTarget

    return RestTarget(Credentials.find(url, key))
