"""Refusing secrets in parameters, settings and images, whose values show in the console, in logs and in requests."""

import tarfile
from pathlib import Path

from mf.errors import ConfigError
from mf.leaks import kind_of


def refuse(what: str, text: str) -> None:
    """Refuses a text that looks like a secret.

    Args:
        what: name of the value, for the error: "parameter columns".
        text: the value.

    Raises:
        ConfigError: it looks like a secret; the error does not show it.
    """
    if kind := kind_of(text):
        raise ConfigError(
            f"{what} looks like {kind}, and shows in the console and in logs: put it into Secret Manager and its "
            "name into supabase_key_secret or supabase_db_url_secret of pipelines/settings.toml"
        )


def refuse_files(archive: Path) -> None:
    """Refuses a tar archive with a file that holds a secret.

    Raises:
        ConfigError: it does; the error names the file and does not show the secret.
    """
    with tarfile.open(archive) as files:
        for member in filter(tarfile.TarInfo.isfile, files):
            held = files.extractfile(member)
            if held and (kind := kind_of(held.read().decode(errors="replace"), code=True)):
                raise ConfigError(
                    f"{member.name} holds {kind}, and would be in the image: take it out, commit, and replace "
                    "the secret, which is in git's history now"
                )
