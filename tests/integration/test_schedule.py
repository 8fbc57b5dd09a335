"""Schedules: the requests of the real SDK, and one schedule per name whatever fails."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from compiling import compile_once
from fake_vertex import FakeVertex, Fault, fake_vertex, send_sdk_to

from pipelines.__main__ import main
from pipelines.compiled import compile_pipeline
from pipelines.settings import Settings

DIGEST = f"@sha256:{'0123456789abcdef' * 4}"
SETTINGS = {
    "project": "p1",
    "region": "europe-west4",
    "pipeline_root": "gs://mf-bucket/runs",
    "service_account": "steps@p1.iam.gserviceaccount.com",
    "cpu_image": f"r/mf/mf-python-cpu{DIGEST}",
    "gpu_image": f"r/mf/mf-python-gpu{DIGEST}",
    "supabase_url": "https://example.supabase.co",
    "supabase_key_secret": "projects/p1/secrets/supabase-key",
}
EVERY_NIGHT = "--cron=0 3 * * *"
Run = Callable[..., str]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("compiled") / "mf-training.yaml"
    compile_pipeline(Settings.of(**SETTINGS), file)
    return file


@pytest.fixture
def vertex(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVertex]:
    compile_once(monkeypatch)
    with fake_vertex() as fake:
        send_sdk_to(fake, monkeypatch)
        yield fake


@pytest.fixture
def run(tmp_path: Path, compiled: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command that must exit with ``status``, and returns its output."""

    def run(
        command: str,
        *flags: str,
        settings: Mapping[str, str] = SETTINGS,
        more: str = "",
        file: Path = compiled,
        status: int = 0,
    ) -> str:
        toml = tmp_path / "settings.toml"
        toml.write_text("".join(f'{name} = "{value}"\n' for name, value in settings.items()) + more)
        words = [command, f"--settings={toml}", *([f"--file={file}"] if command == "schedule" else []), *flags]
        if not status:
            main(words)
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as end:
            main(words)
        printed = capsys.readouterr()
        assert (end.value.code, printed.out, printed.err.count("\n")) == (status, "", 1)
        return printed.err

    return run


def only(vertex: FakeVertex) -> dict[str, Any]:
    (schedule,) = vertex.schedules.values()
    return schedule


def test_a_schedule_holds_the_whole_pipeline_and_starts_one_run_at_a_time(vertex: FakeVertex, run: Run) -> None:
    said = run("schedule", EVERY_NIGHT, "--tz=Europe/Berlin", "--param=epochs=3")
    (sent,) = vertex.changes
    assert (sent.method, sent.path) == ("POST", "/v1/projects/p1/locations/europe-west4/schedules")
    schedule = sent.body
    assert (schedule["displayName"], schedule["cron"]) == ("mf-training", "TZ=Europe/Berlin 0 3 * * *")
    assert schedule["maxConcurrentRunCount"] == "1"
    job = schedule["createPipelineJobRequest"]["pipelineJob"]
    assert job["serviceAccount"] == SETTINGS["service_account"]
    assert job["runtimeConfig"]["parameterValues"] == {"epochs": 3, "split": "hash"}
    assert job["runtimeConfig"]["gcsOutputDirectory"] == SETTINGS["pipeline_root"]
    assert {*job["labels"]} == {"git_sha", "version", "content"}
    executors = job["pipelineSpec"]["deploymentSpec"]["executors"]
    images = {name: executor["container"]["image"] for name, executor in executors.items()}
    assert {image for name, image in images.items() if name not in ("exec-train", "exec-refit")} == {
        SETTINGS["cpu_image"]
    }
    assert images["exec-train"] == SETTINGS["gpu_image"]

    lines = said.splitlines()
    assert lines[0] == f"scheduled mf-training: {only(vertex)['name']}"
    assert lines[1] == f"pipeline  mf-training.yaml with content hash {job['labels']['content']}"
    assert lines[2:4] == [f"image     {SETTINGS['cpu_image']}", f"image     {SETTINGS['gpu_image']}"]
    assert "  train     8 CPU, 32G, 1 NVIDIA_L4" in lines
    times = [line for line in lines if line.startswith("next run")]
    assert len(times) == 3
    assert all(" 03:00 CE" in time for time in times)


def test_the_same_schedule_is_not_created_twice(vertex: FakeVertex, run: Run) -> None:
    run("schedule", EVERY_NIGHT, "--param=epochs=3")
    before = only(vertex)
    asked = len(vertex.changes)
    said = run("schedule", "--cron=0  3 * * *", "--param=epochs=3")
    assert said.startswith(f"unchanged mf-training: {before['name']}\n")
    assert len(vertex.changes) == asked
    assert only(vertex) is before


@pytest.mark.parametrize(
    ("flags", "more"),
    [
        ([EVERY_NIGHT, "--param=epochs=4"], ""),
        ([EVERY_NIGHT], ""),
        (["--cron=0 4 * * *", "--param=epochs=3"], ""),
        ([EVERY_NIGHT, "--param=epochs=3", "--tz=Europe/Berlin"], ""),
        ([EVERY_NIGHT, "--param=epochs=3"], '[labels]\nteam = "films"\n'),
        ([EVERY_NIGHT, "--param=epochs=3"], 'network = "projects/1/global/networks/n"\n'),
    ],
)
def test_a_schedule_that_differs_is_replaced(vertex: FakeVertex, run: Run, flags: list[str], more: str) -> None:
    run("schedule", EVERY_NIGHT, "--param=epochs=3")
    old = only(vertex)["name"]
    said = run("schedule", *flags, more=more)
    assert only(vertex)["name"] != old
    assert [request.method for request in vertex.changes] == ["POST", "POST", "DELETE"]
    assert said.startswith(f"deleted   the previous one: {old}\nscheduled mf-training: {only(vertex)['name']}\n")


def test_another_pipeline_replaces_the_schedule(vertex: FakeVertex, run: Run, tmp_path: Path) -> None:
    run("schedule", EVERY_NIGHT)
    old, file = only(vertex)["name"], tmp_path / "other.yaml"
    images = {"cpu_image": SETTINGS["cpu_image"].replace("0", "1")}
    compile_pipeline(Settings.of(**SETTINGS | images), file)
    run("schedule", EVERY_NIGHT, settings=SETTINGS | images, file=file)
    assert only(vertex)["name"] != old


def test_a_schedule_that_was_edited_by_hand_is_replaced(vertex: FakeVertex, run: Run) -> None:
    for change in ({"cron": "TZ=UTC 0 5 * * *"}, {"maxConcurrentRunCount": "2"}, {"state": "COMPLETED"}):
        run("schedule", EVERY_NIGHT)
        only(vertex).update(change)
        assert "scheduled mf-training: " in run("schedule", EVERY_NIGHT)
        assert (only(vertex)["cron"], only(vertex)["maxConcurrentRunCount"]) == ("TZ=UTC 0 3 * * *", "1")
        assert only(vertex)["state"] == "ACTIVE"


def test_of_several_schedules_of_a_name_one_is_kept(vertex: FakeVertex, run: Run) -> None:
    run("schedule", EVERY_NIGHT)
    first = only(vertex)
    for number in ("7", "8"):
        name = first["name"].replace("1001", number)
        vertex.schedules[name] = {**first, "name": name, "cron": f"TZ=UTC 0 {number} * * *"}
    assert "unchanged mf-training: " in run("schedule", EVERY_NIGHT)
    assert only(vertex) is first


def test_schedules_of_other_names_are_kept(vertex: FakeVertex, run: Run) -> None:
    run("schedule", EVERY_NIGHT)
    run("schedule", EVERY_NIGHT, "--name=MF-Training")
    run("schedule", "--cron=0 9 * * *", "--name=weekly films")
    run("unschedule", "--name=weekly films")
    assert sorted(one["displayName"] for one in vertex.schedules.values()) == ["MF-Training", "mf-training"]


def test_an_unchanged_paused_schedule_stays_paused_and_says_how_to_resume_it(vertex: FakeVertex, run: Run) -> None:
    run("schedule", EVERY_NIGHT)
    run("pause")
    said = run("schedule", EVERY_NIGHT)
    assert said.endswith("paused; to resume it: python -m pipelines resume --name mf-training\n")
    assert only(vertex)["state"] == "PAUSED"


def test_the_replacement_of_a_paused_schedule_is_active_and_says_so(vertex: FakeVertex, run: Run) -> None:
    run("schedule", EVERY_NIGHT)
    run("pause")
    assert run("schedule", "--cron=0 4 * * *").startswith("deleted   the previous one, which was paused: ")
    assert only(vertex)["state"] == "ACTIVE"


# Faults while a schedule is replaced, the states of the schedules afterwards (the old one first), and the message.
FAULTS: dict[str, tuple[list[Fault], list[str], str]] = {
    "the new one cannot be created": (
        [Fault("POST", "/schedules")],
        ["old ACTIVE"],
        "Vertex AI could not create the schedule: 503 ",
    ),
    "the new one is created, and the response is lost": (
        [Fault("POST", "/schedules", late=True)],
        ["old ACTIVE"],
        "Vertex AI could not create the schedule: 503 ",
    ),
    "the old one cannot be deleted": (
        [Fault("DELETE", "/1001")],
        ["old ACTIVE"],
        "could not be deleted, and still runs; the new one was deleted again: 503 ",
    ),
    "neither can be deleted": (
        [Fault("DELETE", "/schedules/", times=2)],
        ["old ACTIVE", "new PAUSED"],
        "schedules/1002, is paused: 503 ",
    ),
    "nothing can be deleted or paused": (
        [Fault("DELETE", "/schedules/", times=2), Fault("POST", ":pause")],
        ["old ACTIVE", "new ACTIVE"],
        "could be neither deleted nor paused: BOTH RUN, delete one: 503 ",
    ),
    "the old ones cannot be listed": (
        [Fault("GET", "/schedules")],
        ["old ACTIVE"],
        "Vertex AI could not create the schedule: 503 ",
    ),
    "the old one is deleted, and the response is lost": (
        [Fault("DELETE", "/1001", late=True)],
        ["new ACTIVE"],
        "",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_after_any_fault_the_old_one_runs_and_the_next_try_leaves_one(vertex: FakeVertex, run: Run, name: str) -> None:
    faults, left, message = FAULTS[name]
    run("schedule", EVERY_NIGHT)
    old = only(vertex)["name"]
    vertex.faults = faults
    printed = run("schedule", "--cron=0 4 * * *", status=2 if message else 0)
    assert message in printed
    states = [f"{'old' if one['name'] == old else 'new'} {one['state']}" for one in vertex.schedules.values()]
    assert states == left

    vertex.faults = []
    run("schedule", "--cron=0 4 * * *")
    assert (only(vertex)["cron"], only(vertex)["state"]) == ("TZ=UTC 0 4 * * *", "ACTIVE")


@pytest.mark.parametrize(
    ("settings", "flags", "said"),
    [
        (SETTINGS, [], "error: the following arguments are required: --cron"),
        (SETTINGS, ["--cron="], "error: cron: found '', expected five fields: minute, hour, "),
        (SETTINGS, ["--cron=0 25 * * *"], "error: cron: hour '25': expected 0 to 23"),
        (SETTINGS, [EVERY_NIGHT, "--tz=Berlin"], "error: time zone: found 'Berlin', expected an IANA name"),
        (SETTINGS, [EVERY_NIGHT, '--name=a"b'], "error: name: found 'a\"b', expected letters, digits"),
        (SETTINGS, [EVERY_NIGHT, "--param=epoch=3"], "error: the pipeline has no parameter 'epoch'"),
        (SETTINGS | {"project": ""}, [EVERY_NIGHT], "error: the settings lack project: set it in "),
        (
            SETTINGS | {"cpu_image": "", "gpu_image": ""},
            [EVERY_NIGHT],
            "error: the images are named by tag, and a tag",
        ),
        (SETTINGS | {"supabase_url": "https://other.co"}, [EVERY_NIGHT], "error: "),
    ],
)
def test_a_missing_or_invalid_value_is_reported_before_any_request(
    vertex: FakeVertex, run: Run, settings: dict[str, str], flags: list[str], said: str
) -> None:
    assert run("schedule", *flags, settings=settings, status=2).startswith(said)
    assert vertex.requests == []


def test_on_spot_a_run_cannot_name_another_machine(vertex: FakeVertex, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "spot.yaml"
    compile_pipeline(Settings.of(**SETTINGS, spot=True), file)
    said = run("schedule", EVERY_NIGHT, "--param=train_accelerator_count=2", more="spot = true\n", file=file, status=2)
    assert said.startswith(
        "error: train_accelerator_count: the train step's machine was settled when the pipeline was compiled"
    )
    assert vertex.requests == []
    assert "NVIDIA_L4, spot\n" in run("schedule", EVERY_NIGHT, more="spot = true\n", file=file)


def test_a_missing_bucket_ends_it(vertex: FakeVertex, run: Run) -> None:
    vertex.buckets.clear()
    assert run("schedule", EVERY_NIGHT, status=2).startswith("error: pipeline_root: there is no bucket mf-bucket")
    assert vertex.changes == []


def test_schedules_are_listed_with_state_and_next_run(vertex: FakeVertex, run: Run) -> None:
    assert run("schedules") == "no schedules in p1, europe-west4\n"
    run("schedule", EVERY_NIGHT)
    run("schedule", "--cron=0 9 * * 1", "--tz=Europe/Berlin", "--name=weekly")
    run("pause", "--name=weekly")
    names = [*vertex.schedules]
    assert run("schedules").splitlines() == [
        f"mf-training  active  TZ=UTC 0 3 * * *  next run 2026-11-24 00:00 UTC  {names[0]}",
        f"weekly  paused  TZ=Europe/Berlin 0 9 * * 1  next run 2026-11-24 00:00 UTC  {names[1]}",
    ]


def test_a_schedule_is_paused_and_resumed(vertex: FakeVertex, run: Run) -> None:
    run("schedule", EVERY_NIGHT)
    name = only(vertex)["name"]
    assert run("pause") == f"paused mf-training: {name}\n"
    assert only(vertex)["state"] == "PAUSED"
    assert run("resume") == f"resumed mf-training: {name}\n"
    assert only(vertex)["state"] == "ACTIVE"


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_a_missing_schedule_cannot_be_paused_or_resumed(vertex: FakeVertex, run: Run, command: str) -> None:
    assert run(command, "--name=weekly", status=2) == (
        "error: there is no schedule weekly; `python -m pipelines schedules` lists all\n"
    )


def test_a_schedule_is_deleted_and_deleting_it_again_changes_nothing(vertex: FakeVertex, run: Run) -> None:
    run("schedule", EVERY_NIGHT)
    name = only(vertex)["name"]
    assert run("unschedule") == f"deleted mf-training: {name}\n"
    assert run("unschedule") == "there is no schedule mf-training\n"
    assert vertex.schedules == {}


@pytest.mark.parametrize("command", ["schedules", "pause", "unschedule"])
def test_an_error_of_google_is_one_line(vertex: FakeVertex, run: Run, command: str) -> None:
    vertex.faults = [Fault("GET", "/schedules", code=403)]
    assert run(command, status=2).startswith("error: Vertex AI could not ")


def test_without_a_project_no_request_is_sent(vertex: FakeVertex, run: Run) -> None:
    for command in ("schedules", "pause", "resume", "unschedule"):
        assert run(command, settings={}, status=2).startswith("error: the settings lack project: set it in ")
    assert vertex.requests == []
