"""A Supabase key and a database's password reach only Supabase: not a byte of them is in what is compiled, sent to
Google, printed, raised or written. ``tests/images/check`` looks for one in the image."""

import base64
import contextlib
import io
import json
import os
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pyarrow as pa
import pytest
from compiling import compile_once
from fake_vertex import FakeVertex, fake_vertex, send_sdk_to
from kfp.dsl.executor import Executor
from steps import executor_input
from test_secret_manager import ANSWERS, NAME, asked, server

import components
from mf.evaluation.config import GateConfig
from mf.local import LocalSupabase
from mf.model import MatrixFactorization
from mf.model_directory import TrainedModel
from mf.ratings.schema import Provenance, write_ratings
from mf.ratings.vocabulary import Vocabulary
from mf.supabase.config import SchemaConfig
from mf.supabase.schema import migration
from pipelines.__main__ import main
from pipelines.compiled import definitions
from pipelines.laptop.run import environment, run_steps
from pipelines.parameters import complete

__all__ = ["asked", "server"]  # fixtures

KEY = "sb_secret_planted0KEY1that2no3one4may5see"
PASSWORD = "planted:PASS/word+that@no%one=may?see"
DB_URL = f"postgresql://planted:{quote(PASSWORD, safe='')}@127.0.0.1:9/postgres"
SETTINGS = """
project = "p1"
region = "europe-west4"
pipeline_root = "gs://mf-bucket/runs"
image_tag = "v1"
image_repository = "europe-west4-docker.pkg.dev/p1/mf"
supabase_url = "https://example.supabase.co"
supabase_key_secret = "projects/p1/secrets/supabase-key"
supabase_db_url_secret = "projects/p1/secrets/supabase-db-url"
"""


def forms(secret: str) -> set[str]:
    """The secret as it may be written."""
    encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
    return {secret, quote(secret, safe=""), quote_plus(secret), encoded[:-1], secret[::-1], secret.encode().hex()}


def found(text: str, *secrets: str) -> list[str]:
    return [form for secret in secrets for form in forms(secret) if form in text]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stand in the environment, as they do on a person's own machine."""
    monkeypatch.setenv("SUPABASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("SUPABASE_KEY", KEY)
    monkeypatch.setenv("SUPABASE_DB_URL", DB_URL)


@pytest.fixture
def vertex(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVertex]:
    with fake_vertex() as fake:
        send_sdk_to(fake, monkeypatch)
        yield fake


def test_the_search_finds_a_secret_however_it_is_written() -> None:
    for text in (DB_URL, f"Basic {base64.b64encode(PASSWORD.encode()).decode()}", PASSWORD, quote_plus(PASSWORD)):
        assert found(text, KEY, PASSWORD)
    assert not found("sb_secret_other", KEY, PASSWORD)


def test_what_is_compiled_and_submitted_holds_names_only(
    planted: None, vertex: FakeVertex, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings, file = tmp_path / "settings.toml", tmp_path / "mf-training.yaml"
    settings.write_text(SETTINGS)
    main(["compile", "--settings", str(settings), "--file", str(file)])
    main(["submit", "--settings", str(settings), "--file", str(file)])
    assert "projects/p1/secrets/supabase-db-url" in file.read_text()
    assert [request.method for request in vertex.requests].count("POST") == 1
    printed = capfd.readouterr()
    everything = file.read_text() + repr(vertex.requests) + printed.out + printed.err
    assert found(everything, KEY, PASSWORD) == []


@pytest.mark.parametrize("secret", [KEY, DB_URL])
def test_a_secret_that_is_given_as_a_parameter_or_a_setting_is_refused_unsent_and_unshown(
    vertex: FakeVertex, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    compile_once(monkeypatch)
    settings, file = tmp_path / "settings.toml", tmp_path / "mf-training.yaml"
    settings.write_text(SETTINGS)
    main(["compile", "--settings", str(settings), "--file", str(file)])
    bad = tmp_path / "bad.toml"
    for name in ("supabase_url", "supabase_key_secret", "service_account"):
        bad.write_text(re.sub(f"(?m)^{name} = .*\n", "", SETTINGS) + f'{name} = "{secret}"\n')
        with pytest.raises(SystemExit):
            main(["submit", "--settings", str(bad), "--file", str(file)])
    for name in ("columns", "ratings_csv", "supabase_url", "import_table"):
        with pytest.raises(SystemExit):
            main(["submit", "--settings", str(settings), "--file", str(file), "--param", f"{name}={secret}"])
    printed = capfd.readouterr()
    assert printed.err.count("error: ") == 7
    assert vertex.changes == []
    assert found(printed.out + printed.err + repr(vertex.requests), KEY, PASSWORD) == []


@pytest.fixture
def secret_manager(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the attempts to reach a service
    monkeypatch.setitem(ANSWERS, "key", (200, KEY.encode()))
    monkeypatch.setitem(ANSWERS, "db-url", (200, DB_URL.encode()))
    monkeypatch.setitem(ANSWERS, "binary-key", (200, KEY.encode() + b"\xff"))
    monkeypatch.setitem(ANSWERS, "half-url", (200, DB_URL.partition("@")[0].encode()))


TABLE = {"import_table": "ratings", "supabase_url": "http://127.0.0.1:9", "train_accelerator_count": 0}
VIEWS = {"movie_export_table": "movie_embeddings", "user_export_table": "user_embeddings", "hnsw_index": False}


def ingest(folder: Path) -> tuple[Any, dict[str, Any]]:
    parameters = {**complete({}, definitions()), **TABLE, "gpus": {}}
    return components.ingest, executor_input(components.ingest, folder, {}, **parameters)


def export(folder: Path) -> tuple[Any, dict[str, Any]]:
    document = folder / "evaluation.json"
    document.write_text(json.dumps({"decision": {"forced": False, "reasons": []}}))
    inputs = {"model": folder / "model", "judged_model": folder / "model", "evaluation": document}
    parameters = {"supabase_url": TABLE["supabase_url"], **VIEWS}
    return components.export, executor_input(components.export, folder, inputs, **parameters)


def evaluate(folder: Path) -> tuple[Any, dict[str, Any]]:
    columns = {"user_id": [1, 2], "movie_id": [1, 2], "rating": pa.array([1, 5], pa.float32())}
    write_ratings(pa.table(columns), folder / "r.parquet", Provenance("r.csv", 2, 0, 0, 2))
    ids = Vocabulary.of(pa.array([1, 2]))
    module = MatrixFactorization(2, 2, 1, rating_min=1, rating_max=5, mu=3)
    TrainedModel(module, ids, ids, "run-1", "adam", {}, {}, {"epochs": []}).save(folder / "fitted")
    inputs = {f"{part}_ratings": folder / "r.parquet" for part in ("train", "validation", "test")}
    gate = GateConfig().model_dump() | {"relevance_threshold": "", "supabase_url": TABLE["supabase_url"]}
    return components.evaluate, executor_input(
        components.evaluate, folder, {**inputs, "model": folder / "fitted"}, **gate
    )


@pytest.mark.parametrize("step", [ingest, evaluate, export])
@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"SUPABASE_KEY": KEY}, "Connection refused"),
        ({"SUPABASE_KEY": f"{KEY}\n{KEY}"}, "characters that no Supabase key has"),
        ({"SUPABASE_DB_URL": DB_URL}, "127.0.0.1"),
        ({"SUPABASE_DB_URL": f"postgresql://planted:{PASSWORD}@db/postgres"}, "is not of the form"),
        ({"SUPABASE_DB_URL": PASSWORD}, "is not of the form"),
        ({"SUPABASE_KEY_SECRET": NAME.format("key")}, "Connection refused"),
        ({"SUPABASE_DB_URL_SECRET": NAME.format("db-url")}, "127.0.0.1"),
        ({"SUPABASE_KEY_SECRET": NAME.format("binary-key")}, "characters that no Supabase key has"),
        ({"SUPABASE_DB_URL_SECRET": NAME.format("half-url")}, "is not of the form"),
        ({"SUPABASE_KEY_SECRET": NAME.format("missing")}, "there is no secret"),
        ({"SUPABASE_KEY_SECRET": NAME.format("closed")}, "no access to the secret"),
        ({"SUPABASE_DB_URL_SECRET": NAME.format("empty")}, "is empty: add a version"),
        ({"SUPABASE_KEY_SECRET": KEY}, "SUPABASE_KEY_SECRET is not of the form projects/PROJECT/secrets/NAME/"),
        ({"SUPABASE_KEY_SECRET": NAME.format(KEY)}, "SUPABASE_KEY_SECRET is not of the form projects/PROJECT/"),
        ({"SUPABASE_DB_URL_SECRET": DB_URL}, "SUPABASE_DB_URL_SECRET is not of the form projects/PROJECT/secrets/"),
        ({}, "no key for http://127.0.0.1:9"),
    ],
)
def test_a_step_that_fails_shows_no_secret_even_with_the_locals_of_every_frame(
    secret_manager: None,
    planted_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    step: Callable[[Path], tuple[Any, dict[str, Any]]],
    variables: dict[str, str],
    says: str,
) -> None:
    for name in [name for name in os.environ if name.startswith("SUPABASE_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "model").symlink_to(planted_model)
    shown = failure(*step(tmp_path))
    printed = capfd.readouterr()
    (error,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert says in error
    assert "executor_input = " in shown or "config = " in shown  # locals are shown
    written = "".join(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*.*") if path.is_file())
    assert found(printed.out + printed.err + shown + written, KEY, PASSWORD) == []


@pytest.fixture(scope="module")
def planted_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from planted import planted as model

    return model("run-1", users=3, movies=3).write(tmp_path_factory.mktemp("model"))


def failure(component: Any, given: dict[str, Any]) -> str:
    """The tracebacks, with all locals, of the exceptions that ended a step, the last one and those that led to it."""
    try:
        Executor(given, component.python_func).execute()
    except SystemExit as end:
        error = end.__context__
        assert error
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    raise AssertionError("the step has not failed")


@pytest.fixture(scope="module")
def supabase(fresh_stack: Callable[..., LocalSupabase]) -> LocalSupabase:
    supabase = fresh_stack()
    supabase.migrate(migration(SchemaConfig()))
    return supabase


def test_a_run_over_the_direct_connection_leaves_no_password_and_no_key(
    supabase: LocalSupabase, tmp_path: Path
) -> None:
    password = re.findall(":([^:@]+)@", supabase.db_url)[0]
    csv, work = tmp_path / "ratings.csv", tmp_path / "work"
    csv.write_text(
        "userId,movieId,rating\n" + "".join(f"{u},{m},{(u * m) % 5 + 1}\n" for u in range(20) for m in range(9))
    )
    work.mkdir()
    printed = io.StringIO()
    variables = {"SUPABASE_URL": supabase.url, "SUPABASE_KEY": supabase.secret_key, "SUPABASE_DB_URL": supabase.db_url}
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), environment(**variables):
        os.environ["TMPDIR"] = str(work)
        given = {"ratings_csv": str(csv), "epochs": 1, "supabase_url": supabase.url, "force_publish": True}
        run_steps(given, work)
    assert "\nexport " in printed.getvalue()
    files = {path: path.read_bytes().decode("latin-1") for path in work.rglob("*") if path.is_file()}
    assert {path.name for path in files} >= {"log.txt", "executor_output.json", "report.html", "model.pt"}
    for secret in (password, supabase.secret_key, supabase.service_role_key):
        assert [path for path, text in files.items() if found(text, secret)] == []
        assert found(printed.getvalue(), secret) == []
