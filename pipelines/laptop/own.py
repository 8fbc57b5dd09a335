"""A run on this machine against the user's own Supabase project."""

import getpass
import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from mf.errors import ConfigError, SupabaseError
from mf.ratings.titles import titles_beside
from mf.supabase.config import ExportConfig, SchemaConfig
from mf.supabase.credentials import Credentials, address_problem, project_url
from mf.supabase.database import Database
from mf.supabase.find import find_target
from mf.supabase.target import MigrationOptions

KEYS = ("SUPABASE_KEY", "SUPABASE_KEY_SECRET", "SUPABASE_DB_URL", "SUPABASE_DB_URL_SECRET")


@dataclass(frozen=True)
class OwnProject:
    """The user's project: its address, and the environment with which the steps reach it; ``repr`` hides the key."""

    url: str
    key: SecretStr | None  # None: only the database's own address is known

    @classmethod
    def find(cls, url: str) -> "OwnProject":
        """The project at ``url`` with the key of the environment, else with one that is asked for on a terminal.

        Raises:
            ConfigError: the address is malformed, or there is no key and no terminal to ask on.
            SupabaseError: Secret Manager does not return a secret.
        """
        url = project_url(url)
        if problem := address_problem(url):
            raise ConfigError(f"SUPABASE_URL {problem}")
        database = Database.find()
        if database:
            database.check_project(url)
        given = any(os.environ.get(name) for name in KEYS[:2])
        if given:
            return cls(url, Credentials.find(url).key)
        if database:
            return cls(url, None)
        if not sys.stdin.isatty():
            raise ConfigError(f"no key for {url}: set SUPABASE_KEY in the environment to the project's secret key")
        asked = SecretStr(getpass.getpass(f"secret key of {url} (sb_secret_… or service_role; it is not shown): "))
        return cls(url, Credentials.find(url, asked).key)

    def environment(self) -> dict[str, str]:
        """The variables of the steps, which hold the key."""
        found = {name: os.environ[name] for name in KEYS[2:] if os.environ.get(name)}
        if self.key:
            found["SUPABASE_KEY"] = self.key.get_secret_value()
        return {"SUPABASE_URL": self.url, **found}

    def schema(self, views: Mapping[str, Any]) -> SchemaConfig:
        """The options of the project's migration; checked before anything is read or trained.

        Raises:
            SupabaseError: the migration is missing, older than this release or made for other views, or the key is
                refused.
        """
        role = self.key and Credentials(self.url, self.key).role
        if role in ("anon", "authenticated"):
            raise SupabaseError(
                f"the key has the role {role}, which may not publish: use the project's secret key (sb_secret_… or the "
                "service_role JWT)"
            )
        options: MigrationOptions = find_target(self.url, self.key).check(None, None, ExportConfig.of(**views))
        return SchemaConfig.of(**{name: options[name] for name in SchemaConfig.model_fields})


@dataclass(frozen=True)
class OwnSource:
    """Ratings for a run against the user's own project: a file, or a table of the project."""

    project: OwnProject
    ratings: Path | None
    table: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The pipeline's parameters that select the source."""
        source = {"ratings_csv": str(self.ratings)} if self.ratings else {"import_table": self.table}
        return {**source, "supabase_url": self.project.url}

    @property
    def folder(self) -> str:
        """Name of the folder of the steps' outputs."""
        text = f"{self.project.url} {self.ratings or self.table}"
        return f"project_{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def titles(self) -> Mapping[str, str]:
        """Movie titles by movie id, as text."""
        return titles_beside(str(self.ratings)) if self.ratings else {}


def own_source(url: str, ratings: Path | None, table: str) -> OwnSource:
    """The source of a run against the project at ``url``.

    Raises:
        ConfigError: neither a file nor a table is given, since the sample never leaves this machine; the file is
            missing; or as ``OwnProject.find``.
    """
    if not ratings and not table:
        raise ConfigError(
            "SUPABASE_URL needs RATINGS=file.csv or IMPORT_TABLE=ratings: the sample is never published to your project"
        )
    if ratings and not ratings.is_file():
        raise ConfigError(f"{ratings}: no such file, expected a file of ratings")
    return OwnSource(OwnProject.find(url), ratings, table)
