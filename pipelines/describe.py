"""The pipeline's parameters as a person meets them: in the console and in the README, from one text."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mf.config import Config
from mf.ratings.config import IngestConfig, SplitConfig
from mf.solvers import AdamConfig
from mf.supabase.config import ExportConfig

STEPS = ("ingest", "split", "train", "evaluate", "export")
OWN = {
    "ratings_csv": "File of ratings, plain or gzip: gs://bucket/object; when empty, import_table is read",
    "import_table": "Supabase table of ratings, read when ratings_csv is empty",
    "supabase_url": "Supabase project to import from and publish to, https://PROJECT.supabase.co",
    "test_size": "Share of all rows, above 0, held out to score once; leave_last: one of each user, whatever it is",
    "seed": "Seed of the split, the initialisation, the order of the ratings and dropout",
    "clip_grad": "Largest norm of a step's gradient; -1: no limit",
    "train_accelerator_type": "GPU of the train step: NVIDIA_TESLA_T4, NVIDIA_L4, NVIDIA_TESLA_A100 and others",
    "train_accelerator_count": "GPUs of the train step",
    **{f"{step}_cpu": f"CPU cores of the {step} step" for step in STEPS},
    **{f"{step}_memory": f"Memory of the {step} step, for example 16G" for step in STEPS},
}
CONFIGS: tuple[type[Config], ...] = (IngestConfig, SplitConfig, AdamConfig, ExportConfig)


def description(parameter: str) -> str:
    """What a pipeline parameter means: its config field's own words, but where the pipeline has others.

    Raises:
        KeyError: nothing describes it.
    """
    if parameter in OWN:
        return OWN[parameter]
    fields = {name: field for config in reversed(CONFIGS) for name, field in config.model_fields.items()}
    text = str(fields[parameter].description)
    return text[0].upper() + text[1:]


def described(pipeline: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the descriptions to the docstring, where KFP looks for them."""
    names = inspect.signature(pipeline).parameters
    lines = "\n".join(f"    {name}: {description(name)}." for name in names)
    pipeline.__doc__ = f"{pipeline.__doc__}\n\nArgs:\n{lines}\n"
    return pipeline


def table(definitions: Mapping[str, Mapping[str, Any]]) -> str:
    """The parameters of a compiled pipeline as a table in Markdown, in the order of the pipeline's signature."""
    rows = ["| parameter | default | meaning |", "|---|---|---|"]
    for name, defined in definitions.items():
        default = defined["defaultValue"]
        if defined["parameterType"] == "NUMBER_INTEGER":
            default = int(default)
        rows.append(f"| `{name}` | {f'`{default}`' if default != '' else ''} | {defined['description']} |")
    return "\n".join(rows) + "\n"
