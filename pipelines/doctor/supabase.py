"""Checks of the Supabase project, through its API with the steps' key."""

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
from pipelines.doctor.finding import Check, Finding, HaltError, missing, ok, run_checks, unknown

TIMEOUT_S = 8.0
KEY = "set SUPABASE_KEY to the project's secret key (sb_secret_…), or correct the secret that holds it"


@dataclass
class Project:
    """The Supabase project that is checked.

    Attributes:
        url: from the settings or the environment; empty when neither has one.
        key: from the environment or Secret Manager; ``None`` when neither gave one.
        database: address of the direct connection, from the same places.
        http: client that sends the requests.
        ratings_table: the table that the runs read; empty when they read a file.
        online: other servers have answered.
        accepts_key: the API accepts the key.
        migration: the options of the applied migration.
        paths: the API's OpenAPI paths for the key's role; empty when it does not list them.
    """

    url: str
    key: SecretStr | None
    database: SecretStr | None
    http: httpx.Client
    ratings_table: str
    online: bool
    accepts_key: bool = False
    migration: SchemaConfig | None = None
    paths: Mapping[str, Any] = field(default_factory=dict)


def examine(
    url: str,
    key: SecretStr | None,
    database: SecretStr | None,
    environ: Mapping[str, str],
    parameters: Mapping[str, Any],
    *,
    online: bool,
) -> bool:
    """Prints one line per check of the project; true when nothing is missing.

    Args:
        url, key, database: of the settings and the secrets that they name, as far as these could be read.
        environ: its ``SUPABASE_URL``, ``SUPABASE_KEY`` and ``SUPABASE_DB_URL`` override them.
        parameters: default values of the pipeline's parameters.
        online: other servers have answered.
    """
    with httpx.Client(timeout=TIMEOUT_S) as http:
        project = Project(
            url=environ.get("SUPABASE_URL") or url,
            key=SecretStr(environ.get("SUPABASE_KEY", "")) or key,
            database=SecretStr(environ.get("SUPABASE_DB_URL", "")) or database,
            http=http,
            ratings_table="" if parameters["ratings_csv"] else parameters["import_table"],
            online=online,
        )
        all_there = run_checks(checks(project))
    if project.database:
        all_there &= run_checks([("database", lambda: direct_connection(project))])
    return all_there


def checks(project: Project) -> list[Check]:
    """The checks of the project, in order."""
    named = [("Supabase", reachable), ("migration", migrated), ("grants", grants)]
    named += [("table of ratings", ratings)] if project.ratings_table else []
    return [(name, functools.partial(check, project)) for name, check in named]


def reachable(project: Project) -> Finding:
    """The project answers, and the key belongs to the service role."""
    if not project.url:
        raise HaltError("neither the settings nor SUPABASE_URL has the URL of a project")
    if project.key is None:
        raise HaltError("there is no key: SUPABASE_KEY is not set, and no secret was read")
    try:
        role = _credentials(project).role
    except ConfigError as error:
        return missing(str(error), KEY)
    if role in ("anon", "authenticated"):
        return missing(f"the key for {project.url} belongs to the role {role}", KEY)
    try:
        response = _get(project, "/")
    except HaltError as halt:
        if not project.online:
            raise
        return missing(str(halt), "correct supabase_url, or look at the project's dashboard: is it paused?")
    return _read_paths(project, response)


def _read_paths(project: Project, response: httpx.Response) -> Finding:
    """Reads the API's description, which its root returns."""
    if response.status_code == 401:
        return missing(f"{project.url} does not accept the key", KEY)
    if response.status_code == 404:
        project.accepts_key = True
        return unknown(f"{project.url} answers, but does not list its tables and functions")
    if response.status_code != 200:
        return missing(
            f"{project.url} answers {response.status_code}",
            "look at the project's dashboard: is it paused, or restarting?",
        )
    description = _json(response)
    if not isinstance(description, dict) or "paths" not in description:
        return missing(f"{project.url} does not answer like a Supabase project", "correct supabase_url")
    project.accepts_key, project.paths = True, description["paths"]
    return ok(f"{project.url} accepts the key")


def migrated(project: Project) -> Finding:
    """The migration is applied, in this code's version."""
    if not project.accepts_key:
        raise HaltError("they need a project that accepts the key")
    response = _get(project, "/rpc/mf_schema")
    if response.status_code != 200:
        return missing(_error(response, "read the options of the migration"), f"apply what `{command({})}` prints")
    options = _json(response)
    try:
        project.migration = SchemaConfig.of(**options)
    except (ConfigError, TypeError):
        return missing("it is newer than this code", "git pull, and make install")
    if lacking := SchemaConfig.model_fields.keys() - options.keys():
        return missing(f"it is older than this code, without {', '.join(sorted(lacking))}", _apply(project.migration))
    types = f"{options['user_id_type']} users, {options['movie_id_type']} movies"
    return ok(f"applied for {types}, {options['user_export_table']} and {options['movie_export_table']}")


def grants(project: Project) -> Finding:
    """The functions have the arguments that this code passes, and the tables and views can be read."""
    if project.migration is None:
        return unknown("they need the migration")
    tables, functions = required(project.migration)
    lacking = [n for n, names in functions.items() if project.paths and _arguments(project.paths, n) != names]
    lacking += [name for name in tables if _get(project, f"/{name}?limit=0").status_code != 200]
    if lacking:
        return missing(
            f"{', '.join(lacking)} differ from this release, or are not granted to the service role",
            _apply(project.migration),
        )
    if not project.paths:
        return unknown(f"{len(tables)} tables and views can be read; the project does not list its functions")
    return ok(f"{len(functions)} functions, {len(tables)} tables and views")


def required(config: SchemaConfig) -> tuple[list[str], dict[str, set[str]]]:
    """Tables and views, and functions with their argument names, that the migration grants to the service role."""
    text = migration(config)
    granted = re.findall(r"grant execute on function ([^;]+?)\s+to service_role;", text)
    names = {name.strip().removeprefix("public.") for group in granted for name in group.split(",")}
    functions = {
        name: set(re.findall(r'(?:^|,)\s*"?(\w+)"? ', arguments))
        for name, arguments in re.findall(r"create or replace function public\.(\w+)\(([^)]*)\)", text)
        if name in names
    }
    tables = re.findall(r"create table if not exists public\.(\w+)", text)
    return [*tables, config.user_export_table, config.movie_export_table], functions


def _arguments(paths: Mapping[str, Any], function: str) -> set[str] | None:
    post = paths.get(f"/rpc/{function}", {}).get("post")
    if post is None:
        return None
    bodies = [parameter["schema"] for parameter in post.get("parameters", []) if parameter.get("in") == "body"]
    return {name for body in bodies for name in body.get("properties", {})}


def ratings(project: Project) -> Finding:
    """The table that runs read unless they name a file."""
    name = project.ratings_table
    response = _get(project, f"/{quote(name, safe='')}?limit=1")
    if response.status_code == 200:
        rows = "" if _json(response) else ", which is empty"
        return ok(f"{name} can be read{rows}")
    if response.status_code == 404:
        return unknown(f"there is no table {name}", "runs need ratings_csv=gs://… or import_table=…")
    return missing(_error(response, f"read table {name}"), f"grant select on public.{name} to service_role;")


def direct_connection(project: Project) -> Finding:
    """The direct connection works and belongs to the same project."""
    address = project.database.get_secret_value() if project.database else ""
    try:
        database = Database.find({"SUPABASE_DB_URL": address})
        if database is None:
            raise ConfigError("the address of the database is empty")
        database.check_project(project.url)
    except ConfigError as error:
        return missing(str(error), "correct the secret that supabase_db_url_secret names")
    conninfo = make_conninfo(database.conninfo.get_secret_value(), connect_timeout=int(TIMEOUT_S))
    try:
        with psycopg.connect(conninfo, prepare_threshold=None) as connection:
            connection.execute("select public.mf_schema()")
    except psycopg.Error as error:
        finding = missing if project.online or error.sqlstate else unknown
        message = database.explain(error, "query the database")
        return finding(message, "without it (supabase_db_url_secret) the API is used")
    return ok(f"{database} answers")


def _apply(config: SchemaConfig) -> str:
    return f"apply what `{command(config.model_dump())}` prints (docs/supabase.md)"


def _credentials(project: Project) -> Credentials:
    return Credentials.find(project.url, project.key, environ={})


def _get(project: Project, path: str) -> httpx.Response:
    credentials = _credentials(project)
    key = credentials.key.get_secret_value()
    try:
        return project.http.get(
            f"{credentials.url}/rest/v1{path}", headers={"apikey": key, "Authorization": f"Bearer {key}"}
        )
    except httpx.HTTPError:
        pass
    # Raised outside the handler, because the exception holds the request and so the key.
    raise HaltError(f"{project.url} does not answer")


def _error(response: httpx.Response, action: str) -> str:
    body = _json(response)
    if not isinstance(body, dict) or "message" not in body:
        return f"cannot {action}: {response.status_code}"
    return explain(APIError(body), action)


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None
