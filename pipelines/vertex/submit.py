"""Submits runs of the compiled pipeline to Vertex AI and follows them."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, RetryError, ServerError
from google.auth.exceptions import GoogleAuthError
from google.cloud import aiplatform, storage  # type: ignore[attr-defined]

import mf
from mf.errors import ConfigError, MfError
from mf.version import git_sha
from pipelines.compiled import check_current, definitions_in, machine_check
from pipelines.parameters import complete, parse
from pipelines.settings import Settings
from pipelines.training import NAME, machines_of
from pipelines.vertex import machines

REQUIRED = ("project", "region", "pipeline_root", "supabase_key_secret")
FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELLED", "PAUSED")
POLL_S = 15
MAX_FAILED_POLLS = 10  # in a row; the SDK retries each for two minutes


def submit(settings: Settings, file: Path, given: Iterable[str]) -> aiplatform.PipelineJob:
    """Starts a run, and prints its machines and the console's URL.

    Args:
        settings: the project, region, bucket and account of the run.
        file: the compiled pipeline.
        given: parameters that differ from the pipeline's defaults, as name=value.

    Raises:
        ConfigError: a setting or the Supabase project is missing, the file is out of date, or a value is invalid.
        MfError: Google Cloud returned an error; the message is Google's.
    """
    parameters, all_parameters = check_run(settings, file, given)
    with google_errors("start the run"):
        job = make_job(settings, file, parameters, {})
        job.submit(service_account=settings.service_account or None, network=settings.network or None)
    print(f"submitted {job.resource_name}")
    print_machines(settings, all_parameters)
    print(f"console   {job._dashboard_uri()}")
    return job


def check_run(settings: Settings, file: Path, given: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checks the settings, the compiled file, the parameters and the bucket before a run.

    Returns:
        The parameters ``given``, and all parameters of the run with their defaults.

    Raises:
        ConfigError, MfError: as ``submit``.
    """
    require(settings, REQUIRED)
    check_current(settings, file)
    definitions = definitions_in(file)
    parameters = parse(given, definitions, machine_check(settings))
    all_parameters = complete(parameters, definitions)
    if settings.spot:
        machines.check_spot(all_parameters, complete({}, definitions))
    if not all_parameters["supabase_url"]:
        raise ConfigError(
            "supabase_url is empty: set it in pipelines/settings.toml and run `make compile`, "
            'or pass it: make submit PARAMS="supabase_url=https://PROJECT.supabase.co"'
        )
    _check_bucket(settings)
    return parameters, all_parameters


def require(settings: Settings, names: Iterable[str]) -> None:
    """Raises a ``ConfigError`` that names the empty ones among the settings ``names``."""
    if missing := [name for name in names if not getattr(settings, name)]:
        raise ConfigError(f"the settings lack {', '.join(missing)}: set them in pipelines/settings.toml")


def make_job(
    settings: Settings, file: Path, parameters: Mapping[str, Any], labels: Mapping[str, str]
) -> aiplatform.PipelineJob:
    """A run that is not started yet, with ``labels`` in addition to the usual ones."""
    aiplatform.init(project=settings.project, location=settings.region)
    own = {"git_sha": git_sha().lower(), "version": mf.__version__.replace(".", "_")}
    # enable_caching stays unset, because a value would override the steps' own caching options.
    return aiplatform.PipelineJob(
        display_name=NAME,
        template_path=str(file),
        pipeline_root=settings.pipeline_root,
        parameter_values=dict(parameters),
        labels={**settings.labels, **own, **labels},
    )


def print_machines(settings: Settings, parameters: Mapping[str, Any]) -> None:
    """Prints the CPU, memory and GPUs of each step."""
    for step, machine in machines_of(settings).items():
        resources = f"{machine.cpu} CPU, {machine.memory}"
        if step == "train":
            gpus = f"{parameters['train_accelerator_count']:g} {parameters['train_accelerator_type']}"
            resources += f", {gpus}{', spot' if settings.spot else ''}"
        print(f"  {step:<9} {resources}")


def follow(job: aiplatform.PipelineJob) -> bool:
    """Prints every change of state of a run and its steps until the run ends, and the errors of a failed run.

    Ctrl-C stops following, with exit status 130; the run continues.

    Returns:
        Whether the run succeeded.

    Raises:
        MfError: Vertex AI stopped answering.
    """
    states: dict[str, str] = {}
    try:
        while states.get("run") not in FINAL_STATES:
            if states:
                time.sleep(POLL_S)
            before, states = states, _states(job)
            for name, state in states.items():
                if state != before.get(name):
                    print(f"{datetime.now():%H:%M:%S}  {name:<9} {state.lower().replace('_', ' ')}", flush=True)
    except KeyboardInterrupt:
        print(f"stopped following; the run continues: {job._dashboard_uri()}", file=sys.stderr)
        sys.exit(130)
    for error in _errors(job):
        print(f"error: {error}", file=sys.stderr)
    return states["run"] == "SUCCEEDED"


def _states(job: aiplatform.PipelineJob) -> dict[str, str]:
    """State by step, for the steps that have one, and of the run."""
    _refresh(job)
    resource = job.gca_resource
    # The tasks include one for the run itself, under the run's name.
    states = {t.task_name: t.state.name for t in resource.job_detail.task_details if t.task_name != job.name}
    return {**states, "run": resource.state.name.removeprefix("PIPELINE_STATE_")}


def _refresh(job: aiplatform.PipelineJob) -> None:
    """Fetches the run's state, and retries so that following a run of hours survives an outage."""
    for failures in range(1, MAX_FAILED_POLLS + 1):
        try:
            job._sync_gca_resource()  # type: ignore[no-untyped-call]
        except (ServerError, RetryError) as error:
            if failures == MAX_FAILED_POLLS:
                raise MfError(f"the run continues, but its state cannot be fetched: {_words(error)}") from None
            time.sleep(POLL_S)
        except (GoogleAPIError, GoogleAuthError) as error:
            raise MfError(f"the run continues, but its state cannot be fetched: {_words(error)}") from None
        else:
            return


def _errors(job: aiplatform.PipelineJob) -> Iterator[str]:
    resource = job.gca_resource
    for task in resource.job_detail.task_details:
        if task.error.message:
            yield f"the step {task.task_name} failed: {_words(task.error.message)}"
    if resource.error.message:
        yield f"the run failed: {_words(resource.error.message)}"


@contextmanager
def google_errors(action: str) -> Iterator[None]:
    """Turns errors of Google Cloud into one line that says it could not ``action``."""
    try:
        yield
    except (GoogleAPIError, GoogleAuthError) as error:
        raise MfError(f"Vertex AI could not {action}: {_words(error)}") from None


def _words(error: object) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())


def _check_bucket(settings: Settings) -> None:
    """Checks that the bucket exists, because the SDK would create it, in a location of its own choice."""
    name = settings.pipeline_root.removeprefix("gs://").split("/")[0]
    try:
        bucket = storage.Client(project=settings.project).get_bucket(name)
        next(iter(bucket.list_blobs(max_results=1)), None)
    except NotFound:
        raise ConfigError(
            f"pipeline_root: there is no bucket {name}; create it: "
            f"gcloud storage buckets create gs://{name} --location={settings.region}"
        ) from None
    except Forbidden as error:
        raise ConfigError(
            f"pipeline_root: you may not read the bucket {name}; give yourself roles/storage.legacyBucketReader on it: "
            f"{_words(error)}"
        ) from None
    except (GoogleAPIError, GoogleAuthError) as error:
        raise MfError(f"the bucket {name} could not be checked: {_words(error)}") from None
