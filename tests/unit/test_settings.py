import re
import tomllib
from pathlib import Path

import pytest

from mf.errors import ConfigError
from pipelines import settings
from pipelines.compiled import definitions
from pipelines.parameters import parse
from pipelines.settings import DEFAULT_FILE, Resources, Settings, images_file, write_images
from pipelines.training import machines_of

DIGEST = f"@sha256:{'0123456789abcdef' * 4}"
CPU, GPU = f"r/mf/mf-python-cpu{DIGEST}", f"r/mf/mf-python-gpu{DIGEST}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def load(file: Path, text: str = "", **environ: str) -> Settings:
    file.write_text(text)
    return Settings.load(file, environ)


def refusal(file: Path, text: str = "", **environ: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(file, text, **environ)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_settings_that_come_with_the_code_can_be_read_and_show_every_field() -> None:
    Settings.load(environ={})
    generated = {"cpu_image", "gpu_image"}
    shown = [name for name in Settings.model_fields if name not in generated]
    assert [*tomllib.loads(DEFAULT_FILE.read_text())] == shown


def test_the_machines_that_it_shows_are_the_steps_own() -> None:
    shown = Settings.load(environ={}).machines
    assert shown == machines_of(Settings())


def test_the_parameters_that_it_shows_are_the_pipelines_own_defaults() -> None:
    _, _, shown = DEFAULT_FILE.read_text().partition("[parameters]\n")
    lines = tomllib.loads(re.sub("^# ", "", shown, flags=re.MULTILINE))
    assert "train_accelerator_type" in lines
    assert lines == {name: definitions()[name]["defaultValue"] for name in lines}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('projct = "p"', "there is no setting 'projct'; there are target, project, region, pipeline_root, "),
        ("project = 7", "project: Input should be a valid string (given: 7)"),
        ('project = "My Project"', "project: expected the project's id (not its name or number): "),
        ('region = "europe-west"', "region: expected one of africa-south1, "),
        ('region = "europe-west4-a"', "region: expected one of africa-south1, "),
        ('pipeline_root = "bucket"', "pipeline_root: expected gs://bucket/folder, of letters, "),
        ('service_account = "steps"', "service_account: expected an account's e-mail address"),
        ('network = "default"', "network: expected projects/NUMBER/global/networks/NAME"),
        ('image_tag = "a b"', "image_tag: expected a tag: letters, digits, . _ and -"),
        (
            'image_repository = "Eu/mf"',
            "image_repository: expected a registry path such as europe-west4-docker.pkg.dev/",
        ),
        ('cpu_image = "r/mf/mf-python-cpu:v1"', "cpu_image: expected an image by digest, REGISTRY/NAME@sha256:…"),
        (f'cpu_image = "{CPU}"', "one of cpu_image and gpu_image is set; set both, as `make images` does, or neither"),
        (
            'supabase_key_secret = "key"',
            "supabase_key_secret: a name of the form projects/PROJECT/secrets/NAME/",
        ),
        ('supabase_key_secret = "sb_secret_a"', "supabase_key_secret looks like a Supabase secret key, and shows in"),
        ('supabase_url = "h.co"', "supabase_url: the address is not of the form https://PROJECT.supabase.co"),
        ('notify_emails = ["me"]', "notify_emails.0: expected an e-mail address such as me@example.com"),
        ('spot = "maybe"', "spot: Input should be a valid boolean"),
        ('[labels]\nTeam = "a"', "labels.Team.[key]: expected a lower-case letter, then"),
        ('[labels]\nteam = "A"', "labels.team: expected at most 63 of a-z, 0-9, _ and -"),
        ('[labels]\ngit_sha = "a"', "labels: every run has a git_sha of its own"),
        ("[parameters]\nepochs = [1]", "parameters.epochs"),
        ('[parameters]\nsupabase_url = "https://h.co"', "parameters: supabase_url is a setting, set it above"),
        ('[machines.train]\ncpu = "four"', "machines.train.cpu: expected CPU cores, for example 4, 0.5"),
        ('[machines.train]\ncpu = "0"', "machines.train.cpu: expected CPU cores, for example 4, 0.5"),
        ("[machines.train]\ncpu = 4", "machines.train.cpu: Input should be a valid string (given: 4)"),
        ('[machines.train]\nmemory = "16"', "machines.train.memory: expected a whole number and one of"),
        ('[machines.train]\nmemory = "0G"', "machines.train.memory: expected a whole number and one of"),
        ('[machines.train]\nmemory = "16GB"', "for example 16G; without a B: 16G, not 16GB"),
        ('pipeline_root = "gs:/bucket/a"', "pipeline_root: expected gs://bucket/folder, "),
        ('pipeline_root = "gs:/bucket/a"', "; gs: is followed by two slashes"),
        ('pipeline_root = "gs://bucket//a"', "; a folder has no name"),
        ('pipeline_root = "gs://bucket/a b"', "; it holds a blank"),
        ('pipeline_root = "gs://bucket/é"', "; it holds a character that is not ASCII"),
        ('pipeline_root = "https://storage.cloud.google.com/b/a"', "; this is a link for browsers: write gs://"),
        ('pipeline_root = "https://console.cloud.google.com/storage/browser/b"', "; this is a page of the console"),
        ('pipeline_root = "s3://bucket/a"', "pipeline_root: expected gs://bucket/folder on Vertex AI"),
        ('cuda = "13"', "cuda: Input should be 'cu130' or 'cu126'"),
        ('experiment = "My runs"', "experiment: expected a name of a-z, 0-9 and -, at most 128"),
        ('build_region = "here"', "build_region: expected one of africa-south1, "),
        (
            'kubernetes_secret = "mf"\nkubeflow_host = "http://h"',
            'kubeflow_host, kubernetes_secret: without a meaning on Vertex AI; leave them empty, or set target = "k',
        ),
        (
            'target = "kubeflow"\nproject = "p1"\nspot = true',
            "project, spot: without a meaning on open-source Kubeflow Pipelines; leave them empty, or set target = ",
        ),
        ('target = "kubeflow"\nservice_account = "a@b.co"', "service_account: expected a Kubernetes name"),
        ('pipeline_root = "gs://My-Bucket/runs"', "; a bucket's name has no capital letters"),
        ('pipeline_root = "GS://bucket/runs"', "; gs is written in small letters"),
        ('pipeline_root = "gs://"', "; it names no bucket"),
        ('pipeline_root = "gs://b/runs"', "; a bucket's name has 3 characters or more"),
        ('pipeline_root = "gs://bucket/../runs"', "; a folder is named . or .."),
        ('pipeline_root = "gs://bu..cket/runs"', "pipeline_root: expected gs://bucket/folder, "),
        ('pipeline_root = "gcs://bucket/runs"', "; write gs:// in place of gcs:"),
        ('pipeline_root = "/gcs/bucket/runs"', "; write gs:// in place of /gcs/"),
        ('pipeline_root = "gs:bucket/runs"', "; gs: is followed by two slashes"),
        ('pipeline_root = "bucket/runs"', "; write gs:// before it"),
        ('service_account = "serviceAccount:a@b.co"', "on Kubeflow; leave out serviceAccount:"),
        ('service_account = "projects/p/serviceAccounts/a@b.co"', "; leave out what stands before its e-mail address"),
        ('service_account = "a@b.co "', "; it holds a blank"),
        ('image_repository = "https://eu-docker.pkg.dev/p/mf"', "; leave out https://"),
        ('image_repository = "eu-docker.pkg.dev/p/mf/"', "; leave out the slash at its end"),
        ('image_repository = "eu-docker.pkg.dev/PROJECT/mf"', "; put your project's id in place of PROJECT"),
        ('image_repository = "eu-docker.pkg.dev/p/mf:v1"', "; leave out the tag: that is the setting image_tag"),
        (
            'supabase_url = "https://PROJECT.supabase.co"',
            "supabase_url: expected the project's address: PROJECT s",
        ),
        (
            'supabase_key_secret = "projects/PROJECT/secrets/k"',
            "supabase_key_secret: PROJECT stands for the project",
        ),
        ('region = "europe-west4-b"', "; did you mean europe-west4? (given: "),
        ('region = "US-Central1"', "; did you mean us-central1? (given: "),
        ('notify_emails = "me@example.com"', 'notify_emails: expected a list, ["me@example.com"]'),
        ("[parameters]\nlr = nan", "parameters.lr: expected a text, a finite number, true or false (given: nan)"),
        ("[parameters]\nepochs = 2026-01-01", "parameters.epochs: expected a text, a finite number, true or false"),
        (
            "[parameters.solver_options]\nl2 = [1]",
            "parameters.solver_options: expected a text, a finite ",
        ),
        ('target = "kubeflow"\nkubeflow_host = "localhost:8080"', "; put http:// or https:// before it"),
        ("[machines.train]\ngpus = 1", "machines.train.gpus: Extra inputs are not permitted"),
        ('region = "mars"\nspot = "maybe"', "2 values are not valid: region: expected one of"),
        ("project = p", "is no TOML: Invalid value (at line 1, column 11)"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line_with_the_file_and_the_name(file: Path, text: str, said: str) -> None:
    message = refusal(file, text)
    assert message.startswith(f"{file}")
    assert said in message


def test_what_looks_like_a_secret_is_not_shown(file: Path) -> None:
    for text in ('supabase_url = "https://u:hunter2@h.co"', '[labels]\nteam = "sb_secret_hunter2"'):
        assert "hunter2" not in refusal(file, text)
    assert "hunter2" not in refusal(file, MF_PROJECT="sb_secret_hunter2")


def test_a_missing_file_is_one_line(file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        Settings.load(file)
    assert str(error.value) == f"{file}: No such file or directory, expected a settings file"


def test_the_environment_stands_above_the_file(file: Path) -> None:
    text = 'project = "p"\nregion = "us-east1"\n[labels]\nteam = "a"\nowner = "o"\n[parameters]\nepochs = 3\n'
    text += "[parameters.solver_options]\npatience = 1\n[machines.train]\ncpu = '12'\n[machines.split]\nmemory = '8G'"
    environ = {
        "MF_REGION": "us-west1",
        "MF_SPOT": "true",
        "MF_NOTIFY_EMAILS": "a@h.co b@h.co",
        "MF_LABELS": "team=b",
        "MF_PARAMETERS": "factors=32 columns='a b=c' solver_options.l2=0.1",
        "MF_MACHINES": "train.cpu=16 train.memory=64G split.cpu=2",
        "MF_GIT_SHA": "no setting",
    }
    loaded = load(file, text, **environ)
    assert (loaded.project, loaded.region, loaded.spot) == ("p", "us-west1", True)
    assert loaded.notify_emails == ("a@h.co", "b@h.co")
    assert loaded.labels == {"team": "b", "owner": "o"}
    options = {"patience": 1, "l2": "0.1"}
    assert loaded.parameters == {"epochs": 3, "factors": "32", "columns": "a b=c", "solver_options": options}
    assert loaded.machines == {
        "train": Resources(cpu="16", memory="64G"), "split": Resources(cpu="2", memory="8G")
    }  # fmt: skip


def test_a_process_reads_its_own_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("")
    monkeypatch.setenv("MF_PROJECT", "from-outside")
    assert Settings.load(file).project == "from-outside"


def test_what_cannot_be_in_the_environment_is_said_of_the_environment(file: Path) -> None:
    assert refusal(file, MF_REGION="mars").startswith("MF_REGION: region: expected one of africa-south1, ")
    assert refusal(file, MF_PARAMETERS="columns='a").startswith("MF_PARAMETERS: no closing quotation, expected words")


def test_the_parameters_are_what_a_person_would_give_to_a_run(file: Path) -> None:
    text = "[parameters]\nepochs = 3\nlr = 1e-3\nhnsw_index = true\ncolumns = 16\nsolver = 'adam'\n"
    text += "[parameters.solver_options]\npatience = 1\nschedule = 'constant'"
    values = parse(load(file, text).defaults(), definitions())
    expected = {"epochs": 3, "lr": 0.001, "hnsw_index": True, "columns": "16", "solver": "adam"}
    assert values == {**expected, "solver_options": {"patience": 1, "schedule": "constant"}}


def test_an_image_is_named_by_its_digest_else_by_the_tag_of_the_settings_else_by_the_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "git_sha", lambda: "0123abc-dirty")
    named = Settings(image_repository="r/mf", image_tag="v1")
    assert (named.image("gpu"), named.pinned) == ("r/mf/mf-python-gpu:v1", False)
    assert Settings(image_repository="r/mf").image("cpu") == "r/mf/mf-python-cpu:0123abc"
    pinned = Settings(image_repository="r/mf", image_tag="v1", cpu_image=CPU, gpu_image=GPU)
    assert (pinned.image("cpu"), pinned.image("gpu"), pinned.pinned) == (CPU, GPU, True)


def test_the_images_that_make_images_built_override_the_settings_and_not_the_environment(file: Path) -> None:
    file.write_text(f'project = "p"\ncpu_image = "{CPU}"\ngpu_image = "{GPU}"\n')
    other = {"cpu_image": CPU.replace("0", "1"), "gpu_image": GPU.replace("0", "1")}
    assert write_images(file, other) == file.with_name("settings.images.toml")
    assert [Settings.load(file, {}).image(kind) for kind in ("cpu", "gpu")] == [*other.values()]
    given = {"MF_CPU_IMAGE": CPU, "MF_GPU_IMAGE": GPU}
    assert [Settings.load(file, given).image(kind) for kind in ("cpu", "gpu")] == [CPU, GPU]
    images_file(file).unlink()
    assert Settings.load(file, {}).image("cpu") == CPU


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": found nothing, expected cpu_image and gpu_image: run `make images`"),
        (f'cpu_image = "{CPU}"', ": found cpu_image, expected cpu_image and gpu_image: run `make images`"),
        (f'cpu_image = "{CPU}"\ngpu_image = "v1"', ": gpu_image: expected an image by digest"),
        ("cpu_image = ", " is no TOML: "),
    ],
)
def test_a_generated_file_that_was_edited_is_one_line_with_its_own_name(file: Path, text: str, said: str) -> None:
    file.write_text('project = "p"\n')
    images_file(file).write_text(text)
    with pytest.raises(ConfigError) as error:
        Settings.load(file, {})
    assert str(error.value).startswith(f"{images_file(file)}{said}")


def test_an_image_that_is_not_named_by_digest_is_not_written(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"settings\.images\.toml: cpu_image: expected an image by digest"):
        write_images(file, {"cpu_image": "r/mf/mf-python-cpu:v1", "gpu_image": GPU})
    assert not images_file(file).exists()


def test_no_error_shows_a_regular_expression(file: Path) -> None:
    names = ("project", "pipeline_root", "service_account", "network", "image_tag", "cpu_image", "experiment")
    said = refusal(file, "".join(f'{name} = "( )"\n' for name in names))
    assert said.startswith(f"{file}: 7 values are not valid: ")
    assert not re.search(r"[\^$\\]|\[\^|\(\?", said.removeprefix(str(file)))


def test_the_pipeline_root_may_end_with_a_slash_and_be_a_bucket(file: Path) -> None:
    for root in ("gs://bucket", "gs://bucket/", "gs://bucket/a.b/c_d-e/"):
        assert load(file, f'pipeline_root = "{root}"').pipeline_root == root
    assert load(file, 'target = "kubeflow"\npipeline_root = "minio://bucket/a"').target == "kubeflow"


@pytest.mark.parametrize("repository", ["", "mf", "team/mf", "mf-images/team/mf"])
def test_images_that_docker_hub_would_be_asked_for_are_refused(repository: str) -> None:
    with pytest.raises(ConfigError) as error:
        Settings(image_repository=repository, image_tag="v1").check_images()
    found = f": found {repository!r}, which names no registry, and an image" if repository else " is empty: set it"
    assert str(error.value).startswith(f"image_repository{found}")
    assert "docker.pkg.dev/PROJECT/mf, " in str(error.value)
    assert "then run `make images`" in str(error.value)
    Settings(image_repository=repository, cpu_image=CPU, gpu_image=GPU).check_images()


@pytest.mark.parametrize("repository", ["europe-west4-docker.pkg.dev", "europe-west4-docker.pkg.dev/my-project"])
def test_a_path_of_artifact_registry_has_a_project_and_a_repository(repository: str) -> None:
    with pytest.raises(ConfigError, match="expected the project and the repository after the host, europe"):
        Settings(image_repository=repository, image_tag="v1").check_images()


@pytest.mark.parametrize(
    "repository", ["europe-west4-docker.pkg.dev/p/mf", "docker.io/me/mf", "localhost/mf", "h:5000/mf"]
)
def test_images_of_a_registry_are_not_refused(repository: str) -> None:
    Settings(image_repository=repository, image_tag="v1").check_images()


def test_images_without_a_commit_for_their_tag_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "git_sha", lambda: "unknown")
    with pytest.raises(ConfigError, match=r"tag is not known: .*safe\.directory FOLDER.*: run `make images` in a git "):
        Settings(image_repository="eu.example/mf").check_images()
    Settings(image_repository="eu.example/mf", image_tag="v1").check_images()


def test_images_that_nobody_named_have_a_name_that_no_registry_can_have() -> None:
    assert Settings(image_tag="v1").image("cpu") == "image-repository-is-not-set.invalid/mf-python-cpu:v1"
