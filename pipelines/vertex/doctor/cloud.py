"""Checks of the Google Cloud project."""

import base64
import binascii
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from pydantic import SecretStr

from mf.errors import ConfigError
from pipelines.doctor.finding import Check, Finding, HaltError, missing, ok, unknown
from pipelines.settings import Settings
from pipelines.vertex.doctor.google import Google
from pipelines.vertex.doctor.images import image
from pipelines.vertex.doctor.roles import BIND, account_role
from pipelines.vertex.grants import grant_bucket
from pipelines.vertex.machines import CUDA_BUILDS

# The SDK asks cloudresourcemanager for the project's number; the doctor asks iam and serviceusage.
APIS = (
    "aiplatform", "artifactregistry", "cloudbuild", "cloudresourcemanager", "iam", "secretmanager", "serviceusage",
    "storage",
)  # fmt: skip
# Permissions that the user needs, all of them in roles/aiplatform.user.
USER_PERMISSIONS = ("aiplatform.pipelineJobs.create", "aiplatform.pipelineJobs.get", "aiplatform.schedules.create")
# The quota per GPU, aiplatform.googleapis.com/custom_model_training_…_gpus.
QUOTAS = {
    "NVIDIA_TESLA_P4": "nvidia_p4",
    "NVIDIA_TESLA_P100": "nvidia_p100",
    "NVIDIA_TESLA_V100": "nvidia_v100",
    "NVIDIA_TESLA_T4": "nvidia_t4",
    "NVIDIA_L4": "nvidia_l4",
    "NVIDIA_TESLA_A100": "nvidia_a100",
    "NVIDIA_A100_80GB": "nvidia_a100_80gb",
    "NVIDIA_H100_80GB": "nvidia_h100",
}
CONTINENTS = {"EU": "europe-", "US": "us-", "ASIA": "asia-"}  # multi-regions of buckets


@dataclass
class Cloud:
    """The Google Cloud project that is checked.

    Attributes:
        settings: of the runs.
        parameters: default values of the pipeline's parameters.
        google: client of Google's APIs.
        secret_values: the secrets that could be read, by their name in the settings.
    """

    settings: Settings
    parameters: Mapping[str, Any]
    google: Google
    secret_values: dict[str, SecretStr] = field(default_factory=dict)

    @property
    def project(self) -> str:
        return self.settings.project

    @property
    def bucket(self) -> str:
        return self.settings.pipeline_root.removeprefix("gs://").split("/")[0]

    @property
    def account(self) -> str:
        return self.settings.service_account

    @property
    def secrets(self) -> list[str]:
        """Names of the secrets that the steps read."""
        names = [self.settings.supabase_key_secret, self.settings.supabase_db_url_secret]
        return [name for name in names if name]


def checks(cloud: Cloud) -> list[Check]:
    """The checks of the project, in order."""
    named: list[tuple[str, Any]] = [("credentials", credentials), ("project", project), ("APIs", apis)]
    named += [("bucket", bucket), ("service account", account), ("role on the project", role_on_project)]
    named += [("role on the bucket", role_on_bucket)]
    named += [("role on the account itself", role_on_itself)] if cloud.settings.custom_job else []
    for name in cloud.secrets:
        short = name.split("/")[3]
        named += [(f"secret {short}", functools.partial(secret, name=name))]
        named += [(f"role on the secret {short}", functools.partial(role_on_secret, name=name))]
    named += [(f"{kind} image", functools.partial(_image, kind=kind)) for kind in cloud.settings.image_kinds]
    named += [("GPU quota", quota)]
    named += [("experiment", experiment)] if cloud.settings.experiment else []
    return [(name, functools.partial(check, cloud)) for name, check in named]


def credentials(cloud: Cloud) -> Finding:
    """The user's credentials are valid."""
    return cloud.google.sign_in()


def project(cloud: Cloud) -> Finding:
    """The project exists, and the user may start runs in it."""
    if not cloud.project:
        raise HaltError("the settings have no project")
    response = cloud.google.request(
        "POST", "cloudresourcemanager.googleapis.com", f"/v1/projects/{cloud.project}:testIamPermissions",
        json={"permissions": USER_PERMISSIONS},
    )  # fmt: skip
    if response.status in (403, 404) and response.disabled_api is None:
        return missing(f"there is no project {cloud.project}, or you may not see it", "correct project in the settings")
    if response.status != 200:
        return cloud.google.error(response)
    lacking = [name for name in USER_PERMISSIONS if name not in response.body.get("permissions", [])]
    if lacking:
        return missing(
            f"you lack {', '.join(lacking)}",
            f"gcloud projects {BIND} {cloud.project} --member=user:YOU --role=roles/aiplatform.user",
        )
    return ok(f"{cloud.project}, you may start and schedule runs")


def apis(cloud: Cloud) -> Finding:
    """The APIs that the commands and the steps use are enabled."""
    response = cloud.google.request(
        "GET", "serviceusage.googleapis.com", f"/v1/projects/{cloud.project}/services:batchGet",
        params={"names": [f"projects/{cloud.project}/services/{api}.googleapis.com" for api in APIS]},
    )  # fmt: skip
    if response.status != 200:
        return cloud.google.error(response)
    states = {api.get("name", "").split("/")[-1]: api.get("state") for api in response.body.get("services", [])}
    disabled = [f"{api}.googleapis.com" for api in APIS if states.get(f"{api}.googleapis.com") != "ENABLED"]
    if disabled:
        return missing(f"{', '.join(disabled)} not enabled", cloud.google.enable_command(*disabled))
    return ok(f"{len(APIS)} enabled")


def bucket(cloud: Cloud) -> Finding:
    """The bucket exists, in the region of the runs."""
    if not cloud.bucket:
        return unknown("the settings have no pipeline_root")
    region = cloud.settings.region
    create = "gcloud storage buckets create gs://{} --project={} --location={} --uniform-bucket-level-access"
    response = cloud.google.request("GET", "storage.googleapis.com", f"/storage/v1/b/{cloud.bucket}")
    if response.status == 404:
        return missing(f"there is no gs://{cloud.bucket}", create.format(cloud.bucket, cloud.project, region))
    if response.status == 403 and response.disabled_api is None:
        return missing(
            f"gs://{cloud.bucket} belongs to somebody else, or you may not see it",
            f"name your own in pipeline_root, or: {grant_bucket(cloud.bucket)}",
        )
    if response.status != 200:
        return cloud.google.error(response)
    locations = _locations(response.body)
    if not any(place == region or region.startswith(CONTINENTS.get(place.upper(), "\0")) for place in locations):
        return missing(
            f"gs://{cloud.bucket} is in {', '.join(locations)}, and the runs are in {region}",
            f"name another in pipeline_root: {create.format('NAME', cloud.project, region)}",
        )
    return ok(f"gs://{cloud.bucket} in {', '.join(locations)}")


def _locations(bucket: Mapping[str, Any]) -> list[str]:
    """A bucket's region, the two regions of a dual-region, or its multi-region."""
    two = bucket.get("customPlacementConfig", {}).get("dataLocations", [])
    return [place.lower() for place in two or [bucket.get("location", "an unknown place")]]


def account(cloud: Cloud) -> Finding:
    """The service account exists, and the user may start runs that act as it."""
    if not cloud.account:
        return unknown(
            "the settings have none: the steps run as the project's default account, whose roles may be too many or "
            "too few",
            "create one for the steps (docs/vertex.md)",
        )
    path = f"/v1/projects/-/serviceAccounts/{quote(cloud.account, safe='@')}"
    response = cloud.google.request("GET", "iam.googleapis.com", path)
    if response.status == 404:
        name = cloud.account.split("@")[0]
        return missing(
            f"there is no {cloud.account}", f"gcloud iam service-accounts create {name} --project={cloud.project}"
        )
    response = cloud.google.request(
        "POST", "iam.googleapis.com", f"{path}:testIamPermissions", json={"permissions": ["iam.serviceAccounts.actAs"]}
    )
    if response.status != 200:
        return cloud.google.error(response)
    if not response.body.get("permissions"):
        return missing(
            f"you may not act as {cloud.account}",
            f"gcloud iam service-accounts {BIND} {cloud.account} --project={cloud.project} "
            "--member=user:YOU --role=roles/iam.serviceAccountUser",
        )
    return ok(f"{cloud.account}, your runs may act as it")


def role_on_project(cloud: Cloud) -> Finding:
    """The account may report the state and the artifacts of a run."""
    bind = f"gcloud projects {BIND} {cloud.project}"
    return _role(cloud, "roles/aiplatform.user", "projects", cloud.project, bind)


def role_on_bucket(cloud: Cloud) -> Finding:
    """The account may read and write artifacts."""
    if not cloud.bucket:
        return unknown("the settings have no pipeline_root")
    bind = f"gcloud storage buckets {BIND} gs://{cloud.bucket}"
    return _role(cloud, "roles/storage.objectUser", "buckets", cloud.bucket, bind)


def role_on_itself(cloud: Cloud) -> Finding:
    """The account may start the custom job of a spot machine or of several machines, which acts as the account."""
    bind = f"gcloud iam service-accounts {BIND} {cloud.account} --project={cloud.project}"
    return _role(cloud, "roles/iam.serviceAccountUser", "accounts", cloud.account, bind)


def role_on_secret(cloud: Cloud, name: str) -> Finding:
    """The account may read the secret."""
    _, owner, _, short, *_ = name.split("/")
    bind = f"gcloud secrets {BIND} {short} --project={owner}"
    resource = f"projects/{owner}/secrets/{short}"
    return _role(cloud, "roles/secretmanager.secretAccessor", "secrets", resource, bind, owner)


def _role(cloud: Cloud, role: str, kind: str, name: str, bind: str, project: str = "") -> Finding:
    if not cloud.account:
        return unknown("the settings have no service_account")
    return account_role(cloud.google, cloud.account, role, kind, name, project or cloud.project, bind)


def secret(cloud: Cloud, name: str) -> Finding:
    """The secret exists and is not empty. Its value is kept for the checks of Supabase and never shown."""
    _, owner, _, short, *_ = name.split("/")
    add = f'read -rs VALUE && printf %s "$VALUE" | gcloud secrets {{}} {short} --project={owner} --data-file=-'
    version = name if "/versions/" in name else f"{name}/versions/latest"
    response = cloud.google.request("GET", "secretmanager.googleapis.com", f"/v1/{version}:access")
    if response.status == 404:
        return missing(f"there is no {name}", add.format("create") + " (without a version: versions add)")
    if response.status == 400:
        return missing(f"{name} is disabled or destroyed", add.format("versions add"))
    if response.status == 403 and response.disabled_api is None:
        return unknown(f"you may not read {name}, which only the steps need")
    if response.status != 200:
        return cloud.google.error(response)
    try:
        value = base64.b64decode(response.body.get("payload", {}).get("data", "")).decode(errors="replace").strip()
    except binascii.Error:
        value = ""
    if not value:
        return missing(f"{name} is empty", add.format("versions add"))
    cloud.secret_values[name] = SecretStr(value)
    return ok(f"{name} can be read")


def _image(cloud: Cloud, kind: str) -> Finding:
    try:
        cloud.settings.check_images()
    except ConfigError as error:
        return missing(str(error), "docs/vertex.md")
    finding = image(cloud.google, cloud.settings.image(kind))
    if kind == "gpu" and finding.state == "ok":
        build = CUDA_BUILDS[cloud.settings.cuda]
        # No API tells which driver the machines have.
        return ok(f"{finding.message}; it needs the NVIDIA driver {build.driver} or newer, which only a run can show")
    return finding


def experiment(cloud: Cloud) -> Finding:
    """The experiment of the runs exists; the first run creates it."""
    region, name = cloud.settings.region, cloud.settings.experiment
    response = cloud.google.request(
        "GET", f"{region}-aiplatform.googleapis.com",
        f"/v1/projects/{cloud.project}/locations/{region}/metadataStores/default/contexts/{name}",
    )  # fmt: skip
    if response.status == 404:
        return ok(f"there is no {name} yet; the first run creates it")
    if response.status != 200:
        return cloud.google.error(response)
    kind = response.body.get("schemaTitle", "")
    if kind != "system.Experiment":
        return missing(
            f"{name} exists and is no experiment" + (f" but a {kind}" if kind else ""), "choose another name"
        )
    return ok(name)


def quota(cloud: Cloud) -> Finding:
    """The project's quota in the region covers the GPUs of the train step."""
    gpu, count = cloud.parameters["train_accelerator_type"], int(cloud.parameters["train_accelerator_count"])
    region, spot = cloud.settings.region, cloud.settings.spot
    count *= cloud.settings.train_nodes
    if not count:
        return ok("the train step asks for no GPU")
    if gpu not in QUOTAS:
        return unknown(f"the name of the quota for {gpu} is not known here", "look at IAM & Admin → Quotas")
    metric = f"aiplatform.googleapis.com/custom_model_training_{'preemptible_' * spot}{QUOTAS[gpu]}_gpus"
    path = f"/v1beta1/projects/{cloud.project}/services/aiplatform.googleapis.com/consumerQuotaMetrics/"
    response = cloud.google.request("GET", "serviceusage.googleapis.com", path + quote(metric, safe=""))
    if response.status != 200:
        return cloud.google.error(response)
    limit = _limit(response.body, region)
    if limit is None:
        return unknown(f"the quota {metric} has no limit for {region}", "look at IAM & Admin → Quotas")
    if 0 <= limit < count:
        return missing(
            f"{limit} of {gpu} in {region}, and the train step asks for {count}",
            f"ask for more of {metric} in {region} under IAM & Admin → Quotas, or choose another GPU or region",
        )
    return ok(f"{'no limit' if limit < 0 else limit} of {gpu} in {region}" + " on spot" * spot)


def _limit(metric: Mapping[str, Any], region: str) -> int | None:
    """The limit of the region, else the one of every region; -1: unlimited."""
    buckets = [bucket for limit in metric.get("consumerQuotaLimits", []) for bucket in limit.get("quotaBuckets", [])]
    limits = {
        bucket.get("dimensions", {}).get("region", ""): int(bucket.get("effectiveLimit", 0)) for bucket in buckets
    }
    return limits.get(region, limits.get(""))
