"""What is needed in the Google Cloud project that the settings name."""

import base64
import binascii
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from pydantic import SecretStr

from pipelines.settings import Settings
from pipelines.vertex.doctor.finding import Check, Finding, HaltError, missing, ok, unknown
from pipelines.vertex.doctor.google import Google
from pipelines.vertex.doctor.images import image

# cloudresourcemanager: the SDK asks it for the project's number; iam and serviceusage: what is asked here.
APIS = (
    "aiplatform", "artifactregistry", "cloudbuild", "cloudresourcemanager", "iam", "secretmanager", "serviceusage",
    "storage",
)  # fmt: skip
# What the person needs, all of it in roles/aiplatform.user.
OWN_PERMISSIONS = ("aiplatform.pipelineJobs.create", "aiplatform.pipelineJobs.get", "aiplatform.schedules.create")
# What a role of the account is for, and the roles that hold as much.
WIDER = {
    "roles/aiplatform.user": {"roles/aiplatform.admin", "roles/editor", "roles/owner"},
    "roles/storage.objectUser": {"roles/storage.objectAdmin", "roles/storage.admin"},
    "roles/secretmanager.secretAccessor": {"roles/secretmanager.admin", "roles/owner"},
    "roles/iam.serviceAccountUser": {"roles/editor", "roles/owner"},
}
# The quota that counts a GPU, aiplatform.googleapis.com/custom_model_training_…_gpus.
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
BIND = "add-iam-policy-binding"
CONTINENTS = {"EU": "europe-", "US": "us-", "ASIA": "asia-"}  # multi-regions of buckets


@dataclass
class Cloud:
    """The project under examination.

    Attributes:
        parameters: what those of the pipeline are when a run does not say.
        payloads: of the secrets that were read, by name.
    """

    settings: Settings
    parameters: Mapping[str, Any]
    google: Google
    payloads: dict[str, SecretStr] = field(default_factory=dict)

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
        """The secrets that the steps read, as the settings name them."""
        names = [self.settings.supabase_key_secret, self.settings.supabase_db_url_secret]
        return [name for name in names if name]


def checks(cloud: Cloud) -> list[Check]:
    """The checks of the project, in their order."""
    on: list[tuple[str, Any]] = [("credentials", credentials), ("project", project), ("APIs", apis)]
    on += [("bucket", bucket), ("service account", account), ("its role on the project", role_on_project)]
    on += [("its role on the bucket", role_on_bucket)]
    on += [("its role on itself", role_on_itself)] if cloud.settings.spot else []
    for name in cloud.secrets:
        short = name.split("/")[3]
        on += [(f"secret {short}", functools.partial(secret, name=name))]
        on += [(f"its role on the secret {short}", functools.partial(role_on_secret, name=name))]
    on += [(f"{kind} image", functools.partial(_image, kind=kind)) for kind in ("cpu", "gpu")]
    on += [("GPU quota", quota)]
    return [(name, functools.partial(look, cloud)) for name, look in on]


def credentials(cloud: Cloud) -> Finding:
    """Whose they are, and whether they are still valid."""
    return cloud.google.sign_in()


def project(cloud: Cloud) -> Finding:
    """It is there, and the person may start runs in it."""
    if not cloud.project:
        raise HaltError("the settings name no project")
    answer = cloud.google.ask(
        "POST", "cloudresourcemanager.googleapis.com", f"/v1/projects/{cloud.project}:testIamPermissions",
        json={"permissions": OWN_PERMISSIONS},
    )  # fmt: skip
    if answer.disabled is not None:
        return cloud.google.refused(answer)
    if answer.status in (403, 404):
        return missing(f"there is no project {cloud.project}, or you may not see it", "correct project in the settings")
    if answer.status != 200:
        return cloud.google.refused(answer)
    lacking = [name for name in OWN_PERMISSIONS if name not in answer.body.get("permissions", [])]
    if lacking:
        return missing(
            f"you lack {', '.join(lacking)}",
            f"gcloud projects {BIND} {cloud.project} --member=user:YOU --role=roles/aiplatform.user",
        )
    return ok(f"{cloud.project}, where you may start and schedule runs")


def apis(cloud: Cloud) -> Finding:
    """All that the commands and the steps use are enabled."""
    answer = cloud.google.ask(
        "GET", "serviceusage.googleapis.com", f"/v1/projects/{cloud.project}/services:batchGet",
        params={"names": [f"projects/{cloud.project}/services/{api}.googleapis.com" for api in APIS]},
    )  # fmt: skip
    if answer.status != 200:
        return cloud.google.refused(answer)
    states = {one.get("name", "").split("/")[-1]: one.get("state") for one in answer.body.get("services", [])}
    off = [f"{api}.googleapis.com" for api in APIS if states.get(f"{api}.googleapis.com") != "ENABLED"]
    if off:
        return missing(f"{', '.join(off)} not enabled", cloud.google.enable(*off))
    return ok(f"{len(APIS)} enabled")


def bucket(cloud: Cloud) -> Finding:
    """It is there, and where the runs are."""
    if not cloud.bucket:
        return unknown("the settings have no pipeline_root")
    region = cloud.settings.region
    make = "gcloud storage buckets create gs://{} --project={} --location={} --uniform-bucket-level-access"
    answer = cloud.google.ask("GET", "storage.googleapis.com", f"/storage/v1/b/{cloud.bucket}")
    if answer.status == 404:
        return missing(f"there is no gs://{cloud.bucket}", make.format(cloud.bucket, cloud.project, region))
    if answer.status == 403 and answer.disabled is None:
        return missing(
            f"gs://{cloud.bucket} is another's, or you may not see it",
            f"name your own in pipeline_root, or: gcloud storage buckets {BIND} gs://{cloud.bucket} "
            "--member=user:YOU --role=roles/storage.admin",
        )
    if answer.status != 200:
        return cloud.google.refused(answer)
    places = _places(answer.body)
    if not any(place == region or region.startswith(CONTINENTS.get(place.upper(), "\0")) for place in places):
        return missing(
            f"gs://{cloud.bucket} is in {', '.join(places)}, and the runs are in {region}",
            f"name another in pipeline_root: {make.format('NAME', cloud.project, region)}",
        )
    return ok(f"gs://{cloud.bucket} in {', '.join(places)}")


def _places(found: Mapping[str, Any]) -> list[str]:
    """A bucket's region, its two of them, or its continent."""
    two = found.get("customPlacementConfig", {}).get("dataLocations", [])
    return [place.lower() for place in two or [found.get("location", "an unknown place")]]


def account(cloud: Cloud) -> Finding:
    """It is there, and the person may start runs that act as it."""
    if not cloud.account:
        return unknown(
            "the settings name none: the steps run as the project's default one, which may do too much or too little",
            "give it one of its own (docs/vertex.md)",
        )
    path = f"/v1/projects/-/serviceAccounts/{quote(cloud.account, safe='@')}"
    found = cloud.google.ask("GET", "iam.googleapis.com", path)
    if found.status == 404:
        name = cloud.account.split("@")[0]
        return missing(
            f"there is no {cloud.account}", f"gcloud iam service-accounts create {name} --project={cloud.project}"
        )
    answer = cloud.google.ask(
        "POST", "iam.googleapis.com", f"{path}:testIamPermissions", json={"permissions": ["iam.serviceAccounts.actAs"]}
    )
    if answer.status != 200:
        return cloud.google.refused(answer)
    if not answer.body.get("permissions"):
        return missing(
            f"you may not act as {cloud.account}",
            f"gcloud iam service-accounts {BIND} {cloud.account} --project={cloud.project} "
            "--member=user:YOU --role=roles/iam.serviceAccountUser",
        )
    return ok(f"{cloud.account}, which your runs may act as")


def role_on_project(cloud: Cloud) -> Finding:
    """The account may report what a run does."""
    return _role(cloud, "roles/aiplatform.user", "projects", cloud.project, f"gcloud projects {BIND} {cloud.project}")


def role_on_bucket(cloud: Cloud) -> Finding:
    """The account may read and write artifacts."""
    if not cloud.bucket:
        return unknown("the settings have no pipeline_root")
    bind = f"gcloud storage buckets {BIND} gs://{cloud.bucket}"
    return _role(cloud, "roles/storage.objectUser", "buckets", cloud.bucket, bind)


def role_on_itself(cloud: Cloud) -> Finding:
    """The account may start the job on a spot machine, which acts as it."""
    bind = f"gcloud iam service-accounts {BIND} {cloud.account} --project={cloud.project}"
    return _role(cloud, "roles/iam.serviceAccountUser", "accounts", cloud.account, bind)


def role_on_secret(cloud: Cloud, name: str) -> Finding:
    """The account may read the secret."""
    _, owner, _, short, *_ = name.split("/")
    bind = f"gcloud secrets {BIND} {short} --project={owner}"
    resource = f"projects/{owner}/secrets/{short}"
    return _role(cloud, "roles/secretmanager.secretAccessor", "secrets", resource, bind, owner)


def _role(cloud: Cloud, role: str, kind: str, name: str, bind: str, project: str = "") -> Finding:
    """Whether the account has ``role``, or a wider one, on the resource or on the project that it is in."""
    if not cloud.account:
        return unknown("the settings name no service_account")
    member = f"serviceAccount:{cloud.account}"
    enough = {role, *WIDER[role]}
    policies = [_policy(cloud, kind, name)]
    if kind != "projects":
        policies.append(_policy(cloud, "projects", project or cloud.project))
    seen = [policy for policy in policies if policy is not None]
    bindings = [one for policy in seen for one in policy if member in one.get("members", [])]
    plain = {one.get("role", "") for one in bindings if not one.get("condition")}
    if held := sorted(enough & plain):
        return ok(held[0])
    if any(one.get("condition") or "/roles/" in one.get("role", "") for one in bindings):
        return unknown(f"it has a role of your own making, or one under a condition; {role} is what it needs")
    if len(seen) < len(policies):
        return unknown(f"you may not see who has it; {role} is what it needs")
    return missing(f"it lacks {role}", f"{bind} --member={member} --role={role}")


def _policy(cloud: Cloud, kind: str, name: str) -> list[dict[str, Any]] | None:
    """Who has which role; ``None`` for who may not look."""
    requests: dict[str, tuple[str, str, str, dict[str, Any]]] = {
        "projects": ("POST", "cloudresourcemanager", f"/v1/projects/{name}:getIamPolicy",
                     {"json": {"options": {"requestedPolicyVersion": 3}}}),
        "accounts": ("POST", "iam", f"/v1/projects/-/serviceAccounts/{quote(name, safe='@')}:getIamPolicy", {}),
        "buckets": ("GET", "storage", f"/storage/v1/b/{name}/iam", {"params": {"optionsRequestedPolicyVersion": 3}}),
        "secrets": ("GET", "secretmanager", f"/v1/{name}:getIamPolicy",
                    {"params": {"options.requestedPolicyVersion": 3}}),
    }  # fmt: skip
    method, host, path, options = requests[kind]
    answer = cloud.google.ask(method, f"{host}.googleapis.com", path, **options)
    if answer.status != 200:
        return None
    found: list[dict[str, Any]] = answer.body.get("bindings", [])
    return found


def secret(cloud: Cloud, name: str) -> Finding:
    """It is there and holds something; what, is kept for the Supabase half and shown nowhere."""
    _, owner, _, short, *_ = name.split("/")
    add = f'read -rs VALUE && printf %s "$VALUE" | gcloud secrets {{}} {short} --project={owner} --data-file=-'
    version = name if "/versions/" in name else f"{name}/versions/latest"
    answer = cloud.google.ask("GET", "secretmanager.googleapis.com", f"/v1/{version}:access")
    if answer.status == 404:
        return missing(f"there is no {name}", add.format("create") + " (without a version: versions add)")
    if answer.status == 400:
        return missing(f"{name} is disabled or destroyed", add.format("versions add"))
    if answer.status == 403 and answer.disabled is None:
        return unknown(f"you may not read {name}; the steps need it, not you")
    if answer.status != 200:
        return cloud.google.refused(answer)
    try:
        value = base64.b64decode(answer.body.get("payload", {}).get("data", "")).decode(errors="replace").strip()
    except binascii.Error:
        value = ""
    if not value:
        return missing(f"{name} is empty", add.format("versions add"))
    cloud.payloads[name] = SecretStr(value)
    return ok(f"{name} can be read")


def _image(cloud: Cloud, kind: str) -> Finding:
    return image(cloud.google, cloud.settings.image(kind))


def quota(cloud: Cloud) -> Finding:
    """The region has as many GPUs of the type for the project as the train step asks for."""
    gpu, count = cloud.parameters["train_accelerator_type"], int(cloud.parameters["train_accelerator_count"])
    region, spot = cloud.settings.region, cloud.settings.spot
    if not count:
        return ok("the train step asks for no GPU")
    if gpu not in QUOTAS:
        return unknown(f"which quota counts {gpu} is not known here", "look at IAM & Admin → Quotas")
    metric = f"aiplatform.googleapis.com/custom_model_training_{'preemptible_' * spot}{QUOTAS[gpu]}_gpus"
    path = f"/v1beta1/projects/{cloud.project}/services/aiplatform.googleapis.com/consumerQuotaMetrics/"
    answer = cloud.google.ask("GET", "serviceusage.googleapis.com", path + quote(metric, safe=""))
    if answer.status != 200:
        return cloud.google.refused(answer)
    limit = _limit(answer.body, region)
    if limit is None:
        return unknown(f"the quota {metric} names no limit for {region}", "look at IAM & Admin → Quotas")
    if 0 <= limit < count:
        return missing(
            f"{limit} of {gpu} in {region}, and the train step asks for {count}",
            f"ask for more of {metric} in {region} under IAM & Admin → Quotas, or choose another GPU or region",
        )
    return ok(f"{'no limit' if limit < 0 else limit} of {gpu} in {region}" + " on spot" * spot)


def _limit(metric: Mapping[str, Any], region: str) -> int | None:
    """The limit in the region, else the one for every region; -1 is none."""
    buckets = [one for limit in metric.get("consumerQuotaLimits", []) for one in limit.get("quotaBuckets", [])]
    found = {one.get("dimensions", {}).get("region", ""): int(one.get("effectiveLimit", 0)) for one in buckets}
    return found.get(region, found.get(""))
