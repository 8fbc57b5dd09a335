"""Check of the settings and of the defaults that they give to the pipeline's parameters."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mf.errors import ConfigError
from pipelines.compiled import definitions, target_check
from pipelines.doctor.finding import Finding, missing, ok
from pipelines.parameters import complete, parse
from pipelines.settings import Settings


def read(
    file: Path, environ: Mapping[str, str], target: str, required: Iterable[str], page: str
) -> tuple[Settings, dict[str, Any], Finding]:
    """The settings, the pipeline's parameters with the settings' defaults, and the finding about both.

    Args:
        file: the settings.
        environ: its ``MF_…`` variables override the settings.
        target: vertex or kubeflow, for settings that cannot be read.
        required: names of settings that may not be empty, besides the images'.
        page: the document that describes them.
    """
    settings, known = Settings(target=target), definitions(target)
    parameters = complete({}, known)
    try:
        settings = Settings.load(file, environ)
        parameters = complete(parse(settings.defaults(), known, target_check(settings)), known)
    except ConfigError as error:
        return settings, parameters, missing(str(error), "correct it")
    required = (*required, *(() if settings.pinned else ("image_repository",)))
    if empty := [name for name in required if not getattr(settings, name)]:
        return settings, parameters, missing(f"{file} lacks {', '.join(empty)}", f"fill them in ({page})")
    return settings, parameters, ok(str(file))
