"""``python -m mf runs``: shows the runs that the database keeps, brings one back, drops old ones."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import Field, SecretStr
from supabase import Client

from mf.config import Config
from mf.errors import ConfigError, SupabaseError
from mf.flags import Parser, add_flags, given
from mf.supabase.client import call, connect
from mf.supabase.credentials import Credentials
from mf.supabase.rest_target import rollback

Row = dict[str, Any]

PROG = "python -m mf runs"
ACTIONS = {
    "list": "show the runs, the newest first",
    "rollback": "let readers see the run before the published one again, or RUN",
    "prune": "drop all runs but the published one, those before it, and those that began to load within a day",
}


class RunsConfig(Config):
    """What ``python -m mf runs`` is given."""

    keep: int = Field(1, ge=0, description="prune: runs to keep of those published before the present one")
    supabase_url: str = Field("", description="Supabase project. Else SUPABASE_URL")
    supabase_key: SecretStr | None = Field(None, description="its secret key; better left to SUPABASE_KEY")


def main(argv: Sequence[str]) -> None:
    """Runs the command and prints what came of it.

    Raises:
        MfError: it cannot be; nothing was changed.
    """
    parser = Parser(PROG, "; ".join(f"{action}: {what}" for action, what in ACTIONS.items()) + ".")
    parser.add_argument("action", choices=ACTIONS, help="what to do")
    parser.add_argument("run", nargs="?", metavar="RUN", help="rollback: the run to bring back")
    add_flags(parser, RunsConfig, "options")
    namespace = parser.parse_args(argv)
    options = given(namespace, RunsConfig)
    config = RunsConfig.of(**options)
    if namespace.run is not None and namespace.action != "rollback":
        raise ConfigError(f"{namespace.action} takes no run (see {PROG} --help)")
    if "keep" in options and namespace.action != "prune":
        raise ConfigError(f"--keep is for prune, and not for {namespace.action} (see {PROG} --help)")
    credentials = Credentials.find(config.supabase_url, config.supabase_key)
    if credentials.role in ("anon", "authenticated"):
        raise SupabaseError(
            f"the key is of the role {credentials.role}, which may not see runs: use the project's secret key "
            "(sb_secret_… or the service_role JWT)"
        )
    with connect(credentials) as client:
        if namespace.action == "prune":
            print(prune(client, config.keep))
        elif namespace.action == "rollback":
            print(bring_back(client, namespace.run))
        else:
            print(table(list_runs(client)))


def list_runs(client: Client) -> list[Row]:
    """The rows of ``mf_runs``: those that were published, the last one first, before those that never were."""
    runs: list[Row] = call(client.rpc("mf_list_runs"), "list the runs")
    return runs


def table(runs: Sequence[Row]) -> str:
    """The runs in columns, for a person; times are UTC."""
    if not runs:
        return "no run was exported yet"
    # The newest of a status comes first.
    marks = {"retired": "rollback brings it back", "published": "readers see it"}
    lines = [["run", "status", "created", "published", "users", "movies", "factors", ""]]
    lines += [
        [
            run["run_id"], run["status"], _time(run["created_at"]), _time(run["published_at"]), f"{run['n_users']:,}",
            f"{run['n_movies']:,}", str(run["factors"]), marks.pop(run["status"], ""),
        ]
        for run in runs
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # Numbers stand to the right.
    aligned = [str.ljust] * 4 + [str.rjust] * 3 + [str.ljust]
    return "\n".join(
        "  ".join(align(cell, width) for align, cell, width in zip(aligned, line, widths, strict=True)).rstrip()
        for line in lines
    )


def bring_back(client: Client, wanted: str | None) -> str:
    """Makes readers see the run ``wanted`` again, or the one before the published one; says what was done.

    Raises:
        SupabaseError: there is no such run, readers see it already, or it was never whole.
    """
    statuses = {run["run_id"]: run["status"] for run in list_runs(client)}
    now = next((run for run, status in statuses.items() if status == "published"), None)
    status = statuses.get(wanted) if wanted is not None else None
    if wanted is None and "retired" not in statuses.values():
        raise SupabaseError("there is no earlier run to bring back: the database keeps none but the published one")
    if wanted is not None and status is None:
        raise SupabaseError(f"there is no run {wanted}: `{PROG} list` shows those that are there")
    if status == "published":
        raise SupabaseError(f"the run {wanted} is published already: nothing was changed")
    if status == "loading":
        raise SupabaseError(f"the run {wanted} was never published: export its model again, which publishes it")
    back = rollback(client, wanted)
    return f"readers see run {back} again" + (f"; run {now} is kept" if now else "")


def prune(client: Client, keep: int) -> str:
    """Drops old runs with their rows; says which."""
    removed = call(client.rpc("mf_prune", {"keep": keep}), "drop old runs")["removed"]
    return f"dropped {', '.join(sorted(removed))}" if removed else "there was nothing to drop"


def _time(stamp: str | None) -> str:
    return f"{datetime.fromisoformat(stamp).astimezone(UTC):%Y-%m-%d %H:%M:%S}" if stamp else "never"
