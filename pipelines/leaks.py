"""Refusing secrets in parameters and settings, whose values show in the console, in logs and in requests."""

import re

from mf.errors import ConfigError

KINDS = {
    "a Supabase secret key": r"\bsb_secret_\w",
    "a JSON Web Token": r"\beyJ[\w-]{5,}\.[\w-]{5,}\.",
    "an address with a password": r"://[^/\s@:]*:[^\s@]+@",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
}


def refuse(what: str, text: str) -> None:
    """Refuses a text that looks like a secret.

    Args:
        what: name of the value, for the error: "parameter columns".
        text: the value.

    Raises:
        ConfigError: it looks like a secret; the error does not show it.
    """
    for kind, pattern in KINDS.items():
        if re.search(pattern, text):
            raise ConfigError(
                f"{what} looks like {kind}, and shows in the console and in logs: put it into Secret Manager and its "
                "name into supabase_key_secret or supabase_db_url_secret of pipelines/settings.toml"
            )
