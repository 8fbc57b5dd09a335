"""``make doctor`` for Vertex AI: checks this machine, the settings, the Google Cloud project and Supabase."""

from collections.abc import Mapping
from pathlib import Path

from pipelines.doctor import machine, settings, supabase
from pipelines.doctor.finding import run_checks
from pipelines.vertex.doctor import cloud
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
    given, parameters, finding = settings.read(file, environ, "vertex", REQUIRED, "docs/vertex.md")
    all_there = run_checks([*machine.checks(), ("settings", lambda: finding)])
    project = cloud.Cloud(given, parameters, Google(given.project, google_url))
    all_there &= run_checks(cloud.checks(project))
    values = project.secret_values
    return all_there & supabase.examine(
        given.supabase_url, values.get(given.supabase_key_secret), values.get(given.supabase_db_url_secret), environ,
        parameters, online=project.google.online,
    )  # fmt: skip
