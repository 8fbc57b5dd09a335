"""`python -m mf runs` against a real database."""

import os
import re

import pytest
from planted import planted
from targets import rest

from mf.__main__ import main
from mf.supabase.config import ExportConfig
from mf.supabase.recommend import published_run


@pytest.fixture
def runs(database, monkeypatch, capsys):
    """Runs the command with the secret key and gives exit status, stdout and stderr."""
    for name in [name for name in os.environ if name.startswith("SUPABASE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SUPABASE_URL", database.url)
    monkeypatch.setenv("SUPABASE_KEY", database.secret_key)

    def runs(*argv):
        status = 0
        try:
            main(["runs", *argv])
        except SystemExit as ended:
            status = ended.code or 0
        return status, *capsys.readouterr()

    return runs


@pytest.fixture
def three(database, client, tmp_path):
    """One run after another published, the first of them dropped by the third's export, and one that only began."""
    for seed, run in enumerate(("first", "second", "third")):
        rest(database).export(planted(run, users=1200, movies=5, seed=seed).write(tmp_path / run), ExportConfig())
    header = {"content_hash": "h", "factors": 4, "mu": 3, "rating_min": 0, "rating_max": 5}
    client.rpc("mf_register", {"run": header | {"run_id": "begun", "n_users": 7, "n_movies": 8}}).execute()


TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def test_the_list_marks_the_published_run_and_the_one_for_a_rollback(runs, three):
    status, out, err = runs("list")
    assert (status, err) == (0, "")
    lines = [re.sub(TIME, "TIME", line) for line in out.splitlines()]
    assert [re.split(" {2,}", line) for line in lines] == [
        ["run", "status", "created", "published", "users", "movies", "factors"],
        ["third", "published", "TIME", "TIME", "1,200", "5", "8", "readers see it"],
        ["second", "retired", "TIME", "TIME", "1,200", "5", "8", "rollback publishes it again"],
        ["begun", "loading", "TIME", "never", "7", "8", "4"],
    ]
    assert (
        len({line.index(cell) for line, cell in zip(out.splitlines(), ["status", "publ", "ret", "load"], strict=True)})
        == 1
    )


def test_without_a_run_the_list_says_so(runs):
    assert runs("list") == (0, "no run has been exported yet\n", "")


def test_a_rollback_goes_back_and_forth_and_takes_a_name(runs, three, client):
    for argv, back, kept in (([], "second", "third"), ([], "third", "second"), (["second"], "second", "third")):
        assert runs("rollback", *argv) == (0, f"run {back} is published again; run {kept} is kept\n", "")
        assert published_run(client)["run_id"] == back


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["rollback", "third"], "run third is published already: nothing was changed"),
        (["rollback", "first"], "there is no run first: `python -m mf runs list` shows all runs"),
        (["rollback", "begun"], "run begun was never published: export its model again, which publishes it"),
        (["rollback", ""], "there is no run : `python -m mf runs list` shows all runs"),
    ],
)
def test_a_run_that_cannot_be_restored_is_an_error_in_one_line_and_nothing_changes(runs, three, client, argv, said):
    assert runs(*argv) == (2, "", f"error: {said}\n")
    assert published_run(client)["run_id"] == "third"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["list", "third"], "list takes no run (see python -m mf runs --help)"),
        (["rollback", "--keep", "2"], "--keep is for prune, not for rollback (see python -m mf runs --help)"),
        (["prune", "--keep", "-1"], "keep: Input should be greater than or equal to 0 (given: -1)"),
        (["publish"], "argument list|rollback|prune: invalid choice: 'publish' (choose from list, rollback, prune)"),
        ([], "the following arguments are required: list|rollback|prune (see python -m mf runs --help)"),
    ],
)
def test_a_mistake_is_an_error_in_one_line_and_nothing_is_sent(runs, database, argv, said):
    status, out, err = runs(*argv)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
    assert database.gateway.requests == []


def test_a_rollback_without_an_earlier_run_is_an_error(runs, database, client, tmp_path):
    said = "error: there is no earlier run to roll back to: the database keeps only the published run\n"
    rest(database).export(planted("only", users=5, movies=5).write(tmp_path), ExportConfig())
    assert runs("rollback") == (2, "", said)
    assert published_run(client)["run_id"] == "only"


def test_prune_removes_old_runs_and_keeps_the_published_one(runs, three, client):
    assert runs("prune") == (0, "there was nothing to remove\n", "")
    assert runs("prune", "--keep", "0") == (0, "removed second\n", "")
    assert published_run(client)["run_id"] == "third"
    assert runs("rollback")[0] == 2


@pytest.mark.parametrize("key", ["publishable_key", "anon_key", "wrong", "user"])
def test_any_key_but_the_secret_one_is_refused_in_one_line_without_the_key(runs, database, monkeypatch, key):
    value = "sb_secret_wrongwrongwrong" if key == "wrong" else None
    value = value or (
        database.user_token("6f0a4c1e-8a53-4f5e-9a51-0d5a5e0a3c11") if key == "user" else getattr(database, key)
    )
    monkeypatch.setenv("SUPABASE_KEY", value)
    for action in ("list", "rollback", "prune"):
        status, out, err = runs(action)
        assert (status, out) == (2, "")
        assert re.fullmatch(r"error: [^\n]*(use the project's secret key|check SUPABASE_KEY)[^\n]*\n", err)
        assert value not in err


def test_the_help_of_the_trainer_names_the_command_and_its_own_help_the_actions(runs, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "; runs: Lists published runs, restores an earlier one" in " ".join(capsys.readouterr().out.split())
    status, out, _ = runs("--help")
    assert status == 0
    for word in ("list: show", "rollback: publish the previous run", "prune: remove", "--keep N", "--supabase_key KEY"):
        assert word in " ".join(out.split())
