"""Submits runs of the compiled pipeline to open-source Kubeflow Pipelines and follows them."""

import io
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import kfp
from kfp_server_api.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError

from mf.errors import ConfigError, MfError
from mf.parameters import WITHOUT_GPU
from pipelines.compiled import check_current, definitions_in, machine_check
from pipelines.parameters import complete, parse
from pipelines.settings import Settings
from pipelines.status import FAILED, NOT_FOLLOWED, watch_hint
from pipelines.training import NAME, NO_GPU, machines_of

FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
POLL_S = 15
MAX_FAILED_POLLS = 10  # in a row
NOTICE = (
    "a step whose pod is killed starts over: only finished outputs leave a pod, so the train step's checkpoint does not"
)


class Run(NamedTuple):
    """A run on Kubeflow."""

    client: kfp.Client
    id: str


def submit(settings: Settings, file: Path, given: Iterable[str]) -> Run:
    """Starts a run, and prints its machines and its id.

    Args:
        settings: the host, namespace and account of the run.
        file: the compiled pipeline.
        given: parameters that differ from the pipeline's defaults, as name=value.

    Raises:
        ConfigError: a setting is missing, the file is out of date, or a value is invalid.
        MfError: Kubeflow returned an error or cannot be reached.
    """
    parameters, all_parameters = check_run(settings, file, given)
    with kubeflow_errors("start the run"):
        client = connect(settings)
        started = client.create_run_from_pipeline_package(
            str(file),
            arguments=parameters,
            run_name=f"{NAME} {datetime.now():%Y-%m-%d %H-%M-%S}",
            experiment_name=settings.experiment or NAME,
            namespace=settings.kubeflow_namespace or None,
            pipeline_root=settings.pipeline_root or None,
            service_account=settings.service_account or None,
        )
    print(f"submitted {started.run_id}")
    print_machines(settings, all_parameters)
    print(f"console   {client._get_url_prefix()}/#/runs/details/{started.run_id}")
    print(f"note      {NOTICE}")
    return Run(client, started.run_id)


def check_run(settings: Settings, file: Path, given: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checks the settings, the compiled file and the parameters before a run.

    Returns:
        The parameters ``given``, and all parameters of the run with their defaults.

    Raises:
        ConfigError: as ``submit``.
    """
    lacking = [name for name in ("kubernetes_secret",) if not getattr(settings, name)]
    if not settings.pinned and not settings.image_repository:
        lacking.append("image_repository")
    if lacking:
        raise ConfigError(f"the settings lack {', '.join(lacking)}: set them in pipelines/settings.toml")
    settings.check_images()
    check_current(settings, file)
    definitions, given = definitions_in(file), [*given]
    if not settings.has_gpu and (asked := [pair for pair in given if pair.partition("=")[0] in NO_GPU]):
        raise ConfigError(f"{', '.join(asked)}: found in the run, {WITHOUT_GPU}")
    parameters = parse(given, definitions, machine_check(settings))
    all_parameters = complete(parameters, definitions)
    if not all_parameters["supabase_url"]:
        raise ConfigError(
            "supabase_url is empty: set it in pipelines/settings.toml and run `make compile TARGET=kubeflow`"
        )
    file_name = all_parameters["ratings_csv"]
    if file_name and not file_name.startswith(("gs://", "s3://")):
        raise ConfigError(f"ratings_csv: expected s3://bucket/object or gs://bucket/object, found {file_name!r}")
    return parameters, all_parameters


def connect(settings: Settings) -> kfp.Client:
    """A client of the API; without a host, kfp's own search: inside the cluster, else through kubectl's settings."""
    # The client logs lines of its own.
    logging.getLogger("root").setLevel(logging.WARNING)
    options = {"namespace": settings.kubeflow_namespace} if settings.kubeflow_namespace else {}
    return kfp.Client(host=settings.kubeflow_host or None, **options)


def print_machines(settings: Settings, parameters: Mapping[str, Any]) -> None:
    """Prints the CPU, memory and GPUs of each step."""
    for step, machine in machines_of(settings).items():
        resources = f"{machine.cpu} CPU, {machine.memory}"
        if step == "train":
            count, kind = (parameters.get(name, empty) for name, empty in reversed(NO_GPU.items()))
            resources += f", {count:g} {kind}" if count else ", no GPU"
        print(f"  {step:<9} {resources}")


def find(settings: Settings, job: str) -> Run:
    """A run by its id.

    Raises:
        ConfigError: there is no such run.
        MfError: Kubeflow returned an error or cannot be reached.
    """
    name = job.rstrip("/").rpartition("/")[2]
    if not re.fullmatch(r"[0-9a-f-]{8,64}", name):
        raise ConfigError(f"job: found {job!r}, expected the id of a run as `make submit TARGET=kubeflow` prints it")
    with kubeflow_errors("find the run"):
        client = connect(settings)
        try:
            client.get_run(name)
        except ApiException as error:
            if error.status == 404:
                raise ConfigError(f"there is no run {name}") from None
            raise
    return Run(client, name)


def follow(run: Run) -> int:
    """Prints every change of state of a run and its steps until the run ends.

    Ctrl-C stops following, with exit status 130; the run continues.

    Returns:
        An exit status: 0, the run succeeded; ``FAILED``; or ``NOT_FOLLOWED``, when Kubeflow stopped answering.
    """
    states: dict[str, str] = {}
    try:
        while states.get("run") not in FINAL_STATES:
            if states:
                time.sleep(POLL_S)
            before, (states, error) = states, _states(run)
            for name, state in states.items():
                if state != before.get(name):
                    print(f"{datetime.now():%H:%M:%S}  {name:<9} {state.lower().replace('_', ' ')}", flush=True)
    except KeyboardInterrupt:
        print(f"stopped following; the run continues; {watch_hint(run.id)}", file=sys.stderr)
        sys.exit(130)
    except MfError as trouble:
        print(f"error: {trouble}; {watch_hint(run.id)}", file=sys.stderr)
        return NOT_FOLLOWED
    if states["run"] == "SUCCEEDED":
        return 0
    print(f"error: the run failed{f': {error}' if error else ''}", file=sys.stderr)
    return FAILED


def _states(run: Run) -> tuple[dict[str, str], str]:
    """State by step, for the steps that have one, and of the run; and its error.

    Raises:
        MfError: the state cannot be fetched.
    """
    for failures in range(1, MAX_FAILED_POLLS + 1):
        try:
            found = run.client.get_run(run.id)
        except (ApiException, HTTPError, OSError) as error:
            if failures == MAX_FAILED_POLLS or getattr(error, "status", 0) in (400, 403, 404):
                raise MfError(f"the run continues, but its state cannot be fetched: {words(error)}") from None
            time.sleep(POLL_S)
        else:
            break
    details = found.run_details.task_details if found.run_details else None
    states = {t.display_name: t.state for t in details or [] if t.state and t.display_name in machines_of(Settings())}
    return {**states, "run": found.state or "PENDING"}, words(found.error.message) if found.error else ""


@contextmanager
def kubeflow_errors(action: str) -> Iterator[None]:
    """Turns errors of Kubeflow and of the network into one line that says it could not ``action``; hides what the
    client prints."""
    try:
        with redirect_stdout(io.StringIO()):
            yield
    except (ApiException, HTTPError, ConfigException, TimeoutError, OSError) as error:
        raise MfError(f"Kubeflow could not {action}: {words(error)}") from None


def words(error: object) -> str:
    """An error's message in one line, without the headers that the client adds."""
    if isinstance(error, ApiException):
        return f"{error.status} {error.reason}: {' '.join(str(error.body or '').split())[:500]}"
    return " ".join(str(error).split())
