"""``make doctor`` for open-source Kubeflow Pipelines.

It checks this machine, the settings, the API, the secret and the nodes of the cluster, and Supabase.
"""

import base64
import binascii
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import kubernetes
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from pydantic import SecretStr
from urllib3.exceptions import HTTPError

from mf.errors import ConfigError, MfError
from pipelines.doctor import machine, settings, supabase
from pipelines.doctor.finding import Check, Finding, missing, ok, run_checks, unknown
from pipelines.kubeflow.pods import NAMES, S3_NAMES
from pipelines.kubeflow.submit import PORT_FORWARD, REQUIRED, connect, kubeflow_errors
from pipelines.settings import Settings

PAGE = "docs/kubeflow.md"
TIMEOUT_S = 8.0
ONLY_A_RUN = "only a run can show"


@dataclass
class Cluster:
    """The cluster that is checked.

    Attributes:
        settings: of the runs.
        parameters: default values of the pipeline's parameters.
        api: client of Kubernetes, by kubectl's settings; ``None`` without any.
        online: the cluster has answered.
        secret_values: entries of the Kubernetes secret, if it could be read.
    """

    settings: Settings
    parameters: Mapping[str, Any]
    api: Any
    online: bool = False
    secret_values: dict[str, SecretStr] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.settings.kubeflow_namespace or "kubeflow"


def examine(file: Path, environ: Mapping[str, str]) -> bool:
    """Prints one line per check, ``ok``, ``missing`` or ``unknown``; true when nothing is missing.

    Args:
        file: the settings.
        environ: its ``MF_…`` variables override the settings; its ``SUPABASE_URL``, ``SUPABASE_KEY`` and
            ``SUPABASE_DB_URL`` override the project and the entries of the secret.
    """
    given, parameters, finding = settings.read(file, environ, "kubeflow", REQUIRED, PAGE)
    all_there = run_checks([*machine.checks(), ("kfp-kubernetes", package), ("settings", lambda: finding)])
    cluster = Cluster(given, parameters, _kubernetes())
    all_there &= run_checks(checks(cluster))
    values = cluster.secret_values
    return all_there & supabase.examine(
        given.supabase_url, values.get("SUPABASE_KEY"), values.get("SUPABASE_DB_URL"), environ, parameters,
        online=cluster.online,
    )  # fmt: skip


def checks(cluster: Cluster) -> list[Check]:
    """The checks of the cluster, in order."""
    named = [("Kubeflow Pipelines", reachable), ("pipeline root", root)]
    named += [("service account", account)] if cluster.settings.service_account else []
    named += [("secret", secret), ("images", images), ("GPU", gpu)]
    return [(name, functools.partial(check, cluster)) for name, check in named]


def package() -> Finding:
    """The package that compiles what the pods get."""
    try:
        return ok(metadata.version("kfp-kubernetes"))
    except metadata.PackageNotFoundError:
        return missing("it is not installed", "make install")


def reachable(cluster: Cluster) -> Finding:
    """The API answers, and knows the namespace and the experiment."""
    name = cluster.settings.experiment
    try:
        client = connect(cluster.settings)
        cluster.online = True
        with kubeflow_errors("list the experiments"):
            found = client.list_experiments(namespace=cluster.settings.kubeflow_namespace or None, page_size=100)
    except ConfigError as error:
        return missing(str(error), PAGE)
    except MfError as error:
        return missing(str(error), f"start {PORT_FORWARD}, or correct kubeflow_host ({PAGE})")
    names = [one.display_name for one in found.experiments or []]
    new = f"; there may be no experiment {name} yet: the first run creates it" if name and name not in names else ""
    return ok(f"{cluster.settings.kubeflow_host or client._existing_config.host} answers{new}")


def root(cluster: Cluster) -> Finding:
    """Where artifacts are kept."""
    place = cluster.settings.pipeline_root or "the cluster's own"
    return ok(f"{place}; whether the pods may write there, {ONLY_A_RUN}")


def account(cluster: Cluster) -> Finding:
    """The Kubernetes account of the pods exists."""
    name = cluster.settings.service_account
    found = _read(cluster, "read_namespaced_service_account", name, cluster.namespace)
    if isinstance(found, Finding):
        return found
    if found is None:
        fix = f"kubectl -n {cluster.namespace} create serviceaccount {name}, with the roles that a run needs"
        return missing(f"there is no {name} in the namespace {cluster.namespace}", fix)
    return ok(name)


def secret(cluster: Cluster) -> Finding:
    """The secret has the entries that the pods get. Their values are kept for the checks of Supabase, not shown."""
    name = cluster.settings.kubernetes_secret
    if not name:
        return unknown("the settings have no kubernetes_secret")
    found = _read(cluster, "read_namespaced_secret", name, cluster.namespace)
    if isinstance(found, Finding):
        return found
    create = f"kubectl -n {cluster.namespace} create secret generic {name} --from-file=SUPABASE_KEY=/dev/stdin"
    create = f'read -rs KEY && printf %s "$KEY" | {create}'
    if found is None:
        return missing(f"there is no {name} in the namespace {cluster.namespace}", create)
    values = {entry: _decoded(text) for entry, text in (found.data or {}).items()}
    empty = [entry for entry in NAMES if not values.get(entry) and (entry in values or NAMES[entry])]
    if empty:
        return missing(
            f"{name} has no {' and no '.join(empty)}",
            f"kubectl -n {cluster.namespace} delete secret {name} && {create}",
        )
    cluster.secret_values = {entry: SecretStr(value) for entry, value in values.items()}
    used = [entry for entry in (*NAMES, *S3_NAMES) if entry in values]
    others = [entry for entry in values if entry not in used]
    return ok(f"{name} has {', '.join(used)}" + (f"; no step gets {', '.join(others)}" if others else ""))


def images(cluster: Cluster) -> Finding:
    """The images have names of a registry."""
    try:
        cluster.settings.check_images()
    except ConfigError as error:
        return missing(str(error), PAGE)
    names = [cluster.settings.image(kind) for kind in cluster.settings.image_kinds]
    return ok(f"{', '.join(names)}; whether the cluster may pull them, {ONLY_A_RUN}")


def gpu(cluster: Cluster) -> Finding:
    """A node has the GPUs of the train step."""
    name, count = cluster.parameters["train_accelerator_type"], int(cluster.parameters["train_accelerator_count"])
    if not cluster.settings.has_gpu or not count:
        return ok("the train step asks for no GPU")
    found = _read(cluster, "list_node")
    if found is None or isinstance(found, Finding):
        return found or unknown("the cluster lists no nodes")
    has = [{k: int(v) for k, v in (node.status.allocatable or {}).items() if v.isdigit()} for node in found.items]
    fitting = [node for node in has if node.get(name, 0) >= count]
    if fitting:
        return ok(f"{len(fitting)} of {len(has)} nodes have {count} {name} or more")
    others = sorted({kind for node in has for kind in node if "/" in kind and ("gpu" in kind or "mig" in kind)})
    return unknown(
        f"none of {len(has)} nodes has {count} {name} now"
        + (f", but there is {', '.join(others)}" if others else "")
        + ": the train step's pod waits for a node that has",
        "set train_accelerator_type and train_accelerator_count under [parameters] (0: no GPU), or install NVIDIA's "
        "device plugin",
    )


def _kubernetes() -> Any:
    """A client of Kubernetes by kubectl's settings, or by those inside a cluster; ``None`` without either."""
    config = kubernetes.client.Configuration()
    config.retries = False
    for load in (kubernetes.config.load_incluster_config, kubernetes.config.load_kube_config):
        try:
            load(client_configuration=config)
        except (ConfigException, OSError, ValueError, TypeError):
            continue
        return kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(config))
    return None


def _read(cluster: Cluster, method: str, *names: str) -> Any:
    """What Kubernetes says of an object; ``None`` when there is none, a finding when it cannot be asked."""
    if cluster.api is None:
        return unknown("kubectl has no settings here, so the cluster cannot be looked at")
    try:
        return getattr(cluster.api, method)(*names, _request_timeout=TIMEOUT_S)
    except ApiException as error:
        if error.status == 404:
            return None
        return unknown(f"Kubernetes answered {error.status} {error.reason}")
    except (HTTPError, OSError):
        return unknown("Kubernetes does not answer")


def _decoded(text: str | None) -> str:
    try:
        return base64.b64decode(text or "").decode(errors="replace").strip()
    except binascii.Error:
        return ""
