"""Runs of the pipeline at set times: schedules on Vertex AI, at most one of a name."""

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
from pipelines.settings import Settings
from pipelines.training import NAME
from pipelines.vertex.cron import Cron, time_zone
from pipelines.vertex.submit import checked, make_job, print_machines, refused, require

CONTENT = "content"  # label of the runs: a hash of all that the schedule runs


def schedule(
    settings: Settings, file: Path, given: Iterable[str], expression: str, zone_name: str = "UTC", name: str = NAME
) -> None:
    """Makes the schedule ``name``, or puts a new one in its place when anything of it differs; prints which it is.

    The new one is made first and the old one deleted then: when something fails the old one runs on, alone.

    Args:
        settings: the project, region, bucket, account and images of the runs.
        file: the compiled pipeline.
        given: parameters that differ from the pipeline's defaults, name=value each.
        expression: when, as five fields of cron.
        zone_name: the time zone of ``expression``.
        name: of the schedule.

    Raises:
        ConfigError: what ``submit`` refuses; the expression, the zone or the name cannot be; or the images are named by
            tag.
        MfError: Google Cloud refused.
    """
    cron, zone = Cron(expression), time_zone(zone_name)
    next_runs = cron.next_runs(zone, datetime.now(UTC))
    _check_name(name)
    if not settings.pinned:
        raise ConfigError(
            "the settings name the images by tag, which may come to mean others before a run; a schedule needs their "
            "digests: run `make images`, which writes them as cpu_image and gpu_image"
        )
    parameters, everything = checked(settings, file, given)
    content = _content(settings, file, parameters)
    with refused("the schedule"):
        job = make_job(settings, file, parameters, {CONTENT: content})
        found = _named(name)
        # One that a failed replacement paused does not take the place of one that runs.
        states = ("ACTIVE",) if len(found) > 1 else ("ACTIVE", "PAUSED")
        same = [old for old in found if _runs(old, content, f"TZ={zone_name} {cron.text}", states)]
        now = same[0] if same else _create(job, settings, name, f"TZ={zone_name} {cron.text}", found)
    _replace([old for old in found if old is not now], now, is_new=not same)
    print(f"{'unchanged' if same else 'scheduled'} {name}: {now.resource_name}")
    print(f"pipeline  {file.name} by content, {content}")
    for kind in ("cpu", "gpu"):
        print(f"image     {settings.image(kind)}")
    print_machines(settings, everything)
    for time in next_runs:
        print(f"next run  {time:%a %Y-%m-%d %H:%M %Z} ({time.astimezone(UTC):%H:%M} UTC)")
    if now.gca_resource.state.name == "PAUSED":
        print(f"it is paused: python -m pipelines resume --name {name}")


def schedules(settings: Settings) -> None:
    """Prints the schedules of the project and region."""
    _init(settings)
    with refused("the question"):
        found = PipelineJobSchedule.list(order_by="display_name")
    if not found:
        print(f"no schedules in {settings.project}, {settings.region}")
    for one in found:
        resource = one.gca_resource
        due = f"next run {resource.next_run_time:%Y-%m-%d %H:%M} UTC" if resource.next_run_time else "no run to come"
        print(f"{resource.display_name}  {resource.state.name.lower()}  {resource.cron}  {due}  {one.resource_name}")


def pause(settings: Settings, name: str = NAME) -> None:
    """Stops the schedule ``name`` from starting runs; one that runs goes on.

    Raises:
        ConfigError: there is none.
    """
    _change(settings, name, PipelineJobSchedule.pause, "paused")


def resume(settings: Settings, name: str = NAME) -> None:
    """Lets the schedule ``name`` start runs again; those that it missed are not made up for.

    Raises:
        ConfigError: there is none.
    """
    _change(settings, name, PipelineJobSchedule.resume, "resumed")


def unschedule(settings: Settings, name: str = NAME) -> None:
    """Deletes the schedule ``name``; a run that it started goes on."""
    _init(settings)
    with refused("the deletion"):
        found = _named(name)
        for one in found:
            one.delete()
            print(f"deleted {name}: {one.resource_name}")
    if not found:
        print(f"there is no schedule {name}")


def _init(settings: Settings) -> None:
    require(settings, ("project", "region"))
    aiplatform.init(project=settings.project, location=settings.region)


def _change(settings: Settings, name: str, change: Callable[[PipelineJobSchedule], None], done: str) -> None:
    """Does it to the schedule ``name``, and says so."""
    _init(settings)
    with refused("the question"):
        found = _named(name)
    if not found:
        raise ConfigError(f"there is no schedule {name}; `python -m pipelines schedules` lists those that there are")
    for one in found:
        with refused("the change"):
            change(one)
        print(f"{done} {name}: {one.resource_name}")


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w .-]{0,127}", name):
        raise ConfigError(f"name: found {name!r}, expected letters, digits, spaces, dots, - and _, at most 128")


def _named(name: str) -> list[PipelineJobSchedule]:
    _check_name(name)
    found = PipelineJobSchedule.list(filter=f'display_name="{name}"')
    # A list may leave out what a schedule runs.
    return [PipelineJobSchedule.get(one.resource_name) for one in found if one.display_name == name]


def _content(settings: Settings, file: Path, parameters: dict[str, object]) -> str:
    """A hash of all that a run is made of: the compiled pipeline with its images, the parameters, where it runs and as
    whom. The commit is not in it: another one may compile to the same."""
    where = [settings.pipeline_root, settings.service_account, settings.network]
    parts = json.dumps([file.read_text(), parameters, where, settings.labels], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def _runs(one: PipelineJobSchedule, content: str, cron: str, states: Iterable[str]) -> bool:
    resource = one.gca_resource
    labels = resource.create_pipeline_job_request.pipeline_job.labels
    return (
        labels.get(CONTENT) == content
        and (resource.cron, resource.max_concurrent_run_count) == (cron, 1)
        and resource.state.name in states
    )


def _create(
    job: aiplatform.PipelineJob, settings: Settings, name: str, cron: str, found: list[PipelineJobSchedule]
) -> PipelineJobSchedule:
    new = PipelineJobSchedule(pipeline_job=job, display_name=name)
    try:
        new.create(
            cron=cron,
            max_concurrent_run_count=1,
            service_account=settings.service_account or None,
            network=settings.network or None,
        )
    except GoogleAPIError:
        # An answer may get lost behind the deed.
        known = {old.resource_name for old in found}
        with suppress(GoogleAPIError):
            for stray in _named(name):
                if stray.resource_name not in known:
                    stray.delete()
        raise
    return new


def _replace(olds: list[PipelineJobSchedule], now: PipelineJobSchedule, *, is_new: bool) -> None:
    """Deletes what ``now`` stands in place of; when that fails a new one is taken back."""
    for old in olds:
        try:
            old.delete()
        except GoogleAPIError as error:
            if not _is_gone(old):
                reason = " ".join(str(error).split())
                after = _take_back(now) if is_new else "and runs beside the one that is wanted"
                raise MfError(f"the old schedule {old.resource_name} could not be deleted, {after}: {reason}") from None
        paused = ", which was paused" if old.gca_resource.state.name == "PAUSED" else ""
        print(f"deleted   the one before{paused}: {old.resource_name}")


def _is_gone(old: PipelineJobSchedule) -> bool:
    try:
        PipelineJobSchedule.get(old.resource_name)
    except NotFound:
        return True
    except GoogleAPIError:
        return False
    return False


def _take_back(new: PipelineJobSchedule) -> str:
    """Deletes or at least pauses a schedule, so that no two run; says what came of it."""
    for undo, done in (
        (new.delete, "and was left to run; the new one was deleted again"),
        (new.pause, f"and was left to run; the new one, {new.resource_name}, is paused"),
    ):
        with suppress(GoogleAPIError):
            undo()
            return done
    return f"and the new one, {new.resource_name}, could be neither deleted nor paused: BOTH RUN, delete one"
