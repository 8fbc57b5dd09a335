"""The direct connection to Supabase's database; its URL holds a password, which is never shown."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr

from mf.errors import ConfigError
from mf.supabase.credentials import from_secret_manager, project_url, secret_name, variable

FORM = "postgresql://USER:PASSWORD@HOST:5432/postgres"
SESSION_POOLER = "use the session pooler's address, port 5432, from the project's Connect dialog"
# libpq options unless the URL sets them: detect a host that does not respond, or falls silent during a long read.
OPTIONS = {"application_name": "mf", "connect_timeout": "15", "keepalives_idle": "30", "keepalives_interval": "10"}


@dataclass(frozen=True)
class Database:
    """The connection URL of a database; ``repr`` hides it, since it holds the password."""

    url: SecretStr

    @classmethod
    def find(cls, environ: Mapping[str, str] | None = None) -> "Database | None":
        """The database of ``SUPABASE_DB_URL``, else of the Secret Manager secret named by ``SUPABASE_DB_URL_SECRET``,
        in ``environ`` (default: the process's environment); ``None`` when neither is set.

        Raises:
            ConfigError: the URL is not of the form ``postgresql://USER:PASSWORD@HOST:5432/postgres``, or is that of the
                transaction pooler.
            SupabaseError: Secret Manager does not return the secret.
        """
        url = SecretStr(variable("SUPABASE_DB_URL", environ).strip())
        if not url and (name := secret_name("SUPABASE_DB_URL_SECRET", environ)):
            url = from_secret_manager(name, "SUPABASE_DB_URL_SECRET", "address of the database")
        return cls(_checked(url)) if url else None

    @property
    def conninfo(self) -> SecretStr:
        """The connection string for libpq (psycopg, ADBC); connections to Supabase's hosts are encrypted."""
        parts = _parts(self.url)
        options = {name: value for name, value in OPTIONS.items() if name not in parts}
        if _is_supabase(self.host) and "sslmode" not in parts:
            options["sslmode"] = "require"
        return SecretStr(make_conninfo(self.url.get_secret_value(), **options))

    @property
    def host(self) -> str:
        return str(_parts(self.url)["host"])

    @property
    def port(self) -> str:
        return str(_parts(self.url).get("port", 5432))

    @property
    def project(self) -> str | None:
        """The reference of the Supabase project, ``None`` when the URL does not contain it."""
        direct = re.fullmatch(r"db\.(\w+)\.supabase\.co", self.host)
        pooled = re.fullmatch(r"\w+\.(\w+)", str(_parts(self.url).get("user", ""))) if _is_supabase(self.host) else None
        match = direct or pooled
        return match[1] if match else None

    def __str__(self) -> str:
        return f"the database {self.host}:{self.port}"

    def check_project(self, url: str) -> None:
        """Check that this can be the database of the Supabase project at ``url``.

        Raises:
            ConfigError: the two are different projects.
        """
        project = re.fullmatch(r"https://(\w+)\.supabase\.co", project_url(url))
        if project and self.project and project[1] != self.project:
            raise ConfigError(
                f"--supabase_url is project {project[1]}, but SUPABASE_DB_URL is project {self.project}: unset "
                "SUPABASE_DB_URL, or set it to the same project"
            )

    def explain(self, error: Exception, doing: str, hints: Mapping[str, str] | None = None) -> str:
        """One sentence, without the password: what failed, why, and what to do.

        Raise it after the handler of ``error``, not in it: the driver's frames hold the URL.

        Args:
            error: an exception of psycopg or ADBC.
            doing: what the caller is doing: ``read table public.ratings``.
            hints: advice by SQLSTATE, which takes precedence over the built-in advice.
        """
        code = getattr(error, "sqlstate", None)
        message = self._scrubbed(_message(error))
        hint = dict(hints or {}).get(str(code)) or next(
            (advice for pattern, advice in _ADVICE if re.search(pattern, message, re.I)), None
        )
        if not code and hint is None:
            hint = f"check SUPABASE_DB_URL and the network ({self})"
        return f"cannot {doing}: {message}" + (f" ({code})" if code else "") + (f": {hint}" if hint else "")

    def _scrubbed(self, text: str) -> str:
        password = _parts(self.url).get("password")
        for secret in {self.url.get_secret_value(), str(password or "")} - {""}:
            text = text.replace(secret, "…").replace(unquote(secret), "…")
        return text


def _checked(url: SecretStr) -> SecretStr:
    """``url`` if it can be used; an error never shows it, since it may be just a password."""
    # Raised here, where no local variable holds a part of the URL.
    if problem := _problem(url):
        raise ConfigError(problem)
    return url


def _problem(url: SecretStr) -> str:
    """What is wrong with the URL, "" if nothing is."""
    if "[YOUR-PASSWORD]" in url.get_secret_value():
        return "SUPABASE_DB_URL still holds [YOUR-PASSWORD]: replace it with the database's password"
    if re.match(r"postgres(ql)?://[^\s/@:]*:(\[[^\s@]*\]|<[^\s@]*>)@", url.get_secret_value()):
        return "SUPABASE_DB_URL has its password in brackets, which belong to the example: leave them out"
    if re.match("[\"'<]", url.get_secret_value()):
        return f"SUPABASE_DB_URL is not of the form {FORM}: leave out the quotes around it"
    parts = _parts(url)
    # The name of an option is shown only where it cannot be a part of a password.
    options = re.fullmatch(r"postgres(?:ql)?://[^\s/@?]+@[^\s/@?]+/[^\s@?]+\?([^\s@?]+)", url.get_secret_value())
    named = [option.partition("=")[0] for option in options[1].split("&")] if options else []
    known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    if unknown := [name for name in named if re.fullmatch("[a-z_]{1,30}", name) and name not in known]:
        pooler = f"; {SESSION_POOLER}" if ":6543/" in url.get_secret_value() else ""
        return (
            f"SUPABASE_DB_URL has the option {', '.join(unknown)}, which is for other clients (Prisma): remove it from "
            f"the end of the address{pooler}"
        )
    # Only one "@": the text after the first one would be taken for the host, and shown, but may be part of a password.
    shape = re.fullmatch(r"postgres(ql)?://[^\s/@]+@[^\s/@]+/[^\s@]+", url.get_secret_value())
    host = re.fullmatch(r"[\w.:-]+", str(parts.get("host")))
    port = re.fullmatch("[0-9]{1,5}", str(parts.get("port", 1)))
    if not (parts and shape and host and port):
        return (
            f"SUPABASE_DB_URL is not of the form {FORM}; characters such as @ : / # ? % and spaces in the password are "
            "written as %40 %3A %2F %23 %3F %25 %20"
        )
    if parts.get("port") == "6543" and _is_supabase(host[0]):
        return (
            "SUPABASE_DB_URL is the transaction pooler's, port 6543, which supports no session settings and no "
            f"prepared statements: {SESSION_POOLER}"
        )
    return ""


def _parts(url: SecretStr) -> dict[str, Any]:
    """``host``, ``port``, ``user``, ``password`` etc. as libpq parses them; empty if it cannot."""
    try:
        return dict(conninfo_to_dict(url.get_secret_value()))
    except psycopg.ProgrammingError:
        return {}


def _is_supabase(host: str) -> bool:
    return host.endswith((".supabase.co", ".supabase.com"))


def _message(error: Exception) -> str:
    """The server's or libpq's message on one line, without the statement and the driver's additions."""
    text = str(error) or type(error).__name__
    text = re.sub(r"\n\s*Query was:.*", "", text, flags=re.S)
    text = re.split(r"\n(?:LINE |CONTEXT:)", text)[0]
    server = re.search(r"(?:ERROR|FATAL):\s*(.+)", text, re.S)
    return " ".join((server[1] if server else re.sub(r"^([A-Z_]+: )?(\[libpq\] )?", "", text)).split())


_REFUSED = (
    "check the password in SUPABASE_DB_URL (Project Settings → Database → Reset database password), with its special "
    "characters percent-encoded"
)
_UNREACHABLE = f"a project's direct host db.….supabase.co has IPv6 only; from a network without it {SESSION_POOLER}"
# By message: libpq gives no code for errors before a session begins.
_ADVICE = (
    (r"password authentication failed|wrong password", _REFUSED),
    (
        r"tenant or user not found|tenant/user .* not found|ENOTFOUND",
        f"user and host do not match, or the project is paused (restore it in the dashboard): {SESSION_POOLER}",
    ),
    (r"could not translate host name|failed to resolve host|Network is unreachable|No route to host", _UNREACHABLE),
    (r"timeout expired|Connection timed out", f"the host does not respond: {_UNREACHABLE}"),
    (r"Connection refused", "nothing listens there: check host and port in SUPABASE_DB_URL, and that the project runs"),
    (r"max clients|too many (clients|connections)|connection slots", "all connections are in use: close some, or wait"),
    (r"database \".*\" does not exist", "check the name after the last / in SUPABASE_DB_URL: Supabase's is postgres"),
    (r"server does not support SSL", "add ?sslmode=disable to SUPABASE_DB_URL if that server is your own"),
    (r"SSL connection is required", "add ?sslmode=require to SUPABASE_DB_URL"),
    (
        r"server closed the connection|connection .*(lost|terminated|reset)|terminating connection|SSL SYSCALL error",
        "the connection was lost: run it again",
    ),
)
