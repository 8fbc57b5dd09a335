"""What looks like a secret, where none may be: a parameter's value shows in the console, in logs and in requests."""

import re

from mf.errors import ConfigError

KINDS = {
    "a Supabase secret key": r"\bsb_secret_\w",
    "a JSON Web Token": r"\beyJ[\w-]{5,}\.[\w-]{5,}\.",
    "an address with a password": r"://[^/\s@:]*:[^\s@]+@",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
}


def refuse(what: str, text: str) -> None:
    """Raises a ``ConfigError``, that does not show ``text``, when it looks like a secret.

    Args:
        what: it is, for the error: "parameter columns".
        text: as it was given.
    """
    for kind, pattern in KINDS.items():
        if re.search(pattern, text):
            raise ConfigError(
                f"{what} looks like {kind}, and shows in the console and in logs: put it into Secret Manager and its "
                "name into supabase_key_secret or supabase_db_url_secret of pipelines/settings.toml"
            )
