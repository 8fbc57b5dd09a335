"""infra/: arguments that the provider has, and agreement with docs/vertex.md, the doctor and the settings."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import hcl2
import pytest
from terraform import schema

from pipelines.settings import Settings
from pipelines.vertex.doctor.cloud import APIS
from pipelines.vertex.doctor.roles import INCLUDED_IN
from pipelines.vertex.grants import BUCKET_READER

ROOT = Path(__file__).parents[2]
GOOGLE = json.loads((ROOT / "tests/terraform/google.json").read_text())
DOCUMENT = (ROOT / "docs/vertex.md").read_text()
# Arguments of Terraform's own, which every resource has.
OWN = {"count", "for_each", "depends_on", "lifecycle", "provider"}


def parse(text: str) -> dict[str, Any]:
    return dict(hcl2.loads(text))


def all_text() -> str:
    """All files as one."""
    return "\n".join(file.read_text() for file in sorted((ROOT / "infra").glob("*.tf")))


INFRA = parse(all_text())
LOCALS = {name: value for block in INFRA["locals"] for name, value in block.items()}


def resources(tree: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Type, name and arguments of each resource."""
    return [
        (kind.strip('"'), name.strip('"'), {k: v for k, v in body.items() if not k.startswith("__")})
        for block in tree["resource"]
        for kind, named in block.items()
        for name, body in named.items()
        if not kind.startswith("__")
    ]


def faults(arguments: dict[str, Any], known: dict[str, Any], where: str) -> list[str]:
    """Arguments that the provider does not have, and those that it requires and that are not given."""
    found = []
    given = {k for k in arguments if not k.startswith("__")}
    for block in arguments.get("dynamic", []):
        for name, one in block.items():
            if not name.startswith("__"):
                given |= {name.strip('"')}
                arguments = {**arguments, name.strip('"'): one["content"]}
    found += [f"{where}: no argument {name}" for name in sorted(given - known.keys() - OWN - {"dynamic"})]
    found += [f"{where}: {name} is required" for name, one in known.items() if one["required"] and name not in given]
    for name in sorted(given & known.keys()):
        inner, value = known[name]["block"], arguments[name]
        for one in value if isinstance(value, list) else [value]:
            if inner is not None and isinstance(one, dict):
                found += faults(one, inner, f"{where}.{name}")
    return found


def test_every_argument_is_one_of_the_provider_and_none_that_it_requires_is_missing() -> None:
    assert [
        fault for kind, name, body in resources(INFRA) for fault in faults(body, GOOGLE[kind], f"{kind}.{name}")
    ] == []
    assert len(resources(INFRA)) > 15


@pytest.mark.parametrize(
    ("found", "planted", "said"),
    [
        ("uniform_bucket_level_access", "uniform_level_access", "artifacts: no argument uniform_level_access"),
        ("matches_prefix", "match_prefix", "artifacts.lifecycle_rule.condition: no argument match_prefix"),
        ("keep_count", "keep_number", "images.cleanup_policies.most_recent_versions: no argument keep_number"),
        ("  location      = var.region\n", "  place = var.region\n", "images: no argument place"),
        ('  account_id   = "mf-steps"\n', "", "steps: account_id is required"),
        ("  replication {\n    auto {}\n  }\n", "", "secrets: replication is required"),
    ],
)
def test_a_planted_fault_is_found(found: str, planted: str, said: str) -> None:
    text = (ROOT / "infra/main.tf").read_text()
    assert found in text
    tree = parse(text.replace(found, planted))
    said_of = [fault for kind, name, body in resources(tree) for fault in faults(body, GOOGLE[kind], name)]
    assert said_of == [said]


# Attributes that the provider computes; the schema in google.json holds arguments only.
COMPUTED = {
    "google_service_account": {"email", "member", "name"},
    "google_iam_workload_identity_pool": {"name"},
    "google_iam_workload_identity_pool_provider": {"name"},
}


def loose_references(text: str) -> list[str]:
    """References to resources, attributes, variables and locals that there are not."""
    tree = parse(text)
    declared = {(kind, name): {*GOOGLE[kind], *COMPUTED.get(kind, ())} for kind, name, _ in resources(tree)}
    known = {f"var.{name}" for one in tree["variable"] for name in map(unquoted, one)}
    known |= {f"local.{name}" for one in tree["locals"] for name in one}
    found = [one for one in re.findall(r"\b(?:var|local)\.\w+", text) if one not in known]
    for kind, name, attribute in re.findall(r"\b(google_\w+)\.(\w+)(?:\[[^\]]*\])?(?:\.(\w+))?", text):
        if (kind, name) not in declared or (attribute and attribute not in declared[kind, name]):
            found.append(f"{kind}.{name}" + (f".{attribute}" if attribute else ""))
    return found


def unquoted(value: Any) -> str:
    return str(value).strip('"')


def test_every_reference_leads_to_something() -> None:
    assert loose_references(all_text()) == []


@pytest.mark.parametrize(
    ("found", "planted", "said"),
    [
        (
            "google_service_account.steps.email",
            "google_service_account.steps.mail",
            "google_service_account.steps.mail",
        ),
        ("google_storage_bucket.artifacts.name", "google_storage_bucket.runs.name", "google_storage_bucket.runs.name"),
        (
            "google_service_account.deploy[0].name",
            "google_service_account.deploy[0].nam",
            "google_service_account.deploy.nam",
        ),
        ("var.keep_days > 0", "var.keep_day > 0", "var.keep_day"),
        ("= local.bucket\n", "= local.buckets\n", "local.buckets"),
    ],
)
def test_a_planted_reference_to_nothing_is_found(found: str, planted: str, said: str) -> None:
    assert found in all_text()
    assert loose_references(all_text().replace(found, planted, 1)) == [said]


def test_the_schema_is_of_every_resource_and_of_the_version_that_is_pinned() -> None:
    assert {kind for kind, _, _ in resources(INFRA)} == GOOGLE.keys() == schema.resources()
    (provider,) = re.findall(r' version = "(.*)"', (ROOT / "infra/versions.tf").read_text())
    assert provider == "~> 6.50"


def test_the_apis_are_those_of_the_doctor_and_of_the_document() -> None:
    enabled = re.search(r"gcloud services enable ((?:.*\\\n)*.*)", DOCUMENT)
    assert enabled
    documented = re.findall(r"(\w+)\.googleapis\.com", enabled[1])
    assert [unquoted(api) for api in LOCALS["apis"]] == list(APIS) == documented
    for kind, _, body in resources(INFRA):
        assert kind != "google_project_service" or str(body["disable_on_destroy"]).lower() == "false"


def roles_of(account: str) -> set[str]:
    """Roles that infra/ grants to an account."""
    found = {unquoted(body["role"]) for kind, _, body in resources(INFRA) if kind.endswith("_iam_member")
             and f"google_service_account.{account}" in unquoted(body["member"])}  # fmt: skip
    return {role for role in found if role.startswith("roles/")}


def documented_roles() -> dict[str, set[str]]:
    """Roles by account, in the table of docs/vertex.md."""
    found: dict[str, set[str]] = {}
    owner = ""
    for line in DOCUMENT.splitlines():
        _, *cells, _ = [cell.strip() for cell in line.split("|")] if line.startswith("|") else ["", ""]
        if len(cells) == 4 and (roles := re.findall(r"roles/[\w.]+", cells[1])):
            owner = cells[0] or owner
            found.setdefault(owner, set()).update(roles)
    return found


def test_the_steps_account_has_exactly_the_roles_that_the_document_names_and_the_doctor_looks_for() -> None:
    assert roles_of("steps") == documented_roles()["the steps' account"] == INCLUDED_IN.keys()


def test_github_builds_and_submits_with_the_roles_of_somebody_who_is_not_the_owner() -> None:
    granted = roles_of("deploy") | {unquoted(role) for role in re.findall(r"roles/[\w.]+", str(LOCALS["deploy_roles"]))}
    assert granted == documented_roles()["you"]
    assert BUCKET_READER in granted
    (provider,) = [body for kind, _, body in resources(INFRA) if kind.endswith("_pool_provider")]
    assert unquoted(provider["attribute_condition"]) == (
        "assertion.sub == 'repo:${var.github_repository}:ref:refs/heads/main'"
    )


def test_no_key_is_in_the_state() -> None:
    assert not {kind for kind, _, _ in resources(INFRA)} & {
        "google_secret_manager_secret_version", "google_service_account_key"
    }  # fmt: skip


def test_the_names_are_those_of_the_document() -> None:
    said = {name: body for _, name, body in resources(INFRA)}
    for name in ("mf-steps@$PROJECT.iam", "repositories create mf ", "secrets create supabase-key", "$PROJECT-mf"):
        assert name in DOCUMENT
    assert unquoted(said["images"]["repository_id"]) == "mf"
    accounts = {unquoted(body["account_id"]) for kind, _, body in resources(INFRA) if kind == "google_service_account"}
    assert accounts == {"mf-steps", "mf-deploy"}


def test_its_output_is_lines_of_the_settings_file(tmp_path: Path) -> None:
    written = (ROOT / "infra/outputs.tf").read_text()
    lines = re.search(r"<<-TOML\n(.*?)\n\s*TOML", written, re.DOTALL)
    assert lines
    values = {
        "var.project": "my-project",
        "var.region": "europe-west4",
        "google_storage_bucket.artifacts.name": "my-project-mf",
        "google_service_account.steps.email": "mf-steps@my-project.iam.gserviceaccount.com",
        "google_artifact_registry_repository.images.repository_id": "mf",
    }
    rendered = lines[1]
    # With the secret of the database URL, as contains() finds it.
    rendered = re.sub(r'\$\{contains\(.*?\) \? "(.*?)" : ""\}', r"\1", rendered)
    rendered = re.sub(r"\$\{([\w.]+)\}", lambda match: values[match[1]], rendered)
    file = tmp_path / "settings.toml"
    file.write_text("\n".join(line.strip() for line in rendered.splitlines()))
    settings = Settings.load(file, {})
    settings.check_images()
    documented = re.search(r"For the project above:\n\n```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    assert documented
    expected = tomllib.loads(documented[1])
    assert settings.supabase_db_url_secret.endswith("/supabase-db-url/versions/latest")
    for name, value in tomllib.loads(file.read_text()).items():
        assert name == "supabase_db_url_secret" or expected[name] == value


def test_a_check_that_is_skipped_has_its_reason() -> None:
    files = "\n".join(file.read_text() for file in (ROOT / "infra").glob("*.tf"))
    skips = re.findall(r"#checkov:skip=(\w+)(.*)", files)
    assert skips
    assert all(re.fullmatch(r":(\S+ ){4,}\S+", reason) for _, reason in skips)
