import re

import pytest

from mf.errors import ConfigError
from mf.leaks import hidden
from pipelines import leaks

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("sb_secret_N7UND0UgjKTVK", "a Supabase secret key"),
        ("SB_SECRET_N7UND0UgjKTVK", "a Supabase secret key"),
        ("keysb_secret_N7UND0UgjKTVK", "a Supabase secret key"),
        ("sbp_0123456789abcdef0123456789abcdef01234567", "a Supabase access token"),
        ("xsbp_0123456789abcdef0123456789abcdef01234567y", "a Supabase access token"),
        (f"a_{JWT}b", "a JSON Web Token"),
        ("postgresql://h/db?user=me&password=hunter2", "a text with a password"),
        ("host=h user=me password=hunter2 dbname=d", "a text with a password"),
        ("host=h password='hunter2 and more'", "a text with a password"),
        ('{"password": "hunter2"}', "a text with a password"),
        ("https://h/r.csv?X-Amz-Signature=hunter2", "a text with a password"),
        ("https://h/r.csv?token=hunter2", "a text with a password"),
        ("apikey=hunter2", "a text with a password"),
        ("Authorization: Bearer hunter2", "a text with a password"),
        ("Passwd = hunter2", "a text with a password"),
        ("SBP_v0_hunter2hunter2", "a Supabase access token"),
        ("sb_secret_N7UND0UgjKTVK-hunter2_x", "a Supabase secret key"),
        ("postgres://me:hun@hunter2@h/d", "an address with a password"),
        (f"ghp_{'hunter2' * 6}", "a token of a cloud or a code host"),
        ("AKIAHUNTER2HUNTER2AB", "a token of a cloud or a code host"),
        ("Server=h;Pwd=hunter2", "a text with a password"),
        (f"key {JWT}", "a JSON Web Token"),
        ("postgres://postgres:hunter2@db.example.co:5432/postgres", "an address with a password"),
        ("postgresql://u:p/w@h/db", "an address with a password"),
        ("password: hunter2", "a text with a password"),
        ('- db_password: "hunter2"', "a text with a password"),
        ("apikey: hunter2", "a text with a password"),
        ('{"client_secret": "hunter2"}', "a text with a password"),
        ('{\\"password\\":\\"hunter2\\"}', "a text with a password"),
        ("{'Authorization': 'Bearer hunter2'}", "a text with a password"),
        ("Authorization: Basic hunter2==", "a text with a password"),
        ("password%3Dhunter2%26user%3Dme", "a text with a password"),
        ("password=('hunter2',)", "a text with a password"),
        ("password = b'hunter2'", "a text with a password"),
        ("psql --password hunter2", "a text with a password"),
        ("https://h/r.csv?sv=1&sig=hunter2", "a text with a password"),
        ("DB_PASS=hunter2", "a text with a password"),
        ("AccountKey=hunter2==;", "a text with a password"),
        ("AWS_SECRET_ACCESS_KEY=hunter2", "a text with a password"),
        ("<password>hunter2</password>", "a text with a password"),
        ("postgresql%3A%2F%2Fme%3Ahunter2%40h%2Fd", "an address with a password"),
        (r"postgresql:\/\/me:hunter2@h\/d", "an address with a password"),
        (f"glpat-{'hunter2' * 3}", "a token of a cloud or a code host"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("-----BEGIN PRIVATE KEY-----", "a private key"),
    ],
)
def test_what_looks_like_a_secret_is_refused_and_not_shown(text: str, kind: str) -> None:
    with pytest.raises(ConfigError) as error:
        leaks.refuse("parameter columns", text)
    assert str(error.value).startswith(f"parameter columns looks like {kind}, and shows in the console")
    assert text not in str(error.value)
    assert "hunter2" not in hidden(text).lower()


@pytest.mark.parametrize("cut", ["\n", " ", "\r\n", "\\n", "\n    "])
def test_a_json_web_token_on_several_lines_is_hidden_whole(cut: str) -> None:
    token = ".".join(("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", "eyJyb2xlIjoic2VydmljZV9yb2xlIn0" * 3, "c2lnbmF0" * 10))
    for width in (20, 64, 76):
        lines = cut.join(token[i : i + width] for i in range(0, len(token), width))
        # A last line of less than twelve characters may be a word.
        assert not re.search(r"eyJ|[\w-]{12}", hidden(f"the key {lines}").replace(cut, " "))
    assert hidden(token.replace(".", f".{cut}")) == "…"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "found the columns 'user', 'token', 'rating'",
        "check the password in SUPABASE_DB_URL: it is wrong",
        "bypass=1",
        "userId,movieId,rating",
        "expected the form postgresql://USER:PASSWORD@HOST:5432/postgres",
        "supabase_key_secret=projects/p/secrets/supabase-key/versions/latest",
        "the password of the bearer is not valid: Token, signature and secret",
        "https://project.supabase.co:8443/rest",
        "gs://bucket/a@b:c/ratings.csv",
        "sb_publishable_N7UND0UgjKTVK",
        "steps@project.iam.gserviceaccount.com",
        f"europe-west4-docker.pkg.dev/p/mf/mf-python-cpu@sha256:{'0' * 64}",
        "projects/p/secrets/supabase-key/versions/latest",
    ],
)
def test_what_is_no_secret_passes(text: str) -> None:
    leaks.refuse("a setting", text)
    assert hidden(text) == text
