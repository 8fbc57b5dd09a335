"""Where and with what the pipeline runs on Vertex AI: ``settings.toml``."""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from mf.config import Config
from mf.errors import ConfigError
from mf.supabase.credentials import is_address
from mf.version import git_sha

RESOURCE = r"^(projects/[^/]+/secrets/[^/]+(/versions/[^/]+)?)?$"
DEFAULT_FILE = Path(__file__).with_name("settings.toml")


def _address(url: str) -> str:
    if url and not is_address(url):
        raise PydanticCustomError("address", "an address of the form https://PROJECT.supabase.co is expected")
    return url


class Settings(Config):
    """What is settled when the pipeline is compiled or submitted; everything else is a parameter of the run."""

    project: str = Field("", description="Google Cloud project of the runs")
    region: str = Field("europe-west4", description="region of the runs")
    pipeline_root: str = Field(
        "", pattern=r"^(gs://[a-z0-9][a-z0-9._-]+(/.*)?)?$", description="gs://bucket/folder for artifacts"
    )
    service_account: str = Field("", description="account that the steps run as; empty: the project's default")
    image_repository: str = Field("mf", min_length=1, description="registry path that the images were pushed to")
    image_tag: str = Field("", pattern=r"^[\w.-]*$", description="their tag; empty: the commit")
    supabase_url: Annotated[str, AfterValidator(_address)] = Field(
        "", description="Supabase project of the runs; a run may name another"
    )
    supabase_key_secret: str = Field(
        "",
        pattern=RESOURCE,
        description="name of the Secret Manager secret that holds the Supabase key",
    )
    supabase_db_url_secret: str = Field(
        "",
        pattern=RESOURCE,
        description="name of the secret that holds the database's address; empty: its REST API is used",
    )

    @classmethod
    def load(cls, file: Path = DEFAULT_FILE) -> "Settings":
        """Reads a settings file.

        Raises:
            ConfigError: it is missing, is no TOML, or holds an unknown key or an impossible value.
        """
        try:
            values = tomllib.loads(file.read_text())
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}, expected a settings file") from None
        except ValueError as error:
            raise ConfigError(f"{file} is no TOML: {error}") from None
        try:
            return cls.of(**values)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None

    def image(self, kind: str) -> str:
        """The image ``cpu`` or ``gpu`` that a step runs in."""
        # The settings file is in the checkout and in no image: filled in, it makes the one dirty and not the other.
        return f"{self.image_repository}/mf-python-{kind}:{self.image_tag or git_sha().removesuffix('-dirty')}"
