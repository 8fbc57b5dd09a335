"""The migration that an export needs, rendered from ``schema.sql``."""

import shlex
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from mf.supabase.config import SchemaConfig

# pgvector's HNSW parameters: recall of the top ten among 59,000 movies is 99.6% for similar_movies and 99.9% for
# recommend_movies. With pgvector's defaults (16, 64, 40) it is below 92% for similar_movies (docs/benchmarks.md).
HNSW = {"m": 16, "ef_construction": 100, "ef_search": 400}


def migration(config: SchemaConfig) -> str:
    """The SQL that creates or upgrades tables, views and functions: one idempotent transaction.

    It must run as the owner of schema ``public`` (Supabase's ``postgres``). It first checks what exists, and raises an
    exception without any change when the tables have other id types, when something else has a view's name, or when
    the ratings table does not match ``config``.
    """
    # No HTML escaping: the output is SQL, quoted by the two filters.
    environment = Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)  # noqa: S701
    environment.filters.update(identifier=_identifier, literal=_literal)
    template = environment.from_string(files("mf.supabase").joinpath("schema.sql").read_text(encoding="utf-8"))
    return template.render(config.model_dump(), config=config.model_dump_json(), **HNSW)


def command(options: dict[str, str]) -> str:
    """The command that prints the migration for ``options``, fields of ``SchemaConfig``."""
    defaults = SchemaConfig().model_dump()
    flags = [part for name, value in options.items() if value != defaults.get(name) for part in (f"--{name}", value)]
    return shlex.join(["python", "-m", "mf", "schema", *flags])


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
