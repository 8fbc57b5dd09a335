"""Supabase URL and API key, from arguments, environment variables or Secret Manager; the key is never shown."""

import base64
import binascii
import ipaddress
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
_COPY = "copy the project's secret key (sb_secret_… or the service_role JWT)"
NO_KEYS = (
    (r"(?s:.*[^\x21-\x7e].*)", "holds characters that no Supabase key has: copy it again"),
    ("[\"'].*[\"']", "has quotes around it: leave them out"),
    (SECRET_NAME.pattern, "is the name of a secret: put it into SUPABASE_KEY_SECRET"),
    ("sbp_.*", f"is an access token of an account: {_COPY}"),
    (".*://.*", f"is an address: {_COPY}"),
)
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
        url = project_url(url or variable("SUPABASE_URL", environ))
        if not url:
            raise ConfigError("no Supabase project: give --supabase_url or set SUPABASE_URL")
        if problem := address_problem(url, environ):
            # Neither shown nor left for a traceback to show: it may hold a password, or be the key.
            del url
            raise ConfigError(f"the Supabase URL {problem}")
        if key is None:
            key = SecretStr(variable("SUPABASE_KEY", environ)) or None
        if key is None and (name := secret_name("SUPABASE_KEY_SECRET", environ)):
            key = from_secret_manager(name, "SUPABASE_KEY_SECRET", "Supabase key")
        if key is None or not key.get_secret_value().strip():
            raise ConfigError(f"no key for {url}: {KEY_HELP}")
        key = SecretStr(key.get_secret_value().strip())
        if problem := _key_problem(key):
            raise ConfigError(f"the key for {url} {problem}")
        return cls(url, key)

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


def _key_problem(key: SecretStr) -> str:
    """What is wrong with a key, "" if nothing is."""
    return next((said for form, said in NO_KEYS if re.fullmatch(form, key.get_secret_value())), "")


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


def project_url(url: str) -> str:
    """A project's URL without white space at its ends and without the path of one of its services or a request."""
    url = re.sub(r"(?s)/(rest|auth|storage|functions|graphql|realtime)/v1([/?#].*)?$", "", url.strip())
    return url.rstrip("/?#")


def address_problem(url: str, environ: Mapping[str, str] | None = None) -> str:
    """What is wrong with a project's URL, "" if nothing is; the text does not show the URL.

    It must be exactly http(s)://host[:port][/path]. The key is sent to it: http is for this machine only, or for a
    server inside a network with ``SUPABASE_INSECURE=1`` in ``environ`` (default: the process's environment).
    """
    form = "is not of the form https://PROJECT.supabase.co"
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port
    except ValueError:
        return form
    if parts.scheme in ("postgres", "postgresql"):
        return f"{form}: it is the address of a database, which belongs in SUPABASE_DB_URL"
    if parts.scheme not in ("http", "https"):
        if re.match("[\"'<]", url):
            return f"{form}: leave out the quotes around it"
        is_host = re.fullmatch(r"[\w-]+\.supabase\.(co|in)/?", url)
        if re.fullmatch("[a-z]{20}", url):
            return f"{form}: it is a project's reference alone"
        return f"{form}: put https:// before it" if is_host else form
    if not host or port == 0 or parts.username or parts.password or parts.query or parts.fragment:
        return form
    if not re.fullmatch(r"[\w.-]+|[0-9a-f:.]+", host) or any(c.isspace() or not c.isprintable() for c in url):
        return form
    if host in ("http", "https"):
        return f"{form}: it begins twice with http"
    if re.match(r"(your[-_]?)?project([-_]?(id|ref))?\.supabase\.", host):
        return f"{form}: it is still the example: the project's is in the Connect dialog"
    if host in ("supabase.com", "www.supabase.com", "app.supabase.com", "app.supabase.io", "api.supabase.com"):
        return f"{form}: it is the dashboard's; the project's is in the Connect dialog"
    if re.fullmatch(r"[\w-]+\.(functions|storage|realtime)\.supabase\.(co|in)|[\w-]+\.supabase\.com", host):
        return f"{form}: leave out the name of the service, and end it with .co"
    if (host.startswith("db.") and host.endswith((".supabase.co", ".supabase.com"))) or ".pooler.supabase." in host:
        return f"{form}: it is the database's host; the project's address has no db. or pooler in it"
    if parts.path and host.endswith(".supabase.co"):
        return f"{form}: leave out what follows .co"
    if parts.scheme == "http" and not _is_loopback(host) and variable("SUPABASE_INSECURE", environ) != "1":
        return (
            "begins with http://, over which the key would go unencrypted: use https://, or set SUPABASE_INSECURE=1 "
            "for a server of your own inside a network"
        )
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


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
