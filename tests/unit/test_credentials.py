import base64
import json
import traceback

import pytest
from pydantic import SecretStr

from mf.errors import ConfigError, MfError
from mf.supabase.credentials import Credentials

URL, KEY = "https://abc.supabase.co", "sb_secret_0123456789"


def jwt(**claims: str) -> str:
    return ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({}, claims, 0)
    )


def found(**environ: str) -> tuple[str, str]:
    credentials = Credentials.find(environ=environ)
    return credentials.url, credentials.key.get_secret_value()


def test_they_are_found_in_the_environment() -> None:
    assert found(SUPABASE_URL=f"{URL}/", SUPABASE_KEY=f" {KEY}\n") == (URL, KEY)


def test_the_processs_environment_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("sb_secret_one", "sb_secret_two"):
        monkeypatch.setenv("SUPABASE_URL", URL)
        monkeypatch.setenv("SUPABASE_KEY", key)
        assert Credentials.find().key.get_secret_value() == key


def test_arguments_take_precedence_over_the_environment() -> None:
    environ = {"SUPABASE_URL": "https://other.supabase.co", "SUPABASE_KEY": "other", "SUPABASE_KEY_SECRET": "no/name"}
    credentials = Credentials.find(URL, SecretStr(KEY), environ)
    assert (credentials.url, credentials.key.get_secret_value()) == (URL, KEY)
    credentials = Credentials.find(URL, None, environ)
    assert (credentials.url, credentials.key.get_secret_value()) == (URL, "other")


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "no Supabase project: give --supabase_url or set SUPABASE_URL"),
        ({"SUPABASE_KEY": KEY}, "no Supabase project: give --supabase_url or set SUPABASE_URL"),
        ({"SUPABASE_URL": URL}, f"no key for {URL}: set SUPABASE_KEY, or SUPABASE_KEY_SECRET to the name of a Secret"),
        ({"SUPABASE_URL": URL, "SUPABASE_KEY": " \n"}, f"no key for {URL}: "),
        ({"SUPABASE_URL": URL, "SUPABASE_KEY": "sb_secret_a b"}, "holds characters that no Supabase key has: copy it"),
        ({"SUPABASE_URL": URL, "SUPABASE_KEY": "sb_secret_é"}, "holds characters that no Supabase key has: copy it"),
        (
            {"SUPABASE_URL": URL, "SUPABASE_KEY_SECRET": "sb_secret_pasted"},
            "SUPABASE_KEY_SECRET is not of the form projects/PROJECT/secrets/NAME/versions/latest",
        ),
        ({"SUPABASE_URL": URL, "SUPABASE_KEY_SECRET": "projects//secrets/x"}, "is not of the form projects/PROJECT/"),
        ({"SUPABASE_URL": URL, "SUPABASE_KEY": "sb_secret_\0a"}, "holds characters that no Supabase key has: copy it"),
    ],
)
def test_missing_and_malformed_credentials_are_errors_in_one_line(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        Credentials.find(environ=environ)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "sb_secret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "abc.example.co", "ftp://abc.supabase.co", "https://", "http://[::1", "https://abc.supabase.co:port",
        "https://abc.supabase.co:0", "https://abc.supabase.co:99999", "https://me:sb_secret_x@abc.supabase.co",
        "https://abc.supabase.co?apikey=sb_secret_x", "https://abc.supabase.co#sb_secret_x", "https://a b.co",
        "https://.supabase.co", "https://abc..co", "sb_secret_x",
    ],
)  # fmt: skip
def test_an_invalid_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        Credentials.find(url, SecretStr(KEY), {})
    assert str(error.value) == "the Supabase URL is not of the form https://PROJECT.supabase.co"


@pytest.mark.parametrize("url", [URL, "http://127.0.0.1:54321", "https://[::1]:8000", "https://example.org/supabase"])
def test_a_valid_url_is_accepted(url: str) -> None:
    assert Credentials.find(url, SecretStr(KEY), {}).url == url


@pytest.mark.parametrize(
    ("key", "role"),
    [
        (KEY, "service_role"),
        ("sb_publishable_abc", "anon"),
        ("sb_other_abc", "unknown"),
        (jwt(role="service_role"), "service_role"),
        (jwt(role="anon"), "anon"),
        (jwt(role="authenticated"), "authenticated"),
        (jwt(sub="somebody"), "unknown"),
        ("a.b.c", "unknown"),
        ("a.####.c", "unknown"),
        ("abc", "unknown"),
    ],
)
def test_the_role_is_read_from_the_key(key: str, role: str) -> None:
    assert Credentials(URL, SecretStr(key)).role == role


def test_the_key_shows_in_no_text_and_in_no_traceback_with_locals() -> None:
    credentials = Credentials.find(URL, SecretStr(KEY), {})
    assert KEY not in f"{credentials} {credentials!r} {vars(credentials)}"
    try:
        Credentials.find("ftp://x", SecretStr(KEY), {"SUPABASE_KEY": "other"})
    except MfError as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "key" in shown
    assert KEY not in shown


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("'sb_secret_hunter2'", "has quotes around it"),
        ("sbp_hunter2hunter2", "is an access token of an account"),
        ("projects/hunter2/secrets/key/versions/1", "is the name of a secret: put it into SUPABASE_KEY_SECRET"),
        ("postgresql://me:hunter2@h/d", "is an address"),
        ("Bearer hunter2", "holds characters that no Supabase key has"),
    ],
)
def test_what_is_no_key_is_named_and_not_shown(key: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^the key for {URL} {said}") as error:
        Credentials.find(environ={"SUPABASE_URL": URL, "SUPABASE_KEY": key})
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/rest/v1",
        "/rest/v1/ratings",
        "/auth/v1/token",
        "/rest/v1/",
        "/auth/v1",
        " ",
        "/\n",
        "//",
        "?",
        "/#",
        "/rest/v1/ratings?select=*",
        "/rest/v1/?apikey=x",
    ],
)
def test_white_space_and_the_path_of_a_service_are_taken_off_the_url(path: str) -> None:
    assert found(SUPABASE_URL=f" {URL}{path}", SUPABASE_KEY=KEY) == (URL, KEY)


FORM = "the Supabase URL is not of the form https://PROJECT.supabase.co"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://supabase.com/dashboard/project/abcdefghijklmnop", f"{FORM}: it is the dashboard's"),
        ("abcdefghijklmnopqrst", f"{FORM}: it is a project's reference alone"),
        ("https://abc.supabase.co/project/default", f"{FORM}: leave out what follows .co"),
        ("https://app.supabase.com/project/abcdefghijklmnop/settings/api", f"{FORM}: it is the dashboard's"),
        ("abc.supabase.co", f"{FORM}: put https:// before it"),
        ("db.abc.supabase.co", FORM),
        ("https://db.abc.supabase.co", f"{FORM}: it is the database's host"),
        ("https://aws-0-eu-west-1.pooler.supabase.com", f"{FORM}: it is the database's host"),
        ("postgresql://postgres:hunter2@db.abc.supabase.co:5432/postgres", f"{FORM}: it is the address of a database"),
        ("https://abc.supabase.co?apikey=hunter2", FORM),
        ("'https://abc.supabase.co'", f"{FORM}: leave out the quotes"),
        ("https://https://abc.supabase.co", f"{FORM}: it begins twice"),
        ("https://PROJECT.supabase.co", f"{FORM}: it is still the example"),
        ("https://your-project-ref.supabase.co", f"{FORM}: it is still the example"),
        ("https://abc.functions.supabase.co", f"{FORM}: leave out the name of the service"),
        ("https://abc.supabase.com", f"{FORM}: leave out the name of the service, and end it with .co"),
        ("https://abc.supabase.co\u200b", FORM),
        ("https://<ref>.supabase.co", FORM),
        ("http://abc.supabase.co", "the Supabase URL begins with http://, over which the key would go unencrypted"),
        ("http://10.0.0.7:8000", "the Supabase URL begins with http://"),
        ("http://127.0.0.1.nip.io", "the Supabase URL begins with http://"),
        ("http://localhost.evil.com", "the Supabase URL begins with http://"),
        ("http://kong:8000/rest/v1", "the Supabase URL begins with http://"),
    ],
)
def test_another_address_is_refused_with_the_way_out(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        Credentials.find(environ={"SUPABASE_URL": url, "SUPABASE_KEY": KEY})
    assert str(error.value).startswith(said)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:54321", "http://localhost:54321", "http://[::1]:1", "http://a.localhost"]
)
def test_http_is_for_this_machine_or_by_consent(url: str) -> None:
    assert found(SUPABASE_URL=url, SUPABASE_KEY=KEY)[0] == url
    assert found(SUPABASE_URL="http://kong:8000", SUPABASE_KEY=KEY, SUPABASE_INSECURE="1")[0] == "http://kong:8000"
