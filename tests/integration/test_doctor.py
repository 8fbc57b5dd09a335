"""``make doctor`` against fakes of Google's APIs and the embedded Supabase: one line per check."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_google import ACCOUNT, TOKEN, FakeGoogle, Reply, Request, fake_google, key_file, not_enabled, refusal
from faults import Fault

from mf.local import LocalSupabase
from mf.supabase.config import SchemaConfig
from mf.supabase.schema import migration
from pipelines.compiled import definitions
from pipelines.doctor import settings as settings_check
from pipelines.doctor.finding import Finding
from pipelines.vertex import doctor
from pipelines.vertex.doctor import images

REGISTRY = "europe-west4-docker.pkg.dev/p1/mf"
BUCKET_COMMAND = "gcloud storage buckets create gs://mf-bucket --project=p1 --location=europe-west4"
Doctor = Callable[..., dict[str, str]]
DEFINITIONS = functools.cache(definitions)  # building the pipeline takes most of the time here


@pytest.fixture
def google(tmp_path: Path, checkout: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGoogle]:
    with fake_google() as fake:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key_file(tmp_path, fake.url)))
        # The library asks Google in the background which regions the account may use.
        boundary = "CredentialsWithRegionalAccessBoundary._maybe_start_regional_access_boundary_refresh"
        monkeypatch.setattr(f"google.auth.credentials.{boundary}", lambda *_: None)
        fake.images = {f"{REGISTRY}/mf-python-{kind}:v1": checkout for kind in ("cpu", "gpu")}
        fake.limits = {"custom_model_training_nvidia_l4_gpus": {"": "0", "europe-west4": "1"}}
        yield fake


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkout in place of this one."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "mf").mkdir()
    (folder / "mf" / "model.py").write_text("factors = 64\n")
    git = ["git", "-C", str(folder), "-c", "user.name=me", "-c", "user.email=me@example.com"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    return folder


@pytest.fixture
def checkout(committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The commit of a copy of that checkout."""
    folder = shutil.copytree(committed, tmp_path / "checkout")
    monkeypatch.setattr(images, "ROOT", folder)
    return next((folder / ".git" / "refs" / "heads").iterdir()).read_text().strip()


@pytest.fixture(scope="module")
def supabase(fresh_stack: Callable[..., LocalSupabase]) -> LocalSupabase:
    stack = fresh_stack(legacy_grants=False)
    stack.migrate(migration(SchemaConfig()))
    stack.migrate(
        "create table ratings (user_id bigint, movie_id bigint, rating real, primary key (user_id, movie_id));"
        "grant select on ratings to service_role; insert into ratings values (1, 2, 3)"
    )
    return stack


@pytest.fixture
def examine(
    tmp_path: Path, google: FakeGoogle, supabase: LocalSupabase, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Doctor:  # fmt: skip
    """Runs the doctor and returns its lines by check. No line may hold a secret."""
    google.secrets.setdefault("projects/p1/secrets/supabase-key", f"{supabase.secret_key}\n".encode())
    monkeypatch.setattr(settings_check, "definitions", DEFINITIONS)
    monkeypatch.setattr(doctor.machine, "checks", lambda: [("Python", lambda: Finding("ok", "3.11.9"))])

    def run(environ: dict[str, str] | None = None, **changed: str | bool) -> dict[str, str]:
        settings = {
            "project": "p1",
            "region": "europe-west4",
            "pipeline_root": "gs://mf-bucket/runs",
            "service_account": ACCOUNT,
            "image_repository": REGISTRY,
            "image_tag": "v1",
            "supabase_url": supabase.url,
            "supabase_key_secret": "projects/p1/secrets/supabase-key",
        }
        file = tmp_path / "settings.toml"
        file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in (settings | changed).items()))
        complete = doctor.examine(file, environ or {}, google.url + "/{host}")
        printed = "".join(capsys.readouterr())
        for secret in (TOKEN, "PRIVATE KEY", supabase.secret_key, supabase.anon_key, "sb_secret_another", "planted"):
            assert secret not in printed
        lines = printed.splitlines()
        assert all(re.match(r"(ok     |missing|unknown)  \S", line) for line in lines)
        assert complete == (not any(line.startswith("missing") for line in lines))
        return {name: line for line in lines for name in line[9:].partition(": ")[0].split(", ")}

    return run


def test_every_line_is_ok_when_nothing_is_missing(
    examine: Doctor, google: FakeGoogle, supabase: LocalSupabase, tmp_path: Path
) -> None:
    assert list(examine().values()) == [
        "ok       Python: 3.11.9",
        f"ok       settings: {tmp_path / 'settings.toml'}",
        "ok       credentials: me@p1.iam.gserviceaccount.com",
        "ok       project: p1, you may start and schedule runs",
        "ok       APIs: 8 enabled",
        "ok       bucket: gs://mf-bucket in europe-west4",
        f"ok       service account: {ACCOUNT}, your runs may act as it",
        "ok       role on the project: roles/aiplatform.user",
        "ok       role on the bucket: roles/storage.objectUser",
        "ok       secret supabase-key: projects/p1/secrets/supabase-key can be read",
        "ok       role on the secret supabase-key: roles/secretmanager.secretAccessor",
        f"ok       cpu image: {REGISTRY}/mf-python-cpu:v1 was built from this code",
        f"ok       gpu image: {REGISTRY}/mf-python-gpu:v1 was built from this code; it needs the NVIDIA driver "
        "580.65.06 or newer, which only a run can show",
        "ok       GPU quota: 1 of NVIDIA_L4 in europe-west4",
        f"ok       Supabase: {supabase.url} accepts the key",
        "ok       migration: applied for bigint users, bigint movies, user_embeddings and movie_embeddings",
        "ok       grants: 25 functions, 12 tables and views",
        "ok       table of ratings: ratings can be read",
    ]
    posted = [request.path.rpartition(":")[2] for request in google.requests if request.method == "POST"]
    assert set(posted) == {"/token", "testIamPermissions", "getIamPolicy"}  # no request that changes anything


def test_a_second_secret_images_by_digest_and_spot_are_checked(
    examine: Doctor, google: FakeGoogle, supabase: LocalSupabase, checkout: str
) -> None:
    digest = f"sha256:{'a' * 64}"
    google.images = {f"{REGISTRY}/mf-python-{kind}@{digest}": checkout for kind in ("cpu", "gpu")}
    google.limits["custom_model_training_preemptible_nvidia_l4_gpus"] = {"": "-1"}
    google.secrets["projects/p1/secrets/supabase-db-url"] = supabase.db_url.encode()
    lines = examine(
        cpu_image=f"{REGISTRY}/mf-python-cpu@{digest}",
        gpu_image=f"{REGISTRY}/mf-python-gpu@{digest}",
        spot=True,
        supabase_db_url_secret="projects/p1/secrets/supabase-db-url/versions/latest",
    )
    assert lines["cpu image"] == f"ok       cpu image: {REGISTRY}/mf-python-cpu@{digest} was built from this code"
    assert lines["GPU quota"] == "ok       GPU quota: no limit of NVIDIA_L4 in europe-west4 on spot"
    assert lines["role on the secret supabase-db-url"].startswith("ok ")
    assert lines["role on the account itself"] == "ok       role on the account itself: roles/iam.serviceAccountUser"
    assert re.fullmatch(r"ok       database: the database \S+ answers", lines["database"])
    assert {line[:7] for line in lines.values()} == {"ok     "}


def sets(attribute: str, value: object) -> Callable[[FakeGoogle], None]:
    return lambda fake: setattr(fake, attribute, value)


def answers(pattern: str, reply: Reply) -> Callable[[FakeGoogle], None]:
    def change(fake: FakeGoogle) -> None:
        fake.faults.append(lambda request: reply if re.search(pattern, request.host + request.path) else None)

    return change


def holds(resource: str, *bindings: dict[str, object]) -> Callable[[FakeGoogle], None]:
    return lambda fake: fake.policies.update({resource: list(bindings)})


MEMBER = f"serviceAccount:{ACCOUNT}"
BIND = "add-iam-policy-binding"
GRANT_PROJECT = f"gcloud projects {BIND} p1 --member={MEMBER} --role=roles/aiplatform.user"
GRANT_BUCKET = f"gcloud storage buckets {BIND} gs://mf-bucket --member={MEMBER} --role=roles/storage.objectUser"
IMAGE = f"{REGISTRY}/mf-python-cpu:v1"
SECRET = "projects/p1/secrets/supabase-key"
QUOTA = "custom_model_training_nvidia_l4_gpus"
ADD = 'read -rs VALUE && printf %s "$VALUE" | gcloud secrets {} supabase-key --project=p1 --data-file=-'
DENIED = refusal(403, "Permission denied on resource (or it may not exist).")


@pytest.mark.parametrize(
    ("change", "check", "line"),
    [
        (
            sets("permissions", {"aiplatform.pipelineJobs.get", "iam.serviceAccounts.actAs"}),
            "project",
            "missing  project: you lack aiplatform.pipelineJobs.create, aiplatform.schedules.create: "
            f"gcloud projects {BIND} p1 --member=user:YOU --role=roles/aiplatform.user",
        ),
        (
            answers("p1:testIamPermissions", DENIED),
            "project",
            "missing  project: there is no project p1, or you may not see it: correct project in the settings",
        ),
        (
            answers("p1:testIamPermissions", not_enabled("cloudresourcemanager.googleapis.com")),
            "project",
            "missing  project: the API cloudresourcemanager.googleapis.com is not enabled: "
            "gcloud services enable cloudresourcemanager.googleapis.com --project=p1",
        ),
        (
            answers("p1:testIamPermissions", refusal(503, "try\nlater")),
            "project",
            "unknown  project: Google answered 503 try later",
        ),
        (
            sets("disabled", {"cloudbuild", "secretmanager"}),
            "APIs",
            "missing  APIs: cloudbuild.googleapis.com, secretmanager.googleapis.com not enabled: "
            "gcloud services enable cloudbuild.googleapis.com secretmanager.googleapis.com --project=p1",
        ),
        (
            answers("batchGet", DENIED),
            "APIs",
            "unknown  APIs: Google answered 403 Permission denied on resource (or it may not exist).",
        ),
        (
            sets("bucket", None),
            "bucket",
            f"missing  bucket: there is no gs://mf-bucket: {BUCKET_COMMAND} --uniform-bucket-level-access",
        ),
        (
            sets("bucket", {"location": "US-CENTRAL1"}),
            "bucket",
            "missing  bucket: gs://mf-bucket is in us-central1, and the runs are in europe-west4: "
            "name another in pipeline_root: gcloud storage buckets create gs://NAME --project=p1 "
            "--location=europe-west4 --uniform-bucket-level-access",
        ),
        (sets("bucket", {"location": "EU"}), "bucket", "ok       bucket: gs://mf-bucket in eu"),
        (
            sets(
                "bucket",
                {"location": "EU", "customPlacementConfig": {"dataLocations": ["EUROPE-WEST4", "EUROPE-NORTH1"]}},
            ),
            "bucket",
            "ok       bucket: gs://mf-bucket in europe-west4, europe-north1",
        ),
        (
            answers("b/mf-bucket$", DENIED),
            "bucket",
            "missing  bucket: gs://mf-bucket belongs to somebody else, or you may not see it: name your own in "
            "pipeline_root, or: "
            f"gcloud storage buckets {BIND} gs://mf-bucket --member=user:YOU --role=roles/storage.legacyBucketReader",
        ),
        (
            sets("accounts", set()),
            "service account",
            f"missing  service account: there is no {ACCOUNT}: gcloud iam service-accounts create steps --project=p1",
        ),
        (
            answers(f"{ACCOUNT}:testIamPermissions", (200, {})),
            "service account",
            f"missing  service account: you may not act as {ACCOUNT}: gcloud iam service-accounts {BIND} {ACCOUNT} "
            "--project=p1 --member=user:YOU --role=roles/iam.serviceAccountUser",
        ),
        (
            holds("projects/p1"),
            "role on the project",
            f"missing  role on the project: it lacks roles/aiplatform.user: {GRANT_PROJECT}",
        ),
        (
            holds("b/mf-bucket", {"role": "roles/storage.objectViewer", "members": [MEMBER]}),
            "role on the bucket",
            f"missing  role on the bucket: it lacks roles/storage.objectUser: {GRANT_BUCKET}",
        ),
        (
            holds("b/mf-bucket", {"role": "projects/p1/roles/writer", "members": [MEMBER]}),
            "role on the bucket",
            f"unknown  role on the bucket: it has projects/p1/roles/writer, which may be enough; if not: "
            f"{GRANT_BUCKET}",
        ),
        (
            holds("b/mf-bucket", {"role": "roles/storage.legacyObjectOwner", "members": [MEMBER]}),
            "role on the bucket",
            "unknown  role on the bucket: it has roles/storage.legacyObjectOwner, which may be enough; if not: "
            f"{GRANT_BUCKET}",
        ),
        (
            holds(
                "b/mf-bucket", {"role": "roles/storage.objectUser", "members": [MEMBER], "condition": {"title": "x"}}
            ),
            "role on the bucket",
            "unknown  role on the bucket: it has roles/storage.objectUser under a condition, which may be enough; if "
            f"not: {GRANT_BUCKET}",
        ),
        (
            answers("getIamPolicy|/iam$", DENIED),
            "role on the bucket",
            f"unknown  role on the bucket: you may not see who has roles/storage.objectUser; to grant it: "
            f"{GRANT_BUCKET}",
        ),
        (
            holds("b/mf-bucket", {"role": "roles/storage.objectAdmin", "members": ["group:steps@example.com"]}),
            "role on the bucket",
            "unknown  role on the bucket: roles/storage.objectUser may come from group:steps@example.com; if the "
            "account "
            f"is not in it: {GRANT_BUCKET}",
        ),
        (
            holds("projects/p1", {"role": "roles/owner", "members": ["domain:example.com"]}),
            "role on the project",
            "unknown  role on the project: roles/aiplatform.user may come from domain:example.com; if the account "
            "is not "
            f"in it: {GRANT_PROJECT}",
        ),
        (
            holds(SECRET),
            "role on the secret supabase-key",
            "missing  role on the secret supabase-key: it lacks roles/secretmanager.secretAccessor: gcloud secrets "
            f"{BIND} supabase-key --project=p1 --member={MEMBER} --role=roles/secretmanager.secretAccessor",
        ),
        (
            sets("secrets", {"projects/p1/secrets/another": b"x"}),
            "secret supabase-key",
            f"missing  secret supabase-key: there is no {SECRET}: {ADD.format('create')} "
            "(without a version: versions add)",
        ),
        (
            answers(":access", refusal(400, "is in DISABLED state")),
            "secret supabase-key",
            f"missing  secret supabase-key: {SECRET} is disabled or destroyed: {ADD.format('versions add')}",
        ),
        (
            sets("secrets", {SECRET: b" \n"}),
            "secret supabase-key",
            f"missing  secret supabase-key: {SECRET} is empty: {ADD.format('versions add')}",
        ),
        (
            answers(":access", DENIED),
            "secret supabase-key",
            f"unknown  secret supabase-key: you may not read {SECRET}, which only the steps need",
        ),
        (
            answers(":access", DENIED),
            "Supabase",
            "unknown  Supabase, migration, grants, table of ratings: there is no key: SUPABASE_KEY is not set, and no "
            "secret was read",
        ),
        (sets("images", {}), "cpu image", f"missing  cpu image: there is no {IMAGE}: make images"),
        (
            sets("images", {IMAGE: "0123456789ab"}),
            "cpu image",
            f"missing  cpu image: {IMAGE} was built from commit 0123456789ab, and the code here differs: commit it, "
            "and make images",
        ),
        (
            sets("images", {IMAGE: "none"}),
            "cpu image",
            f"unknown  cpu image: {IMAGE} has no label with its commit: make images",
        ),
        (
            answers("/v2/", (403, {"errors": [{"code": "DENIED"}]})),
            "cpu image",
            "unknown  cpu image: Google answered 403",
        ),
        (
            sets("limits", {QUOTA: {"": "0", "us-central1": "8"}}),
            "GPU quota",
            "missing  GPU quota: 0 of NVIDIA_L4 in europe-west4, and the train step asks for 1: ask for more of "
            f"aiplatform.googleapis.com/{QUOTA} in europe-west4 under IAM & Admin → Quotas, or choose another GPU or "
            "region",
        ),
        (
            sets("limits", {QUOTA: {"us-central1": "8"}}),
            "GPU quota",
            f"unknown  GPU quota: the quota aiplatform.googleapis.com/{QUOTA} has no limit for europe-west4: "
            "look at IAM & Admin → Quotas",
        ),
        (sets("limits", {}), "GPU quota", "unknown  GPU quota: Google answered 404 no such metric"),
    ],
)
def test_a_missing_or_unknown_thing_is_one_line_with_the_fix(
    examine: Doctor, google: FakeGoogle, change: Callable[[FakeGoogle], None], check: str, line: str
) -> None:
    change(google)
    assert examine()[check] == line


def test_a_role_on_the_project_holds_on_its_bucket(examine: Doctor, google: FakeGoogle) -> None:
    google.policies["b/mf-bucket"] = []
    google.policies["projects/p1"] += [{"role": "roles/storage.admin", "members": [MEMBER]}]
    assert examine()["role on the bucket"] == "ok       role on the bucket: roles/storage.admin"


@pytest.mark.parametrize("response", [None, DENIED])
def test_a_role_may_come_from_the_folder_or_organisation_above_the_project(
    examine: Doctor, google: FakeGoogle, response: Reply | None
) -> None:
    google.policies["projects/p1"] = []
    google.parent = {"type": "folder", "id": "12"}
    google.faults.append(lambda request: response if request.path == "/v1/projects/p1" else None)
    parent = "a folder or organisation" if response else "the folder 12 or above"
    assert examine()["role on the project"] == (
        f"unknown  role on the project: roles/aiplatform.user may come from {parent} (look: gcloud projects "
        f"get-ancestors-iam-policy p1); to grant it: {GRANT_PROJECT}"
    )
    google.policies["projects/p1"] = [{"role": "roles/editor", "members": [MEMBER]}]
    assert examine()["role on the project"] == "ok       role on the project: roles/editor"


def test_with_spot_the_account_must_be_allowed_to_act_as_itself(examine: Doctor, google: FakeGoogle) -> None:
    google.policies[ACCOUNT] = []
    assert examine(spot=True)["role on the account itself"] == (
        f"missing  role on the account itself: it lacks roles/iam.serviceAccountUser: gcloud iam service-accounts "
        f"{BIND} "
        f"{ACCOUNT} --project=p1 --member={MEMBER} --role=roles/iam.serviceAccountUser"
    )
    assert "role on the account itself" not in examine()


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        ((200, {"schemaTitle": "system.Experiment"}), "ok       experiment: nightly"),
        (refusal(404, "no such context"), "ok       experiment: there is no nightly yet; the first run creates it"),
        (
            (200, {"schemaTitle": "system.PipelineRun"}),
            "missing  experiment: nightly exists and is no experiment but a system.PipelineRun: choose another name",
        ),
        ((200, {}), "missing  experiment: nightly exists and is no experiment: choose another name"),
        (DENIED, "unknown  experiment: Google answered 403 Permission denied on resource (or it may not exist)."),
    ],
)
def test_the_experiment_is_one_or_is_new(examine: Doctor, google: FakeGoogle, reply: Reply, line: str) -> None:
    asked = "^europe-west4-aiplatform.googleapis.com/v1/projects/p1/locations/europe-west4/metadataStores/default/"
    answers(f"{asked}contexts/nightly$", reply)(google)
    assert examine(experiment="nightly")["experiment"] == line
    assert "experiment" not in examine()


def test_an_image_is_missing_when_its_code_was_edited_since(examine: Doctor, google: FakeGoogle, checkout: str) -> None:
    (images.ROOT / "README.md").write_text("not part of an image\n")
    assert examine()["gpu image"].startswith("ok ")
    (images.ROOT / "mf" / "model.py").write_text("factors = 32\n")
    assert f"was built from commit {checkout}, and the code here differs" in examine()["gpu image"]


def test_settings_that_are_empty_are_not_checked(examine: Doctor, google: FakeGoogle) -> None:
    lines = examine(pipeline_root="", service_account="", supabase_key_secret="", image_repository="mf")
    assert re.fullmatch(
        r"missing  settings: \S+ lacks pipeline_root, supabase_key_secret: fill them in \(docs/vertex.md\)",
        lines["settings"],
    )
    assert lines["bucket"] == "unknown  bucket: the settings have no pipeline_root"
    assert lines["service account"].startswith("unknown  service account: the settings have none: the steps run as ")
    assert lines["role on the project"] == "unknown  role on the project: the settings have no service_account"
    assert lines["cpu image"].startswith(
        "missing  cpu image: image_repository: found 'mf', which names no registry, and"
    )
    assert not [name for name in lines if "secret" in name]


def test_without_a_project_google_gets_no_request(examine: Doctor, google: FakeGoogle) -> None:
    lines = examine(project="")
    assert lines["project"] == lines["GPU quota"]
    assert lines["project"].startswith("unknown  project, APIs, bucket, service account, ")
    assert lines["project"].endswith(", GPU quota: the settings have no project")
    assert {request.host for request in google.requests} == {"oauth2"}


def test_invalid_settings_are_one_line(examine: Doctor) -> None:
    lines = examine(region="europe-west99")
    assert re.match(r"missing  settings: \S+settings.toml: region: .*: correct it$", lines["settings"])


def test_missing_or_expired_credentials_are_reported_with_the_login(
    examine: Doctor, google: FakeGoogle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    google.faults.append(lambda request: (400, {"error": "invalid_grant"}) if request.host == "oauth2" else None)
    lines = examine()
    login = "gcloud auth application-default login"
    assert lines["credentials"] == f"missing  credentials: the credentials have expired or were revoked: {login}"
    assert re.fullmatch(r"unknown  project, .*, GPU quota: there are no credentials", lines["APIs"])
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    assert examine()["credentials"] == f"missing  credentials: no readable credentials were found: {login}"


def test_a_persons_own_credentials_name_the_quota_project(
    examine: Doctor, google: FakeGoogle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "own.json"
    own = {"type": "authorized_user", "client_id": "1", "client_secret": "planted", "refresh_token": "1//planted"}
    file.write_text(json.dumps(own))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    # For these the library has Google's address built in.
    monkeypatch.setattr("google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT", f"{google.url}/oauth2/token")
    lines = examine()
    assert lines["credentials"] == "ok       credentials: your own"
    assert lines["GPU quota"].startswith("ok ")
    assert {request.quota_project for request in google.requests if request.host != "oauth2"} == {"p1"}


def test_without_a_network_the_checks_of_google_are_one_line(
    examine: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, supabase: LocalSupabase
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key_file(tmp_path, "http://127.0.0.1:9")))
    lines = examine({"SUPABASE_KEY": supabase.secret_key})
    assert lines["credentials"] == lines["GPU quota"]
    assert re.fullmatch(r"unknown  credentials, project, .*: no network \(Google does not answer\)", lines["APIs"])
    assert lines["grants"].startswith("ok ")  # the embedded Supabase needs no network
    lines = examine({"SUPABASE_KEY": supabase.secret_key, "SUPABASE_URL": "http://127.0.0.1:9"})
    assert lines["grants"] == (
        "unknown  Supabase, migration, grants, table of ratings: http://127.0.0.1:9 does not answer"
    )


def test_losing_the_network_skips_the_remaining_checks(examine: Doctor, google: FakeGoogle) -> None:
    def cut(request: Request) -> None:
        if request.host == "iam.googleapis.com":
            raise ConnectionResetError

    google.faults.append(cut)
    lines = examine()
    assert lines["bucket"].startswith("ok ")
    assert re.fullmatch(
        r"unknown  service account, role on the project, .*: no network \(iam.googleapis.com does not answer\)",
        lines["service account"],
    )


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (
            {"SUPABASE_KEY": "{anon}"},
            "missing  Supabase: the key for {url} belongs to the role anon: set SUPABASE_KEY to ",
        ),
        (
            {"SUPABASE_KEY": "sb_secret_another"},
            "missing  Supabase: {url} does not accept the key: set SUPABASE_KEY to ",
        ),
        ({"SUPABASE_KEY": "ключ"}, "missing  Supabase: the key for {url} holds characters that no Supabase key has: "),
        (
            {"SUPABASE_URL": "abc"},
            "missing  Supabase: the Supabase URL is not of the form https://PROJECT.supabase.co: ",
        ),
        (
            {"SUPABASE_URL": "http://127.0.0.1:9"},
            "missing  Supabase: http://127.0.0.1:9 does not answer: correct supabase_url, or look at the project's ",
        ),
    ],
)
def test_a_wrong_key_or_address_is_reported(
    examine: Doctor, supabase: LocalSupabase, environ: dict[str, str], line: str
) -> None:
    values = {"anon": supabase.publishable_key, "url": supabase.url}
    lines = examine({name: value.format(**values) for name, value in environ.items()})
    assert lines["Supabase"].startswith(line.format(**values))
    assert lines["grants"].startswith("unknown  migration, grants, table of ratings: they need a project that accepts ")


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (Fault(status=540), "missing  Supabase: {url} answers 540: look at the project's dashboard: is it paused"),
        (
            Fault(status=200),
            "missing  Supabase: {url} does not answer like a Supabase project: correct supabase_url",
        ),
        (Fault(status=404), "unknown  Supabase: {url} answers, but does not list its tables and functions"),
    ],
)
def test_another_server_in_place_of_supabase_is_reported(
    examine: Doctor, supabase: LocalSupabase, fault: Fault, line: str
) -> None:
    supabase.gateway.faults = [lambda request: fault if request.path == "/rest/v1/" else None]
    try:
        lines = examine()
    finally:
        supabase.gateway.faults = []
    assert lines["Supabase"].startswith(line.format(url=supabase.url))
    if fault.status == 404:
        assert lines["grants"].startswith(
            "unknown  grants: 12 tables and views can be read; the project does not list "
        )


def test_a_project_without_the_migration_is_reported_with_the_command(
    examine: Doctor, fresh_stack: Callable[..., LocalSupabase], google: FakeGoogle
) -> None:
    empty = fresh_stack()
    lines = examine({"SUPABASE_KEY": empty.secret_key}, supabase_url=empty.url)
    assert lines["migration"].startswith("missing  migration: cannot read the options of the migration: ")
    assert lines["migration"].endswith(": apply what `python -m mf schema` prints")
    assert lines["grants"] == "unknown  grants: they need the migration"
    assert lines["table of ratings"].startswith("unknown  table of ratings: there is no table ratings: ")


def test_revoked_grants_and_older_functions_are_named(
    examine: Doctor, fresh_stack: Callable[..., LocalSupabase]
) -> None:
    old = fresh_stack(legacy_grants=False)
    environ = {"SUPABASE_KEY": old.secret_key}
    old.migrate(migration(SchemaConfig(user_id_type="uuid")))
    old.migrate(
        "revoke execute on function mf_publish from service_role;"
        "revoke select on user_embeddings from service_role;"
        "drop function similar_movies; drop function mf_prune;"
        "create function mf_prune() returns jsonb language sql as 'select null::jsonb';"
        "grant execute on function mf_prune to service_role; create table ratings (user_id bigint)"
    )
    lines = examine(environ, supabase_url=old.url)
    assert lines["migration"].startswith("ok       migration: applied for uuid users, bigint movies")
    assert lines["grants"] == (
        "missing  grants: similar_movies, mf_publish, mf_prune, user_embeddings differ from this release, or are "
        "not granted to the service role: apply what `python -m mf schema --user_id_type uuid` prints "
        "(docs/supabase.md)"
    )
    assert lines["table of ratings"].startswith(
        "missing  table of ratings: cannot read table ratings: permission denied"
    )
    assert lines["table of ratings"].endswith(": grant select on public.ratings to service_role;")

    old.migrate("drop table ratings; create or replace function mf_schema() returns jsonb language sql as "
                """'select ''{"user_id_type": "uuid"}''::jsonb'""")  # fmt: skip
    lines = examine(environ, supabase_url=old.url)
    assert lines["migration"].startswith("missing  migration: it is older than this code, without items_column, ")
    assert lines["table of ratings"] == (
        "unknown  table of ratings: there is no table ratings: runs need ratings_csv=gs://… or import_table=…"
    )


def test_a_database_error_is_reported_without_the_password(
    examine: Doctor, google: FakeGoogle, supabase: LocalSupabase
) -> None:
    for address, said in {
        "postgresql://postgres:planted@127.0.0.1:9/postgres": "cannot query the database: ",
        "planted": "SUPABASE_DB_URL is not of the form postgresql://",
    }.items():
        line = examine({"SUPABASE_DB_URL": address})["database"]
        assert line.startswith(f"missing  database: {said}")


def test_the_command_works_without_a_network_and_exits_with_1(tmp_path: Path) -> None:
    """In a process of its own, as ``make doctor`` runs it, on a machine without credentials."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NO_GCE_CHECK": "true"}
    command = [sys.executable, "-m", "pipelines", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=900)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok       Python: 3.")
    assert "missing  credentials: no readable credentials were found: gcloud auth application-default login" in lines
    assert [line for line in lines if line.startswith("unknown")] == [
        "unknown  project, APIs, bucket, service account, role on the project, role on the bucket, cpu image, "
        "gpu image, GPU quota: the settings have no project",
        "unknown  Supabase, migration, grants, table of ratings: neither the settings nor SUPABASE_URL has the URL "
        "of a "
        "project",
    ]
