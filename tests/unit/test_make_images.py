"""Building and pushing the images, with stand-ins for docker, podman and gcloud that record their calls.

Whether the real programs accept these commands is tested by tests/images/check and a Google Cloud project only.
"""

import json
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from programs import write_program

from mf.errors import ConfigError, MfError
from pipelines.__main__ import main
from pipelines.settings import Settings
from pipelines.vertex import images

SETTINGS = Settings(image_repository="registry.example/team/mf", project="films")
CPU, GPU = (f"registry.example/team/mf/mf-python-{kind}:abc123" for kind in ("cpu", "gpu"))
CPU_DIGEST, GPU_DIGEST = f"sha256:{'c' * 64}", f"sha256:{'d' * 64}"
HEAD = """
import json, os, pathlib, sys
called = sys.argv[1:]
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(called) + "\\n")
def flag(name):
    return next((a.partition("=")[2] for a in called if a.startswith(name + "=")), "")
def digest(name):
    return "sha256:" + ("c" if "-cpu" in name else "d") * 64
"""
ENGINE = """
if called[0] == "build":
    seen = {str(p.relative_to(called[-1])) for p in pathlib.Path(called[-1]).rglob("*") if p.is_file()}
    secret = pathlib.Path(flag("--secret").partition("src=")[2]).read_text()
    pathlib.Path(os.environ["CALLS"]).with_name("built.json").write_text(json.dumps([sorted(seen), secret]))
elif called[0] == "push" and flag("--digestfile"):
    pathlib.Path(flag("--digestfile")).write_text(digest(called[-1]))
elif called[0] == "inspect":
    name = called[-1].rpartition(":")[0]
    print(json.dumps(["elsewhere.example/mf@sha256:" + "0" * 64, name + "@" + digest(name)]))
elif called[0] == "history":
    print("0B\\tCMD [python3]\\n1.23MB\\t/bin/sh -c #(nop) COPY dir:1 in /opt/mf\\n2.7 GB\\tRUN   a base")
"""
CLOUD = """
if "log" in called and os.environ.get("LOG_DENIED"):
    sys.exit("ERROR: (gcloud.builds.log) PERMISSION_DENIED: The caller does not have permission")
elif "submit" in called:
    print("build-" + ("cpu" if "-cpu" in flag("--substitutions") else "gpu"))
elif "describe" in called:
    kind = called[called.index("describe") + 1].removeprefix("build-")
    name = f"registry.example/team/mf/mf-python-{kind}:abc123"
    asked = pathlib.Path(os.environ["CALLS"]).with_name("asked-" + kind)
    before = len(asked.read_text()) if asked.exists() else 0
    asked.write_text("x" * (before + 1))
    if os.environ.get("DESCRIBE_DENIED") or before == int(os.environ.get("LOST", "-1")):
        sys.exit("ERROR: (gcloud.builds.describe) no answer")
    if os.environ.get("RECORD"):
        print(os.environ["RECORD"])
        sys.exit()
    working = before < int(os.environ.get("WORKING", "0"))
    status = "WORKING" if working else os.environ.get("STATUS", "SUCCESS")
    ended = {"status": status, "logUrl": "https://log.example/1"}
    print(json.dumps({**ended, "results": {"images": [{"name": name, "digest": digest(name)}]}}))
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with git, a checkout, and the programs that a test installs: ``machine(docker=ENGINE)``."""
    root, programs = tmp_path / "checkout", tmp_path / "bin"
    programs.mkdir()
    for name in ("git", "gzip"):
        (programs / name).symlink_to(shutil.which(name))
    for source in (
        ".dockerignore",
        "LICENSE",
        "THIRD_PARTY.md",
        "images/Dockerfile",
        "mf/__init__.py",
        "requirements/image.lock",
    ):
        (root / source).parent.mkdir(parents=True, exist_ok=True)
        (root / source).write_text("committed\n")
    git = ["git", "-C", root, "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=all"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(images, "ROOT", root)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("MF_GIT_SHA", "abc123")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for option in images.PIP_OPTIONS:
        monkeypatch.delenv(f"PIP_{option.upper().replace('-', '_')}", raising=False)

    def install(**contents):
        for name, content in contents.items():
            write_program(programs / name, HEAD + content, "-IS")
        return root

    return install


def calls(tmp_path, first):
    """The calls of the stand-ins that have a word."""
    recorded = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    return [call for call in recorded if first in call]


def test_docker_builds_both_images_and_returns_the_digests_of_the_registry(machine, tmp_path, capfd):
    machine(docker=ENGINE)
    assert images.make_images(SETTINGS) == {
        "cpu_image": f"registry.example/team/mf/mf-python-cpu@{CPU_DIGEST}",
        "gpu_image": f"registry.example/team/mf/mf-python-gpu@{GPU_DIGEST}",
    }
    built = [{a for a in call if a.startswith(("--build-arg", "--tag"))} for call in calls(tmp_path, "build")]
    assert built == [
        {"--build-arg=GIT_SHA=abc123", f"--build-arg=KIND={kind}", f"--tag={name}"}
        for kind, name in (("cpu", CPU), ("gpu", GPU))
    ]
    assert [call[-1] for call in calls(tmp_path, "push")] == [CPU, GPU]
    shown = capfd.readouterr().out
    assert f"{CPU}\n  {CPU_DIGEST}\n    2,700.0 MB  RUN   a base\n        1.2 MB  COPY dir:1 in /opt/mf\n" in shown


def test_podman_writes_the_digest_that_it_pushed(machine, tmp_path):
    machine(podman=ENGINE)
    assert images.make_images(SETTINGS)["gpu_image"] == f"registry.example/team/mf/mf-python-gpu@{GPU_DIGEST}"
    assert calls(tmp_path, "inspect") == []


def test_podman_builds_independent_stages_in_parallel(machine, tmp_path):
    machine(podman=ENGINE)
    images.make_images(SETTINGS, cpu_only=True)
    machine(docker=ENGINE)
    images.make_images(SETTINGS, cpu_only=True)
    assert ["--jobs=0" in call for call in calls(tmp_path, "build")] == [True, False]


def test_a_docker_without_its_daemon_is_skipped(machine, tmp_path):
    machine(docker="sys.exit(1)", podman=ENGINE)
    images.make_images(SETTINGS)
    assert calls(tmp_path, "images") == [["images", "--quiet"]] * 2
    assert len(calls(tmp_path, "build")) == 2


def test_cpu_only_builds_one_image_for_all_steps(machine, tmp_path):
    machine(docker=ENGINE)
    cpu = f"registry.example/team/mf/mf-python-cpu@{CPU_DIGEST}"
    assert images.make_images(SETTINGS, cpu_only=True) == {"cpu_image": cpu, "gpu_image": cpu}
    assert len(calls(tmp_path, "build")) == 1


def test_only_committed_files_go_to_the_builder(machine, tmp_path):
    root = machine(docker=ENGINE)
    (root / "key.txt").write_text("sb_secret_planted")
    images.make_images(SETTINGS)
    seen, _ = json.loads((tmp_path / "built.json").read_text())
    assert seen == [
        ".dockerignore",
        "LICENSE",
        "THIRD_PARTY.md",
        "images/Dockerfile",
        "mf/__init__.py",
        "requirements/image.lock",
    ]


@pytest.mark.parametrize("file", ["mf/__init__.py", "mf/new.py"])
def test_an_uncommitted_file_of_the_images_is_refused_before_building(machine, tmp_path, file):
    (machine(docker=ENGINE) / file).write_text("changed")
    with pytest.raises(
        ConfigError,
        match=rf"1 of the images' files differ from the last commit, the first is "
        rf"{file}: commit",
    ):
        images.make_images(SETTINGS)
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("file", ["mf/key.py", "requirements/index.txt"])
@pytest.mark.parametrize(
    "secret", ["sb_secret_hunter2-hunter2", "https://me:hunter2@index.example", "-----BEGIN PRIVATE KEY-----hunter2"]
)
def test_a_committed_secret_or_one_in_the_base_images_name_is_refused(machine, tmp_path, file, secret):
    root = machine(docker=ENGINE)
    with pytest.raises(ConfigError, match=r"^BASE_IMAGE looks like"):
        images.make_images(SETTINGS, base_image=secret)
    (root / file).write_text(f"KEY = {secret!r}\n")
    git = ["git", "-C", root, "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["add", "."], ["commit", "--quiet", "--message=more"]):
        subprocess.run([*git, *command], check=True)
    with pytest.raises(ConfigError, match=f"^{file} holds an? .*, and would be in the image") as refused:
        images.make_images(SETTINGS)
    assert "hunter2" not in str(refused.value)
    assert not (tmp_path / "calls").exists()


def test_an_index_with_a_password_is_not_sent_to_cloud_build(machine, tmp_path):
    machine(gcloud=CLOUD)
    with pytest.raises(ConfigError, match=r"^TORCH_INDEX looks like an address with a password"):
        images.make_images(SETTINGS, torch_index="https://me:hunter2@torch.example")
    assert not (tmp_path / "calls").exists()


def test_settings_without_a_registry_path_are_refused(machine):
    machine(docker=ENGINE)
    with pytest.raises(ConfigError, match="image_repository is empty: set it in "):
        images.make_images(Settings())


def test_a_machine_without_a_build_tool_is_an_error(machine):
    machine()
    with pytest.raises(MfError, match="no working docker or podman, and no gcloud"):
        images.make_images(SETTINGS)


def test_a_failed_build_is_one_line(machine):
    machine(docker="sys.exit(9 if called[0] == 'build' else 0)")
    with pytest.raises(MfError, match="docker build ended with status 9: the lines above say why"):
        images.make_images(SETTINGS)


@pytest.mark.parametrize(
    ("repository", "said"),
    [
        ("eu-docker.pkg.dev/p1/mf", r"gcloud auth configure-docker eu-docker\.pkg\.dev$"),
        ("registry.example/team/mf", r"podman login registry\.example$"),
    ],
)
def test_a_refused_push_says_how_to_log_in_there(machine, repository, said):
    machine(podman="sys.exit(called[0] == 'push')")
    with pytest.raises(MfError, match=rf"podman push ended with status 1: may this machine push there\? {said}"):
        images.make_images(SETTINGS.model_copy(update={"image_repository": repository}), cpu_only=True)


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("null", "is pushed, but docker does not tell its digest: it has none"),
        ("[]", "is pushed, but docker does not tell its digest: it has none"),
        ('["elsewhere.example/mf@sha256:0"]', "does not tell its digest: elsewhere.example/mf@sha256:0"),
    ],
)
def test_a_docker_that_knows_no_digest_is_one_line(machine, listed, said):
    machine(docker=ENGINE.replace("print(json.dumps([", f"print({listed!r}); sys.exit()\n    print(json.dumps(["))
    with pytest.raises(MfError, match=said):
        images.make_images(SETTINGS, cpu_only=True)


def test_docker_hubs_digests_have_no_host(machine):
    machine(docker=ENGINE.replace('name + "@"', 'name.removeprefix("docker.io/") + "@"'))
    made = images.make_images(SETTINGS.model_copy(update={"image_repository": "docker.io/me/mf"}), cpu_only=True)
    assert made["cpu_image"] == f"docker.io/me/mf/mf-python-cpu@{CPU_DIGEST}"


def test_layers_of_unknown_size_are_left_out(machine):
    machine(docker=ENGINE.replace("0B\\t", "<missing>\\tRUN x\\n1.5MiB\\tRUN y\\n0B\\t"))
    assert images.layers("docker", "a:1") == [(2700.0, "RUN   a base"), (1.23, "COPY dir:1 in /opt/mf"), (1.5, "RUN y")]


def test_without_git_or_a_checkout_the_command_says_so(machine, tmp_path, capfd):
    root = machine(docker=ENGINE)
    shutil.rmtree(root / ".git")
    with pytest.raises(MfError, match="git status ended with status 128: the lines above say why"):
        images.make_images(SETTINGS)
    assert "not a git repository" in capfd.readouterr().err
    (tmp_path / "bin" / "git").unlink()
    with pytest.raises(ConfigError, match="git is missing, and the images are built from this checkout's commit"):
        images.make_images(SETTINGS)


def test_a_pipeline_without_a_gpu_needs_one_image(machine, tmp_path, capfd):
    machine(docker=ENGINE)
    images.make_images(SETTINGS.model_copy(update={"parameters": {"train_accelerator_count": 0}}))
    assert [call[-1] for call in calls(tmp_path, "push")] == [CPU]
    images.make_images(SETTINGS, cpu_only=True)
    assert "the pipeline needs train_accelerator_count = 0 under [parameters] in pipelines/s" in capfd.readouterr().out


def test_cloud_build_is_not_used_for_kubeflow(machine):
    machine(gcloud=CLOUD)
    with pytest.raises(MfError, match="found no working docker or podman: install one of them, or start it"):
        images.make_images(Settings(target="kubeflow", image_repository="registry.example/team/mf"))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"status": "TIMEOUT"}, f"Cloud Build could not build {CPU}: TIMEOUT$"),
        ({"status": "SUCCESS"}, f"build-cpu succeeded and pushed nothing, expected {CPU}$"),
        (
            {"status": "SUCCESS", "results": {"images": [{"name": "other:1", "digest": "sha256:0"}]}},
            "build-cpu succeeded and pushed other:1, expected ",
        ),
    ],
)
def test_a_build_that_ends_otherwise_is_one_line(machine, monkeypatch, record, said):
    machine(gcloud=CLOUD)
    monkeypatch.setenv("RECORD", json.dumps(record))
    with pytest.raises(MfError, match=said):
        images.make_images(SETTINGS, cpu_only=True)


def test_pip_in_the_build_gets_the_configuration_of_pip_on_the_machine(machine, tmp_path, monkeypatch):
    machine(podman=ENGINE)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\ntimeout = 7\nextra-index-url = https://a.example\n  https://b.example\nno-color = true\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_TIMEOUT", "9")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{wheels} https://c.example")
    images.make_images(SETTINGS, torch_index="https://torch.example")
    _, configuration = json.loads((tmp_path / "built.json").read_text())
    # The machine's own /etc/pip.conf may have more.
    assert {
        "[global]",
        "extra-index-url = https://a.example https://b.example https://torch.example",
        f"find-links = {wheels} https://c.example",
        "timeout = 9",
    } <= set(configuration.splitlines())
    assert "no-color" not in configuration
    assert f"--volume={wheels}:{wheels}:ro" in calls(tmp_path, "build")[0]


def test_local_folders_are_left_out_of_the_configuration_for_docker(machine, tmp_path, monkeypatch):
    machine(docker=ENGINE)
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path} https://c.example")
    images.make_images(SETTINGS)
    _, configuration = json.loads((tmp_path / "built.json").read_text())
    assert configuration == "[global]\nfind-links = https://c.example\n"


def test_an_index_on_disk_is_mounted_with_the_files_beside_it(machine, tmp_path, monkeypatch):
    machine(podman=ENGINE)
    simple = tmp_path / "index" / "simple"
    simple.mkdir(parents=True)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file://{simple}")
    assert images.pip_configuration("", with_paths=True)[1] == [simple.parent]


def test_cloud_build_is_used_without_docker_and_podman(machine, tmp_path):
    machine(gcloud=CLOUD)
    assert images.make_images(SETTINGS, torch_index="https://torch.example") == {
        "cpu_image": f"registry.example/team/mf/mf-python-cpu@{CPU_DIGEST}",
        "gpu_image": f"registry.example/team/mf/mf-python-gpu@{GPU_DIGEST}",
    }
    cpu, _ = calls(tmp_path, "submit")
    assert cpu[:3] == ["builds", "--project=films", "submit"]
    assert cpu[-1] == (
        f"--substitutions=_IMAGE={CPU},_KIND=cpu,_TORCH_INDEX=https://torch.example,_BASE_IMAGE=,_CUDA=,_GIT_SHA=abc123"
    )
    assert [call[-1] for call in calls(tmp_path, "--stream")] == ["build-cpu", "build-gpu"]


def test_a_build_whose_log_may_not_be_read_is_asked_for_its_end(machine, tmp_path, monkeypatch, capfd):
    machine(gcloud=CLOUD)
    monkeypatch.setattr(images, "POLL_S", 0.01)
    for name, value in {"LOG_DENIED": "1", "WORKING": "3", "LOST": "1"}.items():
        monkeypatch.setenv(name, value)
    assert images.make_images(SETTINGS, cpu_only=True)["cpu_image"].endswith(f"mf-python-cpu@{CPU_DIGEST}")
    assert len(calls(tmp_path, "describe")) == 4
    assert "the log of the build build-cpu cannot be shown; waiting for its end" in capfd.readouterr().out


def test_a_build_that_cannot_be_asked_about_is_one_line(machine, tmp_path, monkeypatch):
    machine(gcloud=CLOUD)
    monkeypatch.setattr(images, "POLL_S", 0.01)
    monkeypatch.setenv("DESCRIBE_DENIED", "1")
    with pytest.raises(MfError, match=r"the build build-cpu of \S+ goes on, but its state cannot be read: ERROR: "):
        images.make_images(SETTINGS, cpu_only=True)


def test_cloud_build_runs_in_the_region_of_the_settings(machine, tmp_path):
    machine(gcloud=CLOUD)
    images.make_images(SETTINGS.model_copy(update={"build_region": "europe-west4"}), cpu_only=True)
    for verb in ("submit", "log", "describe"):
        (call,) = calls(tmp_path, verb)
        assert "--region=europe-west4" in call


def test_docker_without_buildkit_is_passed_over(machine, tmp_path, capfd):
    no_buildx = "if called[0] == 'buildx': sys.exit(1)\nif called[0] == 'version': print('{}')\n"
    machine(docker=no_buildx.format("26.1.5") + ENGINE, podman=ENGINE)
    assert images.find_engine() == "podman"
    assert "docker is not used: it has neither BuildKit nor the plugin buildx" in capfd.readouterr().out
    machine(docker=no_buildx.format("20.10.24") + ENGINE)
    assert images.find_engine() == "docker"


def test_docker_builds_with_buildkit_whatever_its_version(machine, tmp_path):
    seen = "pathlib.Path(os.environ['CALLS']).with_name('buildkit').write_text(os.environ.get('DOCKER_BUILDKIT', ''))\n"
    machine(docker=ENGINE + "if called[0] == 'build': " + seen)
    images.make_images(SETTINGS, cpu_only=True)
    assert (tmp_path / "buildkit").read_text() == "1"


def test_another_cuda_build_is_an_argument_of_the_build(machine, tmp_path):
    machine(docker=ENGINE)
    images.make_images(SETTINGS.model_copy(update={"cuda": "cu126"}))
    assert ["--build-arg=CUDA=cu126" in call for call in calls(tmp_path, "build")] == [True, True]


def test_a_failed_cloud_build_names_its_log(machine, monkeypatch):
    machine(gcloud=CLOUD)
    monkeypatch.setenv("STATUS", "FAILURE")
    with pytest.raises(MfError, match=f"Cloud Build could not build {CPU}: FAILURE, its log: https://log.example/1"):
        images.make_images(SETTINGS)


def test_cloud_build_needs_a_project(machine):
    machine(gcloud=CLOUD)
    with pytest.raises(ConfigError, match="project is empty"):
        images.make_images(Settings(image_repository="registry.example/team/mf"))


def test_cloudbuild_yaml_uses_every_substitution(machine, tmp_path):
    text = (Path(__file__).parents[2] / "images/cloudbuild.yaml").read_text()
    machine(gcloud=CLOUD)
    images.make_images(SETTINGS, cpu_only=True)
    (submitted,) = calls(tmp_path, "submit")
    given = {pair.partition("=")[0] for pair in submitted[-1].removeprefix("--substitutions=").split(",")}
    build = yaml.safe_load(text)
    (step,) = build["steps"]
    used = {value for _, _, value in (variable.partition("=") for variable in step["env"][1:])}
    assert used == {f"${{{name}}}" for name in given}
    assert build["images"] == ["${_IMAGE}"]


def test_the_command_writes_the_digests_to_their_own_file_and_leaves_the_settings(machine, tmp_path, capsys):
    machine(docker=ENGINE)
    settings = tmp_path / "settings.toml"
    text = 'image_repository = "registry.example/team/mf"\n'
    settings.write_text(text)
    main(["images", "--settings", str(settings)])
    images = tmp_path / "settings.images.toml"
    assert tomllib.loads(images.read_text()) == {
        "cpu_image": f"registry.example/team/mf/mf-python-cpu@{CPU_DIGEST}",
        "gpu_image": f"registry.example/team/mf/mf-python-gpu@{GPU_DIGEST}",
    }
    assert settings.read_text() == text
    assert capsys.readouterr().out.endswith(f"\nwrote {images}\n")
