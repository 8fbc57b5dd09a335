"""The migration that an export needs, rendered from ``schema.sql``."""

import shlex
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from mf.supabase.config import BECAUSE_OF, SchemaConfig

# pgvector's HNSW parameters: recall of the top ten among 59,000 movies is 99.6% for similar_movies and 99.9% for
# recommend_movies. With pgvector's defaults (16, 64, 40) it is below 92% for similar_movies (docs/benchmarks.md).
HNSW = {"m": 16, "ef_construction": 100, "ef_search": 400}

# Columns of the ratings table that are taken for the time of the rating, of several the first.
TIMES = ("rated_at", "timestamp", "created_at")


def migration(config: SchemaConfig) -> str:
    """The SQL that creates or upgrades tables, views and functions: one idempotent transaction.

    It must run as the owner of schema ``public`` (Supabase's ``postgres``). It first checks what exists, and raises an
    exception without any change when the tables have other id types, when something else has a view's name, or when
    the ratings table or the items table does not match ``config``.
    """
    # No HTML escaping: the output is SQL, quoted by the filters.
    environment = Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)  # noqa: S701
    environment.filters.update(identifier=_identifier, literal=_literal, array=_array)
    template = environment.from_string(files("mf.supabase").joinpath("schema.sql").read_text(encoding="utf-8"))
    filters = config.filters
    # Functions that embed rows of the items table: their argument's view, their name, and the view's column of ids.
    embedded = [(view, config.items_table, "movie_id") for view in ("mf_list", "mf_similar", "mf_popular")]
    embedded.append(("mf_list", BECAUSE_OF, "because"))
    return template.render(
        config.model_dump(),
        config=config.model_dump_json(),
        filters=filters,
        filter_columns="".join(f", item.{_identifier(column)}" for column in filters),
        embedded=embedded,
        embeddings=[f"public.{_identifier(name)}(public.{view})" for view, name, _ in embedded],
        times=TIMES,
        publish_lock="lock table public.mf_priors in share row exclusive mode;",
        **HNSW,
    )


def command(options: dict[str, str]) -> str:
    """The command that prints the migration for ``options``, fields of ``SchemaConfig``."""
    defaults = SchemaConfig().model_dump()
    flags = [part for name, value in options.items() if value != defaults.get(name) for part in (f"--{name}", value)]
    return shlex.join(["python", "-m", "mf", "schema", *flags])


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _array(texts: Sequence[str]) -> str:
    return f"array[{', '.join(map(_literal, texts))}]::text[]"
