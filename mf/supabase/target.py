"""Where an export goes and what stands there: the direct connection when there is one, else the REST API."""

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pydantic import SecretStr

from mf.errors import ConfigError
from mf.model_directory import Embeddings
from mf.supabase.client import connect
from mf.supabase.config import ExportConfig
from mf.supabase.credentials import Credentials
from mf.supabase.database import Database
from mf.supabase.direct_target import check_migration_directly, export_directly
from mf.supabase.published import (
    PublishedRun,
    read_embeddings,
    read_embeddings_directly,
    read_run,
    read_run_directly,
)
from mf.supabase.rest_target import Published, Rest, check_migration, export


@dataclass(frozen=True)
class Destination:
    """A Supabase project to publish to."""

    way: Database | Credentials

    @classmethod
    def find(cls, url: str = "", key: SecretStr | None = None) -> "Destination":
        """The database of ``SUPABASE_DB_URL``, which needs no key, else the API of ``url`` or ``SUPABASE_URL``.

        Raises:
            ConfigError: neither is there or can be one, or the two are different projects.
            SupabaseError: Secret Manager does not give a secret.
        """
        database = Database.find()
        if not database:
            return cls(Credentials.find(url, key))
        project = re.fullmatch(r"https://(\w+)\.supabase\.co/?", url)
        if project and database.project and project[1] != database.project:
            raise ConfigError(
                f"--supabase_url is the project {project[1]}, and SUPABASE_DB_URL the project {database.project}: "
                "unset SUPABASE_DB_URL, or let it name the same project"
            )
        return cls(database)

    def check(self, user_ids: pa.ChunkedArray, movie_ids: pa.ChunkedArray, config: ExportConfig) -> None:
        """Whether the database is there and made for these ids and views.

        Raises:
            SupabaseError: it is not, with what to do.
        """
        if isinstance(self.way, Database):
            check_migration_directly(self.way, user_ids, movie_ids, config)
        else:
            with connect(self.way) as client:
                check_migration(Rest(client), user_ids, movie_ids, config)

    def export(self, model_dir: Path, config: ExportConfig) -> Published:
        """See ``mf.supabase.rest_target.export``, which it raises as."""
        if isinstance(self.way, Database):
            return export_directly(self.way, model_dir, config)
        with connect(self.way) as client:
            return export(client, model_dir, config)

    def published_run(self) -> PublishedRun | None:
        """The run that readers see; ``None`` when there is none, or no migration yet.

        Raises:
            SupabaseError: the database cannot be reached, or refused.
        """
        if isinstance(self.way, Database):
            return read_run_directly(self.way)
        with connect(self.way) as client:
            return read_run(client)

    def embeddings(self, run: PublishedRun) -> tuple[Embeddings, Embeddings]:
        """The users and the movies of ``run``.

        Raises:
            SupabaseError: the run was removed meanwhile; or as ``published_run``.
        """
        if isinstance(self.way, Database):
            return read_embeddings_directly(self.way, run)
        with connect(self.way) as client:
            return read_embeddings(client, run)
