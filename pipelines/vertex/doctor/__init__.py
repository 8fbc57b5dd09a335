"""``make doctor``: what a run needs, looked at one by one: this machine, the settings, the Google Cloud project,
Supabase. Nothing is changed, and no secret is shown."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from mf.errors import ConfigError
from pipelines.compiled import definitions, machine_check
from pipelines.parameters import complete, parse
from pipelines.settings import Settings
from pipelines.vertex.doctor import cloud, machine, supabase
from pipelines.vertex.doctor.finding import Finding, missing, ok, run
from pipelines.vertex.doctor.google import Google

NEEDED = ("project", "region", "pipeline_root", "supabase_url", "supabase_key_secret")


def examine(file: Path, environ: Mapping[str, str], address: str = "https://{host}") -> bool:
    """Prints a line a check, ``ok``, ``missing`` or ``unknown``; true when nothing is missing.

    Args:
        file: the settings.
        environ: its ``MF_…`` stand above the settings; ``SUPABASE_URL``, ``SUPABASE_KEY`` and ``SUPABASE_DB_URL`` go
            before the project and the secrets that these name.
        address: of Google's APIs.
    """
    settings, parameters, found = _settings(file, environ)
    whole = run([*machine.checks(), ("settings", lambda: found)])
    project = cloud.Cloud(settings, parameters, Google(settings.project, address))
    whole &= run(cloud.checks(project))
    with httpx.Client(timeout=supabase.TIMEOUT_S) as http:
        other = _supabase(project, environ, http)
        whole &= run(supabase.checks(other))
    if other.database:
        whole &= run([("database", lambda: supabase.database(other))])
    return whole


def _settings(file: Path, environ: Mapping[str, str]) -> tuple[Settings, dict[str, Any], Finding]:
    """The settings, what the pipeline's parameters are with them when a run does not say, and what to say of both."""
    settings, known = Settings(), definitions()
    parameters = complete({}, known)
    try:
        settings = Settings.load(file, environ)
        parameters = complete(parse(settings.defaults(), known, machine_check(settings)), known)
    except ConfigError as error:
        return settings, parameters, missing(str(error), "correct it")
    if empty := [name for name in NEEDED if not getattr(settings, name)]:
        return settings, parameters, missing(f"{file} lacks {', '.join(empty)}", "fill them in (docs/vertex.md)")
    return settings, parameters, ok(str(file))


def _supabase(project: cloud.Cloud, environ: Mapping[str, str], http: httpx.Client) -> supabase.Project:
    settings, payloads = project.settings, project.payloads
    return supabase.Project(
        url=environ.get("SUPABASE_URL") or settings.supabase_url,
        key=SecretStr(environ.get("SUPABASE_KEY", "")) or payloads.get(settings.supabase_key_secret),
        database=SecretStr(environ.get("SUPABASE_DB_URL", "")) or payloads.get(settings.supabase_db_url_secret),
        http=http,
        ratings="" if project.parameters["ratings_csv"] else project.parameters["import_table"],
        online=project.google.online,
    )
