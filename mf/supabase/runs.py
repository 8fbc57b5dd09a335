"""``python -m mf runs``: list published runs, roll back, prune."""

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

Row = dict[str, Any]

ACTIONS = {
    "list": "show all runs, newest first",
    "rollback": "publish the previous run again, or RUN",
    "prune": "remove all runs except the published run, the --keep runs published before it, and those that started "
    "to load within the last day",
}


class RunsConfig(Config):
    """Options of ``python -m mf runs``."""

    keep: int = Field(1, ge=0, description="prune: number of previously published runs to keep")
    supabase_url: str = Field("", description="URL of the Supabase project; default: SUPABASE_URL")
    supabase_key: SecretStr | None = Field(None, description="its secret key; SUPABASE_KEY is safer")


def main(argv: Sequence[str], prog: str = "python -m mf runs") -> None:
    """Run the command and print its result.

    Raises:
        MfError: the arguments are wrong or Supabase refused; nothing was changed.
    """
    parser = Parser(prog, "; ".join(f"{action}: {what}" for action, what in ACTIONS.items()) + ".")
    parser.add_argument("action", choices=ACTIONS, metavar="|".join(ACTIONS), help="what to do")
    parser.add_argument("run", nargs="?", metavar="RUN", help="rollback: the run to publish again")
    add_flags(parser, RunsConfig, "options")
    namespace = parser.parse_args(argv)
    options = given(namespace, RunsConfig)
    config = RunsConfig.of(**options)
    if namespace.run is not None and namespace.action != "rollback":
        raise ConfigError(f"{namespace.action} takes no run (see {prog} --help)")
    if "keep" in options and namespace.action != "prune":
        raise ConfigError(f"--keep is for prune, not for {namespace.action} (see {prog} --help)")
    credentials = Credentials.find(config.supabase_url, config.supabase_key)
    if credentials.role in ("anon", "authenticated"):
        raise SupabaseError(
            f"the key has the role {credentials.role}, which may not read runs: use the project's secret key "
            "(sb_secret_… or the service_role JWT)"
        )
    with connect(credentials) as client:
        if namespace.action == "prune":
            removed = prune(client, config.keep)
            print(f"removed {', '.join(removed)}" if removed else "there was nothing to remove")
        elif namespace.action == "rollback":
            restored, replaced = rollback(client, namespace.run)
            print(f"run {restored} is published again" + (f"; run {replaced} is kept" if replaced else ""))
        else:
            print(table(list_runs(client)))


def list_runs(client: Client) -> list[Row]:
    """The rows of ``mf_runs``: published runs first, the last published first, then those never published."""
    runs: list[Row] = call(client.rpc("mf_list_runs"), "list the runs")
    return runs


def table(runs: Sequence[Row]) -> str:
    """The runs as an aligned table; times are UTC."""
    if not runs:
        return "no run has been exported yet"
    # Only the first, newest run of a status is marked.
    marks = {"retired": "rollback publishes it again", "published": "readers see it"}
    lines = [["run", "status", "created", "published", "users", "movies", "factors", ""]]
    lines += [
        [
            run["run_id"], run["status"], _time(run["created_at"]), _time(run["published_at"]), f"{run['n_users']:,}",
            f"{run['n_movies']:,}", str(run["factors"]),
            "; ".join(filter(None, [marks.pop(run["status"], ""), *_notes(run)])),
        ]
        for run in runs
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # Numbers are right-aligned.
    aligned = [str.ljust] * 4 + [str.rjust] * 3 + [str.ljust]
    return "\n".join(
        "  ".join(align(cell, width) for align, cell, width in zip(aligned, line, widths, strict=True)).rstrip()
        for line in lines
    )


def _notes(run: Row) -> list[str]:
    lists = ["lists only"] if run["mu"] is None else []
    return lists + (["published by force"] if (run.get("judged") or {}).get("forced") else [])


def rollback(client: Client, run: str | None = None) -> tuple[str, str | None]:
    """Publish an earlier run again; idempotent where ``run`` is named.

    Args:
        run: a run that the database keeps; ``None``: the one published before the present one.

    Returns:
        The run that is published now, and the one that was published before.

    Raises:
        SupabaseError: there is no such run, it is published already, or it was never published.
    """
    statuses = {row["run_id"]: row["status"] for row in list_runs(client)}
    before = next((name for name, status in statuses.items() if status == "published"), None)
    if run is None:
        # Named here, not in the database: a call without a name that is retried would go back to where it started.
        run = next((name for name, status in statuses.items() if status == "retired"), None)
        if run is None:
            raise SupabaseError("there is no earlier run to roll back to: the database keeps only the published run")
    match statuses.get(run):
        case None:
            raise SupabaseError(f"there is no run {run}: `python -m mf runs list` shows all runs")
        case "published":
            raise SupabaseError(f"run {run} is published already: nothing was changed")
        case "loading":
            raise SupabaseError(f"run {run} was never published: export its model again, which publishes it")
    restored = call(client.rpc("mf_rollback", {"run": run}), "roll back")["run_id"]
    return str(restored), before


def prune(client: Client, keep: int = 1) -> list[str]:
    """Remove old runs with their rows; returns their names."""
    return sorted(call(client.rpc("mf_prune", {"keep": keep}), "remove old runs")["removed"])


def _time(stamp: str | None) -> str:
    return f"{datetime.fromisoformat(stamp).astimezone(UTC):%Y-%m-%d %H:%M:%S}" if stamp else "never"
