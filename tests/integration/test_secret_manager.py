"""Keys from Secret Manager: the real SDK, over REST, against a fake of the service."""

import base64
import functools
import traceback
from collections.abc import Iterator

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import secretmanager
from serving import Answer, Call, serving

from mf.errors import ConfigError, MfError, SupabaseError
from mf.supabase.credentials import Credentials
from mf.supabase.database import Database

KEY = "sb_secret_0123456789"
DB_URL = "postgresql://me:012345@localhost/postgres"
URL = "https://abc.supabase.co"
NAME = "projects/p/secrets/{}/versions/latest"
# By secret: the status, and the payload or the message.
ANSWERS: dict[str, tuple[int, bytes | str]] = {
    "good": (200, f"{KEY}\n".encode()),
    "database": (200, f"{DB_URL}\n".encode()),
    "empty": (200, b""),
    "blank": (200, b" \n"),
    "binary": (200, b"sb_secret_\xff\xfe012345"),
    "missing": (404, "Secret [projects/p/secrets/missing] not found or has no versions."),
    "closed": (403, "Permission 'secretmanager.versions.access' denied on resource (or it may not exist)."),
    "disabled": (400, "Secret Version [projects/p/secrets/disabled/versions/1] is in DISABLED state."),
}


ASKED: list[str] = []  # the paths


def answer(call: Call) -> Answer:
    ASKED.append(call.url.path)
    status, said = ANSWERS[call.url.path.split("/")[5]]
    if isinstance(said, bytes):
        return status, {"name": NAME, "payload": {"data": base64.b64encode(said).decode()}}
    return status, {"error": {"code": status, "message": said}}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(answer) as url:
        yield url


@pytest.fixture
def asked(server: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are asked for; clients go to the server here, over REST and without an account."""
    client = functools.partial(
        secretmanager.SecretManagerServiceClient,
        credentials=AnonymousCredentials(),
        transport="rest",
        client_options={"api_endpoint": server},
    )
    monkeypatch.setattr(secretmanager, "SecretManagerServiceClient", client)
    ASKED.clear()
    return ASKED


def find(secret: str, **environ: str) -> Credentials:
    name = secret if "/" in secret else NAME.format(secret)
    return Credentials.find(environ={"SUPABASE_URL": URL, "SUPABASE_KEY_SECRET": name, **environ})


@pytest.mark.parametrize("name", ["projects/p/secrets/good", NAME.format("good"), "projects/p/secrets/good/versions/7"])
def test_the_key_is_the_payload_of_the_secrets_version(asked: list[str], name: str) -> None:
    credentials = find(name)
    assert credentials.key.get_secret_value() == KEY
    assert KEY not in repr(credentials)
    assert asked == [f"/v1/{name if 'versions' in name else name + '/versions/latest'}:access"]


def test_a_key_in_the_environment_takes_precedence_over_the_secret(asked: list[str]) -> None:
    assert find("good", SUPABASE_KEY="sb_secret_other").key.get_secret_value() == "sb_secret_other"
    assert asked == []


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("missing", "there is no secret {name}: create it, or correct SUPABASE_KEY_SECRET"),
        (
            "closed",
            "no access to the secret {name}: give the account that runs this the role "
            "roles/secretmanager.secretAccessor on it",
        ),
        ("empty", "the secret {name} is empty: add a version that holds the Supabase key"),
        ("blank", "the secret {name} is empty: add a version that holds the Supabase key"),
        ("binary", f"the key for {URL} holds characters that no Supabase key has: copy it again"),
    ],
)
def test_each_problem_with_a_secret_has_its_own_message(asked: list[str], secret: str, said: str) -> None:
    with pytest.raises(MfError) as error:
        find(secret)
    assert str(error.value) == said.format(name=NAME.format(secret))
    assert len(asked) == 1
    shown = "".join(traceback.TracebackException.from_exception(error.value, capture_locals=True).format())
    assert "012345" not in shown


def test_any_other_refusal_shows_the_services_message(asked: list[str]) -> None:
    with pytest.raises(SupabaseError, match=r"^the secret \S+ could not be read: 400 .* is in DISABLED state\.$"):
        find("disabled")


def test_a_malformed_name_is_refused_without_a_request(asked: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^SUPABASE_KEY_SECRET is not of the form projects/PROJECT/secrets/NAME"):
        find("p/good")
    assert asked == []


def test_the_databases_url_is_the_payload_of_the_secret_named_by_its_variable(asked: list[str]) -> None:
    environ = {"SUPABASE_DB_URL_SECRET": NAME.format("database")}
    database = Database.find(environ)
    assert database is not None
    assert database.url.get_secret_value() == DB_URL
    assert Database.find(environ | {"SUPABASE_DB_URL": DB_URL.replace("localhost", "other")}).host == "other"  # type: ignore[union-attr]
    assert len(asked) == 1


def test_a_problem_with_that_secret_names_its_variable(asked: list[str]) -> None:
    for secret, said in {
        "missing": "correct SUPABASE_DB_URL_SECRET$",
        "empty": "add a version that holds the address of the database$",
        "good": "^SUPABASE_DB_URL is not of the form",
    }.items():
        with pytest.raises(MfError, match=said) as error:
            Database.find({"SUPABASE_DB_URL_SECRET": NAME.format(secret)})
        assert "012345" not in str(error.value)
