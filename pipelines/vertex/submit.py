"""The compiled pipeline as a run on Vertex AI."""

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

NEEDED = ("project", "region", "pipeline_root", "supabase_key_secret")
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED", "PAUSED")
POLL_S = 15
PATIENCE = 10  # failed questions in a row, each asked again for two minutes, before following a run is given up


def submit(settings: Settings, file: Path, given: Iterable[str]) -> aiplatform.PipelineJob:
    """Starts a run and says where to watch it.

    Args:
        settings: the project, region, bucket and account of the run.
        file: the compiled pipeline.
        given: parameters that differ from the pipeline's defaults, name=value each.

    Raises:
        ConfigError: a setting or the Supabase project is missing, the file is out of date, or a value cannot be.
        MfError: Google Cloud refused, in its own words.
    """
    parameters, everything = checked(settings, file, given)
    with refused("the run"):
        job = make_job(settings, file, parameters, {})
        job.submit(service_account=settings.service_account or None, network=settings.network or None)
    print(f"submitted {job.resource_name}")
    print_machines(settings, everything)
    print(f"console   {job._dashboard_uri()}")
    return job


def checked(settings: Settings, file: Path, given: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters ``given``, and all parameters of the run, once all is checked that it needs: the settings, the
    compiled file, the parameters and the bucket.

    Raises:
        ConfigError, MfError: as ``submit``.
    """
    require(settings, NEEDED)
    check_current(settings, file)
    definitions = definitions_in(file)
    parameters = parse(given, definitions, machine_check(settings))
    everything = complete(parameters, definitions)
    if settings.spot:
        machines.check_spot(everything, complete({}, definitions))
    if not everything["supabase_url"]:
        raise ConfigError(
            "supabase_url is empty: set it in pipelines/settings.toml and run `make compile`, "
            'or give it: make submit PARAMS="supabase_url=https://PROJECT.supabase.co"'
        )
    _check_bucket(settings)
    return parameters, everything


def require(settings: Settings, names: Iterable[str]) -> None:
    """Raises a ``ConfigError`` that names those of the settings ``names`` that are empty."""
    if missing := [name for name in names if not getattr(settings, name)]:
        raise ConfigError(f"the settings lack {', '.join(missing)}: set them in pipelines/settings.toml")


def make_job(
    settings: Settings, file: Path, parameters: Mapping[str, Any], labels: Mapping[str, str]
) -> aiplatform.PipelineJob:
    """A run that is not started yet, with ``labels`` beside its own."""
    aiplatform.init(project=settings.project, location=settings.region)
    own = {"git_sha": git_sha().lower(), "version": mf.__version__.replace(".", "_")}
    # enable_caching stays unset: a value would override what each step says for itself.
    return aiplatform.PipelineJob(
        display_name=NAME,
        template_path=str(file),
        pipeline_root=settings.pipeline_root,
        parameter_values=dict(parameters),
        labels={**settings.labels, **own, **labels},
    )


def print_machines(settings: Settings, parameters: Mapping[str, Any]) -> None:
    """Prints what each step asks for."""
    for step, machine in machines_of(settings).items():
        asked = f"{machine.cpu} CPU, {machine.memory}"
        if step == "train":
            gpus = f"{parameters['train_accelerator_count']:g} {parameters['train_accelerator_type']}"
            asked += f", {gpus}{', spot' if settings.spot else ''}"
        print(f"  {step:<9} {asked}")


def follow(job: aiplatform.PipelineJob) -> bool:
    """Prints every change of the state of a run and its steps until it ends, and why it failed; whether it succeeded.

    Ctrl-C ends the watching, with exit status 130, and not the run.

    Raises:
        MfError: Vertex AI does not answer any more.
    """
    seen: dict[str, str] = {}
    try:
        while seen.get("run") not in ENDED:
            if seen:
                time.sleep(POLL_S)
            now = _states(job)
            for name in now:
                if now[name] != seen.get(name):
                    print(f"{datetime.now():%H:%M:%S}  {name:<9} {now[name].lower().replace('_', ' ')}", flush=True)
            seen = now
    except KeyboardInterrupt:
        print(f"no longer watching; the run goes on: {job._dashboard_uri()}", file=sys.stderr)
        sys.exit(130)
    for reason in _reasons(job):
        print(f"error: {reason}", file=sys.stderr)
    return seen["run"] == "SUCCEEDED"


def _states(job: aiplatform.PipelineJob) -> dict[str, str]:
    """The state of every step that has one, and of the run."""
    _refresh(job)
    resource = job.gca_resource
    # The run itself is among its tasks, under its own name.
    states = {t.task_name: t.state.name for t in resource.job_detail.task_details if t.task_name != job.name}
    return {**states, "run": resource.state.name.removeprefix("PIPELINE_STATE_")}


def _refresh(job: aiplatform.PipelineJob) -> None:
    """Asks again where the run is; what passes, a run of hours must survive."""
    for failures in range(1, PATIENCE + 1):
        try:
            job._sync_gca_resource()  # type: ignore[no-untyped-call]
        except (ServerError, RetryError) as error:
            if failures == PATIENCE:
                raise MfError(f"the run goes on, but Vertex AI does not say how: {_words(error)}") from None
            time.sleep(POLL_S)
        except (GoogleAPIError, GoogleAuthError) as error:
            raise MfError(f"the run goes on, but Vertex AI does not say how: {_words(error)}") from None
        else:
            return


def _reasons(job: aiplatform.PipelineJob) -> Iterator[str]:
    resource = job.gca_resource
    for task in resource.job_detail.task_details:
        if task.error.message:
            yield f"the step {task.task_name} failed: {_words(task.error.message)}"
    if resource.error.message:
        yield f"the run failed: {_words(resource.error.message)}"


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Turns Google Cloud's refusal of ``what`` into one line."""
    try:
        yield
    except (GoogleAPIError, GoogleAuthError) as error:
        raise MfError(f"Vertex AI did not take {what}: {_words(error)}") from None


def _words(error: object) -> str:
    return " ".join(str(error).split())


def _check_bucket(settings: Settings) -> None:
    """The SDK would make a bucket that it does not find, in a place of its own choice."""
    name = settings.pipeline_root.removeprefix("gs://").split("/")[0]
    try:
        bucket = storage.Client(project=settings.project).get_bucket(name)
        next(iter(bucket.list_blobs(max_results=1)), None)
    except NotFound:
        raise ConfigError(
            f"pipeline_root: there is no bucket {name}; make it: "
            f"gcloud storage buckets create gs://{name} --location={settings.region}"
        ) from None
    except Forbidden as error:
        raise ConfigError(
            f"pipeline_root: the bucket {name} may not be read; give yourself roles/storage.legacyBucketReader on it: "
            f"{_words(error)}"
        ) from None
    except (GoogleAPIError, GoogleAuthError) as error:
        raise MfError(f"the bucket {name} could not be looked at: {_words(error)}") from None
