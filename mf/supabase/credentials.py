"""Supabase URL and API key, from arguments, environment variables or Secret Manager; the key is never shown."""

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import SecretStr

from mf.errors import ConfigError, SupabaseError, needs_extra

KEY_HELP = "set SUPABASE_KEY, or SUPABASE_KEY_SECRET to the name of a Secret Manager secret"
# (?!sb_) refuses a Supabase key pasted as NAME.
SECRET_NAME = re.compile(r"projects/[^/\s]+/secrets/(?!sb_)[\w-]+(/versions/[\w-]+)?")
NAME_FORM = "projects/PROJECT/secrets/NAME/versions/latest"


@dataclass(frozen=True)
class Credentials:
    """URL and API key of a Supabase project; ``repr`` hides the key."""

    url: str
    key: SecretStr

    @classmethod
    def find(
        cls, url: str | None = None, key: SecretStr | None = None, environ: Mapping[str, str] | None = None
    ) -> "Credentials":
        """``url`` and ``key``, else ``SUPABASE_URL``, ``SUPABASE_KEY`` and ``SUPABASE_KEY_SECRET`` of ``environ``
        (default: the process's environment).

        Raises:
            ConfigError: the URL or the key is missing or malformed.
            SupabaseError: Secret Manager does not return the secret.
        """
        url = (url or variable("SUPABASE_URL", environ)).rstrip("/")
        if not url:
            raise ConfigError("no Supabase project: give --supabase_url or set SUPABASE_URL")
        if not is_address(url):
            # Neither shown nor left for a traceback to show: it may hold a password, or be the key.
            del url
            raise ConfigError("the Supabase URL is not of the form https://PROJECT.supabase.co")
        if key is None:
            key = SecretStr(variable("SUPABASE_KEY", environ)) or None
        if key is None and (name := secret_name("SUPABASE_KEY_SECRET", environ)):
            key = from_secret_manager(name, "SUPABASE_KEY_SECRET", "Supabase key")
        if key is None or not key.get_secret_value().strip():
            raise ConfigError(f"no key for {url}: {KEY_HELP}")
        if not re.fullmatch(r"[\x21-\x7e]+", key.get_secret_value().strip()):
            raise ConfigError(f"the key for {url} holds characters that no Supabase key has: copy it again")
        return cls(url, SecretStr(key.get_secret_value().strip()))

    @property
    def role(self) -> str:
        """The database role of the key, read from the key itself: ``service_role``, ``anon``, ``authenticated`` or
        ``unknown``."""
        key = self.key.get_secret_value()
        if key.startswith("sb_"):
            return {"sb_secret": "service_role", "sb_publishable": "anon"}.get("_".join(key.split("_")[:2]), "unknown")
        try:
            payload = key.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            return str(claims["role"])
        except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
            return "unknown"


def variable(name: str, environ: Mapping[str, str] | None) -> str:
    """A variable of ``environ`` (default: the process's environment), "" if unset. A caller that held the whole
    environment would show it in a traceback with locals."""
    return (os.environ if environ is None else environ).get(name, "")


def secret_name(name: str, environ: Mapping[str, str] | None) -> str:
    """The name of a Secret Manager secret in the variable ``name`` of ``environ``, "" if unset. No local variable here,
    which a traceback may show, holds a refused value: it may be the secret itself.

    Raises:
        ConfigError: the value is not the name of a secret.
    """
    match = SECRET_NAME.fullmatch(variable(name, environ))
    if match is None and variable(name, environ):
        raise ConfigError(f"{name} is not of the form {NAME_FORM}")
    return match[0] if match else ""


def is_address(url: str) -> bool:
    """Whether ``url`` is exactly http(s)://host[:port][/path]."""
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not (parts.username or parts.password or parts.query or parts.fragment)
            and not any(c.isspace() for c in url)
        )
    except ValueError:
        return False


def from_secret_manager(name: str, variable: str, what: str) -> SecretStr:
    """The payload of a Secret Manager secret, read with the process's service account.

    Args:
        name: as ``secret_name`` returns it; without a version, the latest one is read.
        variable: the environment variable that holds the name, for errors.
        what: description of the payload, for errors.

    Raises:
        SupabaseError: Secret Manager does not return the secret.
    """
    with needs_extra("gcp", f"reading the secret of {variable}"):
        from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import secretmanager
        from requests import RequestException

    if "/versions/" not in name:
        name += "/versions/latest"
    try:
        client = secretmanager.SecretManagerServiceClient()
        payload = client.access_secret_version(name=name, timeout=60).payload.data
    except NotFound:
        raise SupabaseError(f"there is no secret {name}: create it, or correct {variable}") from None
    except Forbidden:
        raise SupabaseError(
            f"no access to the secret {name}: give the account that runs this the role "
            "roles/secretmanager.secretAccessor on it"
        ) from None
    except (GoogleAPIError, GoogleAuthError, RequestException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SupabaseError(f"the secret {name} could not be read: {reason}") from None
    # Invalid UTF-8 is left to the later check of the characters: a decoding error would carry the payload.
    value = payload.decode(errors="replace").strip()
    if not value:
        raise SupabaseError(f"the secret {name} is empty: add a version that holds the {what}")
    return SecretStr(value)
