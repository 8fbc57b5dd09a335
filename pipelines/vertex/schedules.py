"""Schedules of the pipeline on Vertex AI, at most one per name."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from google.api_core.exceptions import GoogleAPIError, NotFound
from google.cloud import aiplatform
from google.cloud.aiplatform import PipelineJobSchedule

from mf.errors import ConfigError, MfError
from pipelines.cron import Cron, time_zone
from pipelines.settings import Settings
from pipelines.training import NAME
from pipelines.vertex.submit import check_run, google_errors, make_job, print_machines

CONTENT = "content"  # label of the runs: hash of the pipeline, its parameters and where it runs


def schedule(
    settings: Settings, file: Path, given: Iterable[str], expression: str, zone_name: str = "UTC", name: str = NAME
) -> None:
    """Creates or replaces the schedule ``name``; does nothing when it is the same already.

    The new schedule is created before the old one is deleted. If that fails, the new one is deleted again, so that
    one schedule is left.

    Args:
        settings: the project, region, bucket, account and images of the runs.
        file: the compiled pipeline.
        given: parameters that differ from the pipeline's defaults, as name=value.
        expression: cron expression with five fields.
        zone_name: time zone of ``expression``.
        name: of the schedule.

    Raises:
        ConfigError: what ``submit`` raises; the expression, the zone or the name is invalid; or the images are named by
            tag.
        MfError: Google Cloud returned an error.
    """
    cron, zone = Cron(expression), time_zone(zone_name)
    next_runs = cron.next_runs(zone, datetime.now(UTC))
    _check_name(name)
    if not settings.pinned:
        raise ConfigError(
            "the images are named by tag, and a tag may move before a run; a schedule needs their digests: run "
            "`make images`, which writes them"
        )
    parameters, all_parameters = check_run(settings, file, given)
    content = _content(settings, file, parameters)
    with google_errors("create the schedule"):
        job = make_job(settings, file, parameters, {CONTENT: content})
        existing = _named(name)
        # Of several, keep an active one: a failed replacement may have left a paused one.
        states = ("ACTIVE",) if len(existing) > 1 else ("ACTIVE", "PAUSED")
        same = [old for old in existing if _is_same(old, content, f"TZ={zone_name} {cron.text}", states)]
        current = same[0] if same else _create(job, settings, name, f"TZ={zone_name} {cron.text}", existing)
    _delete_others([old for old in existing if old is not current], current, is_new=not same)
    print(f"{'unchanged' if same else 'scheduled'} {name}: {current.resource_name}")
    print(f"pipeline  {file.name} with content hash {content}")
    for kind in settings.image_kinds:
        print(f"image     {settings.image(kind)}")
    print_machines(settings, all_parameters)
    for time in next_runs:
        print(f"next run  {time:%a %Y-%m-%d %H:%M %Z} ({time.astimezone(UTC):%H:%M} UTC)")
    if current.gca_resource.state.name == "PAUSED":
        print(f"paused; to resume it: python -m pipelines resume --name {name}")


def schedules(settings: Settings) -> None:
    """Prints the schedules of the project and region."""
    _init(settings)
    with google_errors("list the schedules"):
        found = PipelineJobSchedule.list(order_by="display_name")
    if not found:
        print(f"no schedules in {settings.project}, {settings.region}")
    for one in found:
        resource = one.gca_resource
        next_run = resource.next_run_time
        due = f"next run {next_run:%Y-%m-%d %H:%M} UTC" if next_run else "no further run"
        print(f"{resource.display_name}  {resource.state.name.lower()}  {resource.cron}  {due}  {one.resource_name}")


def pause(settings: Settings, name: str = NAME) -> None:
    """Pauses the schedule ``name``; a run that it started continues.

    Raises:
        ConfigError: there is no such schedule.
    """
    _change(settings, name, PipelineJobSchedule.pause, "paused")


def resume(settings: Settings, name: str = NAME) -> None:
    """Resumes the schedule ``name``; missed runs are not made up for.

    Raises:
        ConfigError: there is no such schedule.
    """
    _change(settings, name, PipelineJobSchedule.resume, "resumed")


def unschedule(settings: Settings, name: str = NAME) -> None:
    """Deletes the schedule ``name``; a run that it started continues."""
    _init(settings)
    with google_errors("delete the schedule"):
        found = _named(name)
        for one in found:
            one.delete()
            print(f"deleted {name}: {one.resource_name}")
    if not found:
        print(f"there is no schedule {name}")


def _init(settings: Settings) -> None:
    settings.require(("project", "region"))
    aiplatform.init(project=settings.project, location=settings.region)


def _change(settings: Settings, name: str, change: Callable[[PipelineJobSchedule], None], done: str) -> None:
    """Calls ``change`` on the schedule ``name`` and prints that it is ``done``."""
    _init(settings)
    with google_errors("list the schedules"):
        found = _named(name)
    if not found:
        raise ConfigError(f"there is no schedule {name}; `python -m pipelines schedules` lists all")
    for one in found:
        with google_errors("change the schedule"):
            change(one)
        print(f"{done} {name}: {one.resource_name}")


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w .-]{0,127}", name):
        raise ConfigError(f"name: found {name!r}, expected letters, digits, spaces, dots, - and _, at most 128")


def _named(name: str) -> list[PipelineJobSchedule]:
    _check_name(name)
    found = PipelineJobSchedule.list(filter=f'display_name="{name}"')
    # The list's entries may lack the pipeline that a schedule runs.
    return [PipelineJobSchedule.get(one.resource_name) for one in found if one.display_name == name]


def _content(settings: Settings, file: Path, parameters: dict[str, object]) -> str:
    """Hash of the compiled pipeline with its images, the parameters, the bucket, the account and the labels.

    The commit is not part of it, because another commit may compile to the same pipeline.
    """
    where = [settings.pipeline_root, settings.service_account, settings.network]
    parts = json.dumps([file.read_text(), parameters, where, settings.labels], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def _is_same(one: PipelineJobSchedule, content: str, cron: str, states: Iterable[str]) -> bool:
    """Whether a schedule has this content and cron expression, at most one run at a time, and one of ``states``."""
    resource = one.gca_resource
    labels = resource.create_pipeline_job_request.pipeline_job.labels
    return (
        labels.get(CONTENT) == content
        and (resource.cron, resource.max_concurrent_run_count) == (cron, 1)
        and resource.state.name in states
    )


def _create(
    job: aiplatform.PipelineJob, settings: Settings, name: str, cron: str, existing: list[PipelineJobSchedule]
) -> PipelineJobSchedule:
    """Creates a schedule; if that fails, deletes the one that it may have left."""
    new = PipelineJobSchedule(pipeline_job=job, display_name=name)
    try:
        new.create(
            cron=cron,
            max_concurrent_run_count=1,
            service_account=settings.service_account or None,
            network=settings.network or None,
        )
    except GoogleAPIError:
        # The request may have succeeded although the response was lost.
        known = {old.resource_name for old in existing}
        with suppress(GoogleAPIError):
            for stray in _named(name):
                if stray.resource_name not in known:
                    stray.delete()
        raise
    return new


def _delete_others(olds: list[PipelineJobSchedule], current: PipelineJobSchedule, *, is_new: bool) -> None:
    """Deletes the schedules that ``current`` replaces; if that fails, deletes a new ``current`` again."""
    for old in olds:
        try:
            old.delete()
        except GoogleAPIError as error:
            if not _is_gone(old):
                reason = " ".join(str(error).split())
                state = _undo(current) if is_new else "and runs beside the current one"
                raise MfError(f"the old schedule {old.resource_name} could not be deleted, {state}: {reason}") from None
        paused = ", which was paused" if old.gca_resource.state.name == "PAUSED" else ""
        print(f"deleted   the previous one{paused}: {old.resource_name}")


def _is_gone(old: PipelineJobSchedule) -> bool:
    try:
        PipelineJobSchedule.get(old.resource_name)
    except NotFound:
        return True
    except GoogleAPIError:
        return False
    return False


def _undo(new: PipelineJobSchedule) -> str:
    """Deletes or at least pauses a new schedule, so that only one runs; returns the result as a clause."""
    for undo, done in (
        (new.delete, "and still runs; the new one was deleted again"),
        (new.pause, f"and still runs; the new one, {new.resource_name}, is paused"),
    ):
        with suppress(GoogleAPIError):
            undo()
            return done
    return f"and the new one, {new.resource_name}, could be neither deleted nor paused: BOTH RUN, delete one"
