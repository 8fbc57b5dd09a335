"""The migration that an export needs, made from ``schema.sql`` for the names and id types of a database."""

import shlex
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from mf.supabase.config import SchemaConfig

# For pgvector's HNSW: among 59,000 movies these find 99.6% of the ten most similar and 99.9% of the ten best. Its
# defaults (16, 64, 40) find less than 92% of the most similar (docs/benchmarks.md).
HNSW = {"m": 16, "ef_construction": 100, "ef_search": 400}


def migration(config: SchemaConfig) -> str:
    """The SQL that creates, or brings up to date, tables, views and functions: one transaction, to be run as the owner
    of schema ``public`` (Supabase's ``postgres``). Running it again changes nothing.

    It checks what it finds first and ends with a sentence, having changed nothing, when the tables hold other id types,
    when something else bears a view's name, or when the ratings table is not as ``config`` says.
    """
    # What is made is SQL, which has its own two ways to quote, and no HTML.
    environment = Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)  # noqa: S701
    environment.filters.update(identifier=_identifier, literal=_literal)
    template = environment.from_string(files("mf.supabase").joinpath("schema.sql").read_text(encoding="utf-8"))
    # Equal scores come in the order of the ids, text in that of its code points, whatever the database's collation.
    order = 'e.movie_id collate pg_catalog."C"' if config.movie_id_type == "text" else "e.movie_id"
    return template.render(config.model_dump(), config=config.model_dump_json(), movie_order=order, **HNSW)


def command(wanted: dict[str, str]) -> str:
    """The command that prints the migration for these fields of ``SchemaConfig``."""
    defaults = SchemaConfig().model_dump()
    flags = [part for name, value in wanted.items() if value != defaults.get(name) for part in (f"--{name}", value)]
    return shlex.join(["python", "-m", "mf", "schema", *flags])


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
