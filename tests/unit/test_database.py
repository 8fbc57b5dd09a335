import pytest
from adbc_driver_manager import OperationalError as AdbcError
from psycopg import OperationalError
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from mf.errors import ConfigError
from mf.supabase.database import Database

PASSWORD = "hunter2%40secret"
DIRECT = f"postgresql://postgres:{PASSWORD}@db.abcdef.supabase.co:5432/postgres"
POOLED = f"postgres://postgres.abcdef:{PASSWORD}@aws-0-eu-west-1.pooler.supabase.com:5432/postgres"


def find(url: str) -> Database:
    database = Database.find({"SUPABASE_DB_URL": url})
    assert database is not None
    return database


def test_without_a_url_there_is_no_database() -> None:
    assert Database.find({}) is None
    assert Database.find({"SUPABASE_DB_URL": " \n"}) is None


def test_the_processs_environment_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_DB_URL", f" {DIRECT}\n")
    assert Database.find() == Database(SecretStr(DIRECT))


@pytest.mark.parametrize(("url", "host"), [(DIRECT, "db.abcdef.supabase.co"), (POOLED, "aws-0-eu-west-1.pooler")])
def test_a_url_gives_host_and_project_and_hides_its_password(url: str, host: str) -> None:
    database = find(url)
    assert str(database).startswith(f"the database {host}")
    assert database.port == "5432"
    assert database.project == "abcdef"
    for shown in (str(database), repr(database), f"{vars(database)}", repr(database.conninfo)):
        assert "hunter2" not in shown


def test_a_connection_to_supabase_is_encrypted_and_detects_a_dead_host() -> None:
    parts = conninfo_to_dict(find(DIRECT).conninfo.get_secret_value())
    assert (parts["password"], parts["sslmode"], parts["connect_timeout"]) == ("hunter2@secret", "require", "15")
    parts = conninfo_to_dict(find(f"{DIRECT}?sslmode=verify-full&connect_timeout=3").conninfo.get_secret_value())
    assert (parts["sslmode"], parts["connect_timeout"]) == ("verify-full", "3")
    assert "sslmode" not in conninfo_to_dict(find("postgresql://me@127.0.0.1/db").conninfo.get_secret_value())


@pytest.mark.parametrize(
    "url",
    [
        "hunter2", "https://abc.supabase.co", "postgresql://", "postgresql://h/d", "postgresql://me:hunter2@/d",
        "postgresql://me:hunter2@h", "postgresql://me:a@hunter2@h/d", "postgresql://me:hunter2/x@h/d",
        "postgresql://me:hunter2%x@h/d", "postgresql://me:hunter2 x@h/d", "postgresql://me:hunter2@h:port/d",
        "postgresql://me:hun?ter2@h/d?option=1", "host=h user=me password=hunter2", "mysql://me:hunter2@h/d",
    ],
)  # fmt: skip
def test_a_malformed_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^SUPABASE_DB_URL is not of the form postgresql://.* %40") as error:
        find(url)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("option", ["pgbouncer", "connection_limit", "schema", "pool_timeout"])
def test_an_option_of_another_client_is_named(option: str) -> None:
    with pytest.raises(ConfigError, match=f"^SUPABASE_DB_URL has the option {option}, which is for other clients"):
        find(f"{DIRECT}?sslmode=require&{option}=1")
    with pytest.raises(ConfigError, match=r"session pooler's address, port 5432"):
        find(f"{POOLED.replace('5432', '6543')}?{option}=true")


def test_the_transaction_pooler_and_a_placeholder_are_refused_with_advice() -> None:
    for url in (DIRECT, POOLED):
        with pytest.raises(ConfigError, match=r"transaction pooler's, port 6543.*session pooler's address, port 5432"):
            find(url.replace("5432", "6543"))
    assert find("postgresql://me@127.0.0.1:6543/db").port == "6543"
    with pytest.raises(ConfigError, match=r"still holds \[YOUR-PASSWORD\]"):
        find(DIRECT.replace(PASSWORD, "[YOUR-PASSWORD]"))
    for password in ("[hunter2]", "<password>", "[YOUR_PASSWORD]"):
        with pytest.raises(ConfigError, match="password in brackets, which belong to the example"):
            find(DIRECT.replace(PASSWORD, password))
    with pytest.raises(ConfigError, match="leave out the quotes around it"):
        find(f"'{DIRECT}'")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            'connection to server at "h", port 5432 failed: FATAL:  password authentication failed for user "me"\n',
            'cannot read: password authentication failed for user "me": check the password in SUPABASE_DB_URL',
        ),
        ("failed to resolve host 'h': [Errno -2] Name or service not known", "IPv6 only; from a network without it"),
        ('could not translate host name "h" to address: No address', "session pooler's address, port 5432"),
        (
            'connection to server at "::1", port 5432 failed: Network is unreachable\n\tIs it',
            "session pooler's address",
        ),
        ("FATAL:  Tenant or user not found", "user and host do not match, or the project is paused"),
        ("FATAL:  MaxClientsInSessionMode: max clients reached", "all connections are in use"),
        ("something else", "cannot read: something else: check SUPABASE_DB_URL and the network (the database db.abc"),
    ],
)
def test_errors_of_both_drivers_become_one_line_with_advice(said: str, expected: str) -> None:
    errors: list[Exception] = [OperationalError(said), AdbcError(f"IO: [libpq] {said}", status_code=10)]
    for error in errors:
        message = find(DIRECT).explain(error, "read")
        assert expected in message
        assert "\n" not in message


def test_errors_show_neither_statement_nor_password() -> None:
    error = OperationalError(
        f"ERROR:  no {DIRECT} hunter2@secret\nLINE 1: select\n\nQuery was: select 1. SQLSTATE: 42P01"
    )
    assert find(DIRECT).explain(error, "read").startswith("cannot read: no … …: check SUPABASE_DB_URL")


def test_a_database_of_another_project_is_refused() -> None:
    with pytest.raises(ConfigError, match="project other, but SUPABASE_DB_URL is project abcdef: unset"):
        find(POOLED).check_project("https://other.supabase.co")
    for url in ("", "https://abcdef.supabase.co/", "http://127.0.0.1:8000", "https://db.example.org"):
        find(DIRECT).check_project(url)
