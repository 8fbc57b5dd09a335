"""Recurring runs of the pipeline on open-source Kubeflow Pipelines, at most one per name."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kfp
from kfp_server_api.exceptions import ApiException

from mf.errors import ConfigError
from pipelines.cron import Cron, time_zone
from pipelines.kubeflow.submit import check_run, connect, kubeflow_errors, print_machines
from pipelines.settings import Settings
from pipelines.training import NAME

PAGE = 100


def schedule(
    settings: Settings, file: Path, given: Iterable[str], expression: str, zone_name: str = "UTC", name: str = NAME
) -> None:
    """Creates the recurring run ``name``, then deletes earlier ones of that name.

    Args:
        settings: the host, namespace, account and images of the runs.
        file: the compiled pipeline.
        given: parameters that differ from the pipeline's defaults, as name=value.
        expression: cron expression with five fields.
        zone_name: UTC, the only time zone that Kubeflow's clock has.
        name: of the recurring run.

    Raises:
        ConfigError: what ``submit`` raises; or the expression or the zone is invalid, or the images are named by tag.
        MfError: Kubeflow returned an error or cannot be reached.
    """
    cron = Cron(expression)
    if zone_name != "UTC":
        raise ConfigError(f"time zone: found {zone_name!r}; a recurring run of Kubeflow has the cluster's, UTC")
    next_runs = cron.next_runs(time_zone("UTC"), datetime.now(UTC))
    if not settings.pinned:
        raise ConfigError(
            "the images are named by tag, and a tag may move before a run; a schedule needs their digests: run "
            "`make images`, which writes them"
        )
    parameters, all_parameters = check_run(settings, file, given)
    with kubeflow_errors("create the recurring run"):
        client = connect(settings)
        experiment = client.create_experiment(
            settings.experiment or NAME, namespace=settings.kubeflow_namespace or None
        ).experiment_id
        earlier = _named(client, settings, name)
        new = client.create_recurring_run(
            experiment,
            name,
            cron_expression=f"0 {cron.text}",  # its first field is the second
            max_concurrency=1,
            no_catchup=True,
            params=parameters,
            pipeline_package_path=str(file),
            pipeline_root=settings.pipeline_root or None,
            service_account=settings.service_account or None,
        )
    print(f"scheduled {name}: {new.recurring_run_id}")
    for one in earlier:
        with kubeflow_errors(f"delete the earlier recurring run, which runs beside {new.recurring_run_id}"):
            _delete(client, one.recurring_run_id)
        print(f"deleted   the previous one: {one.recurring_run_id}")
    print_machines(settings, all_parameters)
    for time in next_runs:
        print(f"next run  {time:%a %Y-%m-%d %H:%M} UTC")


def schedules(settings: Settings) -> None:
    """Prints the recurring runs."""
    with kubeflow_errors("list the recurring runs"):
        found = _all(connect(settings), settings)
    if not found:
        print("no recurring runs")
    for one in found:
        cron = one.trigger.cron_schedule.cron if one.trigger and one.trigger.cron_schedule else "no cron"
        print(f"{one.display_name}  {str(one.status or one.mode).lower()}  {cron}  {one.recurring_run_id}")


def pause(settings: Settings, name: str = NAME) -> None:
    """Pauses the recurring run ``name``; a run that it started continues."""
    _change(settings, name, lambda client, key: client.disable_recurring_run(key), "paused")


def resume(settings: Settings, name: str = NAME) -> None:
    """Resumes the recurring run ``name``."""
    _change(settings, name, lambda client, key: client.enable_recurring_run(key), "resumed")


def unschedule(settings: Settings, name: str = NAME) -> None:
    """Deletes the recurring run ``name``; a run that it started continues."""
    _change(settings, name, _delete, "deleted", missing_ok=True)


def _change(
    settings: Settings, name: str, change: Callable[[kfp.Client, str], Any], done: str, *, missing_ok: bool = False
) -> None:
    with kubeflow_errors("change the recurring run"):
        client = connect(settings)
        found = _named(client, settings, name)
        if not found and not missing_ok:
            raise ConfigError(f"there is no recurring run {name}")
        for one in found:
            change(client, one.recurring_run_id)
    for one in found:
        print(f"{done} {name}: {one.recurring_run_id}")
    if not found:
        print(f"there is no recurring run {name}")


def _delete(client: kfp.Client, key: str) -> None:
    try:
        client.delete_recurring_run(key)
    except ApiException:
        # The request may have succeeded although the response was lost.
        with suppress(ApiException):
            client.get_recurring_run(key)
            raise


def _named(client: kfp.Client, settings: Settings, name: str) -> list[Any]:
    return [one for one in _all(client, settings) if one.display_name == name]


def _all(client: kfp.Client, settings: Settings) -> list[Any]:
    """All recurring runs of the namespace."""
    found: list[Any] = []
    token = ""
    while True:
        page = client.list_recurring_runs(
            page_token=token, page_size=PAGE, namespace=settings.kubeflow_namespace or None
        )
        found += page.recurring_runs or []
        if not (token := page.next_page_token or ""):
            return found
