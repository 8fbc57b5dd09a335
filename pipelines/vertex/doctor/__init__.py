"""``make doctor``: checks everything that a run on Vertex AI needs.

It checks this machine, the settings, the Google Cloud project and Supabase. It changes nothing and shows no secret.
"""

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
from pipelines.vertex.doctor.finding import Finding, missing, ok, run_checks
from pipelines.vertex.doctor.google import Google

REQUIRED = ("project", "region", "pipeline_root", "supabase_url", "supabase_key_secret")


def examine(file: Path, environ: Mapping[str, str], google_url: str = "https://{host}") -> bool:
    """Prints one line per check, ``ok``, ``missing`` or ``unknown``; true when nothing is missing.

    Args:
        file: the settings.
        environ: its ``MF_…`` variables override the settings; its ``SUPABASE_URL``, ``SUPABASE_KEY`` and
            ``SUPABASE_DB_URL`` override the project and the secrets that the settings name.
        google_url: URL of Google's APIs, with ``{host}`` in place of the host name.
    """
    settings, parameters, finding = _settings(file, environ)
    all_there = run_checks([*machine.checks(), ("settings", lambda: finding)])
    project = cloud.Cloud(settings, parameters, Google(settings.project, google_url))
    all_there &= run_checks(cloud.checks(project))
    with httpx.Client(timeout=supabase.TIMEOUT_S) as http:
        supabase_project = _supabase(project, environ, http)
        all_there &= run_checks(supabase.checks(supabase_project))
    if supabase_project.database:
        all_there &= run_checks([("database", lambda: supabase.direct_connection(supabase_project))])
    return all_there


def _settings(file: Path, environ: Mapping[str, str]) -> tuple[Settings, dict[str, Any], Finding]:
    """The settings, the pipeline's parameters with the settings' defaults, and the finding about both."""
    settings, known = Settings(), definitions()
    parameters = complete({}, known)
    try:
        settings = Settings.load(file, environ)
        parameters = complete(parse(settings.defaults(), known, machine_check(settings)), known)
    except ConfigError as error:
        return settings, parameters, missing(str(error), "correct it")
    required = (*REQUIRED, *(() if settings.pinned else ("image_repository",)))
    if empty := [name for name in required if not getattr(settings, name)]:
        return settings, parameters, missing(f"{file} lacks {', '.join(empty)}", "fill them in (docs/vertex.md)")
    return settings, parameters, ok(str(file))


def _supabase(project: cloud.Cloud, environ: Mapping[str, str], http: httpx.Client) -> supabase.Project:
    settings, secrets = project.settings, project.secret_values
    return supabase.Project(
        url=environ.get("SUPABASE_URL") or settings.supabase_url,
        key=SecretStr(environ.get("SUPABASE_KEY", "")) or secrets.get(settings.supabase_key_secret),
        database=SecretStr(environ.get("SUPABASE_DB_URL", "")) or secrets.get(settings.supabase_db_url_secret),
        http=http,
        ratings_table="" if project.parameters["ratings_csv"] else project.parameters["import_table"],
        online=project.google.online,
    )
