"""Refusing secrets in parameters and settings, whose values show in the console, in logs and in requests."""

from mf.errors import ConfigError
from mf.leaks import kind_of


def refuse(what: str, text: str) -> None:
    """Refuses a text that looks like a secret.

    Args:
        what: name of the value, for the error: "parameter columns".
        text: the value.

    Raises:
        ConfigError: it looks like a secret; the error does not show it.
    """
    if kind := kind_of(text):
        raise ConfigError(
            f"{what} looks like {kind}, and shows in the console and in logs: put it into Secret Manager and its "
            "name into supabase_key_secret or supabase_db_url_secret of pipelines/settings.toml"
        )
