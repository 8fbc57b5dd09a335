"""Check of a service account's roles.

An IAM policy lists who has which role on a resource. It shows neither the members of a group nor the roles that a
project inherits from the folder or organisation above it.
"""

from typing import Any
from urllib.parse import quote

from pipelines.doctor.finding import Finding, missing, ok, unknown
from pipelines.vertex.doctor.google import Google

# The roles that the service account needs, and the roles that include each.
INCLUDED_IN = {
    "roles/aiplatform.user": {"roles/aiplatform.admin", "roles/editor", "roles/owner"},
    "roles/storage.objectUser": {"roles/storage.objectAdmin", "roles/storage.admin"},
    "roles/secretmanager.secretAccessor": {"roles/secretmanager.admin", "roles/owner"},
    "roles/iam.serviceAccountUser": {"roles/editor", "roles/owner"},
}
BASIC_ROLES = {"roles/editor", "roles/owner"}
# Members that stand for many accounts.
GROUPS = ("group:", "domain:", "principalSet:", "allUsers", "allAuthenticatedUsers")
BIND = "add-iam-policy-binding"


def account_role(google: Google, account: str, role: str, kind: str, name: str, project: str, bind: str) -> Finding:
    """The account has ``role``, or one that includes it, on a resource or on the resource's project.

    Missing only where no group, condition, other role, folder or organisation can give the role.

    Args:
        google: client of Google's APIs.
        account: e-mail address of the service account.
        role: one of those of ``INCLUDED_IN``.
        kind: of the resource: projects, accounts, buckets or secrets.
        name: of the resource, as its API names it.
        project: that the resource belongs to.
        bind: the command that adds a role binding, without member and role.
    """
    member = f"serviceAccount:{account}"
    policies = [_policy(google, kind, name)]
    if kind != "projects":
        policies.append(_policy(google, "projects", project))
    bindings = [binding for policy in policies for binding in policy or () if _may_give(binding["role"], role)]
    own = [binding for binding in bindings if member in binding.get("members", [])]
    for binding in own:
        if binding["role"] in {role, *INCLUDED_IN[role]} and not binding.get("condition"):
            return ok(binding["role"])
    grant = f"{bind} --member={member} --role={role}"
    look = f"gcloud projects get-ancestors-iam-policy {project}"
    if own:
        condition = " under a condition" if own[0].get("condition") else ""
        return unknown(f"it has {own[0]['role']}{condition}, which may be enough; if not", grant)
    if groups := [name for binding in bindings for name in binding.get("members", []) if name.startswith(GROUPS)]:
        return unknown(f"{role} may come from {groups[0]}; if the account is not in it", grant)
    if None in policies:
        return unknown(f"you may not see who has {role}; to grant it", grant)
    if parent := _parent(google, project):
        return unknown(f"{role} may come from {parent} (look: {look}); to grant it", grant)
    return missing(f"it lacks {role}", grant)


def _may_give(other: str, role: str) -> bool:
    """Whether the role ``other`` may include ``role``: a basic or custom role, or one of the same service."""
    same_service = other.partition(".")[0] == role.partition(".")[0] and not other.endswith("iewer")
    return other in INCLUDED_IN[role] | BASIC_ROLES or same_service or not other.startswith("roles/")


def _policy(google: Google, kind: str, name: str) -> list[dict[str, Any]] | None:
    """The role bindings of a resource; ``None`` when the user may not read them."""
    requests: dict[str, tuple[str, str, str, dict[str, Any]]] = {
        "projects": ("POST", "cloudresourcemanager", f"/v1/projects/{name}:getIamPolicy",
                     {"json": {"options": {"requestedPolicyVersion": 3}}}),
        "accounts": ("POST", "iam", f"/v1/projects/-/serviceAccounts/{quote(name, safe='@')}:getIamPolicy", {}),
        "buckets": ("GET", "storage", f"/storage/v1/b/{name}/iam", {"params": {"optionsRequestedPolicyVersion": 3}}),
        "secrets": ("GET", "secretmanager", f"/v1/{name}:getIamPolicy",
                    {"params": {"options.requestedPolicyVersion": 3}}),
    }  # fmt: skip
    method, host, path, options = requests[kind]
    response = google.request(method, f"{host}.googleapis.com", path, **options)
    if response.status != 200:
        return None
    bindings: list[dict[str, Any]] = response.body.get("bindings", [])
    return bindings


def _parent(google: Google, project: str) -> str:
    """The folder or organisation above a project, whose roles hold in it too; empty: there is none."""
    response = google.request("GET", "cloudresourcemanager.googleapis.com", f"/v1/projects/{project}")
    if response.status != 200:
        return "a folder or organisation"
    parent = response.body.get("parent", {})
    return f"the {parent['type']} {parent['id']} or above" if parent else ""
