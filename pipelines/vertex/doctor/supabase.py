"""What is needed in the Supabase project, asked through its API with the key that the steps use."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
from postgrest.exceptions import APIError
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from mf.errors import ConfigError
from mf.supabase.client import explain
from mf.supabase.config import SchemaConfig
from mf.supabase.credentials import Credentials
from mf.supabase.database import Database
from mf.supabase.schema import command, migration
from pipelines.vertex.doctor.finding import Check, Finding, HaltError, missing, ok, unknown

TIMEOUT_S = 8.0
KEY = "set SUPABASE_KEY to the project's secret key (sb_secret_…), or correct the secret that holds it"


@dataclass
class Project:
    """The Supabase project under examination.

    Attributes:
        url: the settings' or the environment's; empty when neither names one.
        key: to it; none when there is neither one in the environment nor a secret that could be read.
        database: its address, likewise.
        http: sends the requests.
        ratings: the table that the runs read; empty when they read a file.
        online: whether others answer.
        answers: it takes the key.
        made: what the migration was made for.
        listed: what the API offers the key's role, by path.
    """

    url: str
    key: SecretStr | None
    database: SecretStr | None
    http: httpx.Client
    ratings: str
    online: bool
    answers: bool = False
    made: SchemaConfig | None = None
    listed: Mapping[str, Any] = field(default_factory=dict)


def checks(project: Project) -> list[Check]:
    """The checks of the project, in their order."""
    on = [("Supabase", reachable), ("migration", migrated), ("grants", grants)]
    on += [("table of ratings", ratings)] if project.ratings else []
    return [(name, functools.partial(look, project)) for name, look in on]


def reachable(project: Project) -> Finding:
    """It answers, and the key is one of the service role."""
    if not project.url:
        raise HaltError("neither the settings nor SUPABASE_URL names a project")
    if project.key is None:
        raise HaltError("there is no key: SUPABASE_KEY is not set, and no secret was read")
    try:
        role = _credentials(project).role
    except ConfigError as error:
        return missing(str(error), KEY)
    if role in ("anon", "authenticated"):
        return missing(f"the key for {project.url} is of the role {role}", KEY)
    try:
        answer = _ask(project, "/")
    except HaltError as halt:
        if not project.online:
            raise
        return missing(str(halt), "correct supabase_url, or look at the project's dashboard: is it paused?")
    return _listed(project, answer)


def _listed(project: Project, answer: httpx.Response) -> Finding:
    """What the root of the API says: what it offers the key's role."""
    if answer.status_code == 401:
        return missing(f"{project.url} does not know the key", KEY)
    if answer.status_code == 404:
        project.answers = True
        return unknown(f"{project.url} answers, but does not list what it offers")
    if answer.status_code != 200:
        return missing(
            f"{project.url} answers {answer.status_code}",
            "look at the project's dashboard: is it paused, or restarting?",
        )
    listed = _json(answer)
    if not isinstance(listed, dict) or "paths" not in listed:
        return missing(f"{project.url} does not answer as a Supabase project does", "correct supabase_url")
    project.answers, project.listed = True, listed["paths"]
    return ok(f"{project.url} takes the key")


def migrated(project: Project) -> Finding:
    """The migration is applied."""
    if not project.answers:
        raise HaltError("they need a project that takes the key")
    answer = _ask(project, "/rpc/mf_schema")
    if answer.status_code != 200:
        return missing(_refusal(answer, "read the options of the migration"), f"apply what `{command({})}` prints")
    made = _json(answer)
    try:
        project.made = SchemaConfig.of(**made)
    except (ConfigError, TypeError):
        return missing("it is of a newer release than this code", "git pull, and make install")
    if lacking := SchemaConfig.model_fields.keys() - made.keys():
        return missing(f"it is of an earlier release, without {', '.join(sorted(lacking))}", _apply(project.made))
    types = f"{made['user_id_type']} users, {made['movie_id_type']} movies"
    return ok(f"made for {types}, {made['user_export_table']} and {made['movie_export_table']}")


def grants(project: Project) -> Finding:
    """Each function is there as this code calls it, and each table and view can be read."""
    made = project.made
    if made is None:
        return unknown("they need the migration")
    tables, functions = needed(made)
    lacking = [n for n, given in functions.items() if project.listed and _arguments(project.listed, n) != given]
    lacking += [name for name in tables if _ask(project, f"/{name}?limit=0").status_code != 200]
    if lacking:
        return missing(f"{', '.join(lacking)} not as in this release, or not granted to the service role", _apply(made))
    if not project.listed:
        return unknown(f"{len(tables)} tables and views can be read; the project does not list its functions")
    return ok(f"{len(functions)} functions, {len(tables)} tables and views")


def needed(made: SchemaConfig) -> tuple[list[str], dict[str, set[str]]]:
    """Tables and views, and functions with the names of their arguments, that the migration gives the service role."""
    text = migration(made)
    granted = re.findall(r"grant execute on function ([^;]+?)\s+to service_role;", text)
    names = {name.strip().removeprefix("public.") for some in granted for name in some.split(",")}
    functions = {
        name: set(re.findall(r"(?:^|,)\s*(\w+) ", arguments))
        for name, arguments in re.findall(r"create or replace function public\.(\w+)\(([^)]*)\)", text)
        if name in names
    }
    tables = re.findall(r"create table if not exists public\.(\w+)", text)
    return [*tables, made.user_export_table, made.movie_export_table], functions


def _arguments(listed: Mapping[str, Any], function: str) -> set[str] | None:
    post = listed.get(f"/rpc/{function}", {}).get("post")
    if post is None:
        return None
    bodies = [one["schema"] for one in post.get("parameters", []) if one.get("in") == "body"]
    return {name for body in bodies for name in body.get("properties", {})}


def ratings(project: Project) -> Finding:
    """The table that runs read when they name no file."""
    name = project.ratings
    answer = _ask(project, f"/{quote(name, safe='')}?limit=1")
    if answer.status_code == 200:
        rows = "" if _json(answer) else ", which is empty"
        return ok(f"{name} can be read{rows}")
    if answer.status_code == 404:
        return unknown(f"there is no table {name}", "runs need ratings_csv=gs://… or import_table=…")
    return missing(_refusal(answer, f"read table {name}"), f"grant select on public.{name} to service_role;")


def database(project: Project) -> Finding:
    """The direct connection works, and leads to the same project."""
    address = project.database.get_secret_value() if project.database else ""
    try:
        found = Database.find({"SUPABASE_DB_URL": address})
        if found is None:
            raise ConfigError("the address of the database is empty")
        found.check_project(project.url)
    except ConfigError as error:
        return missing(str(error), "correct the secret that supabase_db_url_secret names")
    conninfo = make_conninfo(found.conninfo.get_secret_value(), connect_timeout=int(TIMEOUT_S))
    try:
        with psycopg.connect(conninfo, prepare_threshold=None) as connection:
            connection.execute("select public.mf_schema()")
    except psycopg.Error as error:
        told = missing if project.online or error.sqlstate else unknown
        return told(found.explain(error, "ask the database"), "without it (supabase_db_url_secret) the API is used")
    return ok(f"{found} answers")


def _apply(made: SchemaConfig) -> str:
    return f"apply what `{command(made.model_dump())}` prints (docs/supabase.md)"


def _credentials(project: Project) -> Credentials:
    return Credentials.find(project.url, project.key, environ={})


def _ask(project: Project, path: str) -> httpx.Response:
    credentials = _credentials(project)
    key = credentials.key.get_secret_value()
    try:
        return project.http.get(
            f"{credentials.url}/rest/v1{path}", headers={"apikey": key, "Authorization": f"Bearer {key}"}
        )
    except httpx.HTTPError:
        pass
    # Raised outside of the handler: the request that the exception holds carries the key.
    raise HaltError(f"{project.url} does not answer")


def _refusal(answer: httpx.Response, doing: str) -> str:
    said = _json(answer)
    if not isinstance(said, dict) or "message" not in said:
        return f"cannot {doing}: {answer.status_code}"
    return explain(APIError(said), doing)


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None
