"""Submits runs of the compiled pipeline to Vertex AI and follows them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.api_core.exceptions import BadRequest, Forbidden, GoogleAPIError, NotFound
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.cloud import aiplatform, storage
from requests import RequestException

import mf
from mf.errors import ConfigError, MfError
from mf.parameters import WITHOUT_GPU
from mf.version import git_sha
from pipelines.compiled import check_current, definitions_in, target_check
from pipelines.follow import fetched, follow_run, watch_command
from pipelines.parameters import complete, parse
from pipelines.settings import Settings
from pipelines.training import NAME, machines_of
from pipelines.vertex import machines
from pipelines.vertex.grants import LOGIN, grant_bucket

REQUIRED = ("project", "region", "pipeline_root", "supabase_key_secret")


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
        try:
            job.submit(
                service_account=settings.service_account or None,
                network=settings.network or None,
                experiment=settings.experiment or None,
            )
        except (RuntimeError, ValueError) as error:  # the SDK's, about the experiment
            if not job._gca_resource.name:
                raise MfError(f"the run is not started: {_words(error)}: {_words(error.__cause__ or '')}") from None
            print(f"the run is started, but is not part of the experiment {settings.experiment}: {_words(error)}")
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
    given = [*given]
    # Another project may be given to the run.
    lacking = [] if any(pair.startswith("supabase_url=") for pair in given) else ["supabase_url"]
    settings.require([*REQUIRED, *lacking, *([] if settings.pinned else ["image_repository"])])
    settings.check_images()
    check_current(settings, file)
    parameters, all_parameters = check_parameters(settings, file, given)
    if settings.custom_job:
        machines.check_custom_job(all_parameters, complete({}, definitions_in(file)))
    if not all_parameters["supabase_url"]:
        raise ConfigError(
            "supabase_url is empty: leave the parameter out, for the address in the settings, or give "
            "supabase_url=https://PROJECT.supabase.co"
        )
    _check_bucket(settings)
    return parameters, all_parameters


def check_parameters(settings: Settings, file: Path, given: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters ``given`` to a run, and all its parameters with their defaults.

    Raises:
        ConfigError: naming every fault.
    """
    definitions = definitions_in(file)
    given = [*given]
    if not settings.has_gpu:
        # The pipeline has no such parameters. None is asked for with 0, as the pipeline is compiled.
        given = [pair for pair in given if pair.replace(" ", "") != "train_accelerator_count=0"]
        if asked := [pair.partition("=")[0] for pair in given if pair.partition("=")[0] in machines.TRAIN]:
            raise ConfigError(f"{', '.join(asked)}: found in the run, {WITHOUT_GPU}")
    parameters = parse(given, definitions, target_check(settings))
    return parameters, complete(parameters, definitions)


def make_job(
    settings: Settings, file: Path, parameters: Mapping[str, Any], labels: Mapping[str, str]
) -> aiplatform.PipelineJob:
    """A run that is not started yet, with ``labels`` in addition to the usual ones."""
    aiplatform.init(project=settings.project, location=settings.region)
    own = {"git_sha": git_sha().lower(), "version": mf.__version__.replace(".", "_")}
    # enable_caching stays unset, because a value would override the steps' own caching options.
    return aiplatform.PipelineJob(
        display_name=settings.experiment or NAME,
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
            if settings.has_gpu:
                resources += f", {parameters['train_accelerator_count']:g} {parameters['train_accelerator_type']}"
            else:
                resources += ", no GPU: about 2 s per epoch and 10 million ratings with sgd or vb, more with adam"
            resources += f" on each of {settings.train_nodes} machines" if settings.train_nodes > 1 else ""
            resources += ", spot" if settings.spot else ""
        print(f"  {step:<9} {resources}")


def find(settings: Settings, job: str) -> aiplatform.PipelineJob:
    """A run by its id, its resource name or the console's URL.

    Raises:
        ConfigError: there is no such run.
        MfError: Google Cloud returned an error.
    """
    project, region, name = settings.project, settings.region, job.partition("?")[0].rstrip("/").rpartition("/")[2]
    if place := re.search(r"projects/([^/]+)/locations/([^/]+)/pipelineJobs/", job):
        project, region = place.groups()
    elif place := re.search(r"/locations/([^/]+)/runs/", job):
        region = place[1]
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,127}", name):
        raise ConfigError(f"job: found {job!r}, expected a run as `make submit` prints it: {NAME}-20261124030000")
    if not project or not region:
        settings.require(("project", "region"))
    aiplatform.init(project=project, location=region)
    try:
        with google_errors("find the run"):
            return aiplatform.PipelineJob.get(name, project=project, location=region)
    except MfError as error:
        if isinstance(error.__context__, NotFound):
            raise ConfigError(f"there is no run {name} in {project}, {region}") from None
        raise


def follow(job: aiplatform.PipelineJob, settings: Settings) -> int:
    """Prints every change of state of a run and its steps until the run ends; returns an exit status."""
    watch = watch_command(settings, job.name)
    return follow_run(lambda: _states(job), lambda: _errors(job), job._dashboard_uri(), watch)


def _states(job: aiplatform.PipelineJob) -> dict[str, str]:
    """State by step, for the steps that have one, and of the run.

    Raises:
        MfError: it cannot be fetched.
    """
    # Tried again: an expired token (401), a time-out (408), a cancelled request (499), a lost connection.
    failures = (GoogleAPIError, GoogleAuthError, RequestException, OSError)
    fetch = job._sync_gca_resource
    fetched(fetch, failures, lambda e: isinstance(e, BadRequest | Forbidden), lambda e: isinstance(e, NotFound), _words)
    resource = job.gca_resource
    # The tasks include one for the run itself, under the run's name.
    states = {t.task_name: _name(t.state) for t in resource.job_detail.task_details if t.task_name != job.name}
    return {**states, "run": _name(resource.state).removeprefix("PIPELINE_STATE_")}


def _name(state: Any) -> str:
    """The name of a state; the SDK gives one that is newer than itself as a number."""
    return str(getattr(state, "name", f"state {state}"))


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
    except (GoogleAPIError, GoogleAuthError, RequestException) as error:
        raise MfError(f"Vertex AI could not {action}: {_words(error)}") from None


def _words(error: object) -> str:
    """An error's message in one line."""
    if isinstance(error, DefaultCredentialsError):
        return f"no readable credentials were found: {LOGIN}"
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
            f"pipeline_root: you may not see the bucket {name}: {grant_bucket(name)} ({_words(error)})"
        ) from None
    except (GoogleAPIError, GoogleAuthError, RequestException) as error:
        raise MfError(f"the bucket {name} could not be checked: {_words(error)}") from None
