"""Submits runs of the compiled pipeline to open-source Kubeflow Pipelines and follows them."""

import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import kfp
import kfp_server_api
from kfp_server_api.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError, MaxRetryError

from mf.errors import ConfigError, MfError
from mf.parameters import WITHOUT_GPU
from pipelines.compiled import check_current, definitions_in, target_check
from pipelines.follow import fetched, follow_run, watch_command
from pipelines.parameters import complete, parse
from pipelines.settings import Settings
from pipelines.training import NAME, NO_GPU, STEPS, machines_of

REQUIRED = ("supabase_url", "kubernetes_secret")
# What kfp.Client raises when the API cannot be reached or refuses.
FAILURES = (ApiException, HTTPError, ConfigException, TimeoutError, OSError)
NO_API = "the answer is not that of Kubeflow Pipelines, but perhaps that of a login page"
PORT_FORWARD = "kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80"
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
        run = Run(client, started.run_id)
    print(f"submitted {run.id}")
    print_machines(settings, all_parameters)
    print(f"console   {_console(run)}")
    print(f"note      {NOTICE}")
    return run


def check_run(settings: Settings, file: Path, given: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checks the settings, the compiled file and the parameters before a run.

    Returns:
        The parameters ``given``, and all parameters of the run with their defaults.

    Raises:
        ConfigError: as ``submit``.
    """
    given = [*given]
    # Another project may be given to the run.
    names = [name for name in REQUIRED if not any(pair.startswith(f"{name}=") for pair in given)]
    settings.require([*names, *([] if settings.pinned else ["image_repository"])])
    settings.check_images()
    check_current(settings, file)
    definitions = definitions_in(file)
    if not settings.has_gpu and (asked := [pair for pair in given if pair.partition("=")[0] in NO_GPU]):
        raise ConfigError(f"{', '.join(asked)}: found in the run, {WITHOUT_GPU}")
    parameters = parse(given, definitions, target_check(settings))
    all_parameters = complete(parameters, definitions)
    if not all_parameters["supabase_url"]:
        raise ConfigError(
            "supabase_url is empty: leave the parameter out, for the address in the settings, or give "
            "supabase_url=https://PROJECT.supabase.co"
        )
    return parameters, all_parameters


class Client(kfp.Client):  # type: ignore[misc]  # kfp has no types
    """kfp's client, which makes sure that the API answers."""

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
        """The state of the API, asked for once: kfp asks five times, and takes a login page for an answer.

        Raises:
            ConfigError: no address is known.
            ApiException, HTTPError: it does not answer, or something else does.
        """
        if not self._uihost and self._existing_config.host == kfp_server_api.Configuration().host:
            raise ConfigError(
                "kubeflow_host is empty, and neither a cluster around this process nor kubectl's settings name one: "
                f"set it in the settings, for example to http://localhost:8080 with {PORT_FORWARD}"
            )
        health = self._healthz_api.healthz_service_get_healthz()
        try:
            json.loads(self._healthz_api.api_client.last_response.data).items()
        except (ValueError, AttributeError):
            raise HTTPError(NO_API) from None
        return health


def connect(settings: Settings) -> Client:
    """A client of the API, which has answered.

    Without a host kfp looks for it: inside the cluster, else through kubectl's settings.

    Raises:
        ConfigError: no address is known, or the namespace is not.
        MfError: the API does not answer.
    """
    with kubeflow_errors("be reached"):
        # Its argument namespace would be that of the service, not that of the runs.
        client = Client(host=settings.kubeflow_host or None)
        if client.get_kfp_healthz().multi_user and not (settings.kubeflow_namespace or client.get_user_namespace()):
            raise ConfigError(
                f"kubeflow_namespace is empty in {settings.file}, and this Kubeflow has several users: set it to yours"
            )
    return client


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


def follow(run: Run, settings: Settings) -> int:
    """Prints every change of state of a run and its steps until the run ends; returns an exit status."""
    ended: list[Any] = []  # the run as it was fetched last

    def states() -> dict[str, str]:
        ended[:] = [fetched(lambda: _get(run), FAILURES, _has_status(400, 403), _has_status(404), words)]
        details = ended[0].run_details.task_details if ended[0].run_details else None
        steps = {t.display_name: t.state for t in details or [] if t.state and t.display_name in STEPS}
        return {**steps, "run": ended[0].state or "PENDING"}

    def errors() -> list[str]:
        error = ended[0].error
        return [f"the run {ended[0].state.lower()}" + (f": {words(error.message)}" if error and error.message else "")]

    return follow_run(states, errors, _console(run), watch_command(settings, run.id))


def _get(run: Run) -> Any:
    found = run.client.get_run(run.id)
    if not found.run_id:
        raise HTTPError(NO_API)
    return found


def _has_status(*codes: int) -> Callable[[Exception], bool]:
    return lambda error: getattr(error, "status", 0) in codes


def _console(run: Run) -> str:
    return f"{run.client._get_url_prefix()}/#/runs/details/{run.id}"


@contextmanager
def kubeflow_errors(action: str) -> Iterator[None]:
    """Turns errors of Kubeflow and of the network into one line that says it could not ``action``; hides what the
    client prints, warns of and logs."""
    logged = logging.root.manager.disable
    logging.disable()
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    except FAILURES as error:
        raise MfError(f"Kubeflow could not {action}: {words(error)}") from None
    finally:
        logging.disable(logged)


def words(error: object) -> str:
    """An error's message in one line, without the headers that the client adds."""
    if isinstance(error, ApiException) and error.status:
        body = str(error.body or "")
        try:
            found = json.loads(body)
            body = str(found.get("error_description") or found.get("message") or found.get("error") or body)
        except (ValueError, AttributeError):
            pass
        return f"{error.status} {error.reason}: {' '.join(body.split())[:500]}".removesuffix(": ")
    if isinstance(error, ApiException | MaxRetryError) and error.reason:  # TLS and the network
        error = error.reason
    return " ".join(str(error).split())
