"""Settings of the pipeline on Vertex AI: ``settings.toml``, overridden by the environment."""

import json
import os
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from mf.config import Config
from mf.errors import ConfigError
from mf.files import written_aside
from mf.supabase.credentials import NAME_FORM, SECRET_NAME, address_problem, project_url
from mf.version import git_sha
from pipelines import leaks
from pipelines.vertex import machines
from pipelines.vertex.machines import all_regions, is_region

DIGEST = r"^([^\s@]+@sha256:[0-9a-f]{64})?$"
DEFAULT_FILE = Path(__file__).with_name("settings.toml")
# MF_REGION in the environment overrides the setting region.
PREFIX = "MF_"
RUN_LABELS = ("git_sha", "version", "content")  # set by every run, so the settings may not

Email = Annotated[str, StringConstraints(pattern=r"^[^\s@,]+@[^\s@,]+$")]
LabelName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Value = bool | int | float | str
LabelValue = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]{0,63}$")]


def _address(url: str) -> str:
    if url and (problem := address_problem(project_url(url))):
        # Braces would be a template's.
        raise PydanticCustomError("address", "the address {problem}", {"problem": problem})
    return url


def _secret_name(name: str) -> str:
    if name and not SECRET_NAME.fullmatch(name):
        raise PydanticCustomError("secret_name", f"a name of the form {NAME_FORM} is expected")
    return name


SecretName = Annotated[str, AfterValidator(_secret_name)]


def _region(name: str) -> str:
    if name and not is_region(name):
        raise PydanticCustomError("region", "expected one of " + ", ".join(all_regions()))
    return name


class Resources(Config):
    """CPU and memory of a step."""

    cpu: str = Field("", pattern=rf"^({machines.CPU})?$", description="CPU cores, for example 4; empty: the step's own")
    memory: str = Field(
        "", pattern=rf"^({machines.MEMORY})?$", description="memory, for example 16G; empty: the step's own"
    )

    def overridden(self, other: "Resources | None") -> "Resources":
        """These, with what ``other`` sets in their place."""
        return Resources(cpu=other.cpu or self.cpu, memory=other.memory or self.memory) if other else self


class Settings(Config):
    """Settings of the pipeline's compilation, submission and schedules; everything else is a parameter of the run."""

    project: str = Field("", pattern=r"^([a-z][a-z0-9.:-]*)?$", description="Google Cloud project of the runs")
    region: Annotated[str, AfterValidator(_region)] = Field("europe-west4", description="region of the runs")
    pipeline_root: str = Field(
        "", pattern=r"^(gs://[a-z0-9][a-z0-9._-]+(/.*)?)?$", description="gs://bucket/folder for artifacts"
    )
    service_account: str = Field(
        "", pattern=r"^([^\s@]+@[^\s@]+)?$", description="service account of the steps; empty: the project's default"
    )
    network: str = Field(
        "",
        pattern=r"^(projects/[^/]+/global/networks/[^/]+)?$",
        description="VPC network that the steps are peered with; empty: none",
    )
    image_repository: str = Field("mf", min_length=1, description="registry path that the images were pushed to")
    image_tag: str = Field("", pattern=r"^[\w.-]*$", description="their tag; empty: the commit")
    cpu_image: str = Field("", pattern=DIGEST, description="the CPU image by digest; empty: by its tag")
    gpu_image: str = Field("", pattern=DIGEST, description="the GPU image by digest; empty: by its tag")
    supabase_url: Annotated[str, AfterValidator(_address)] = Field(
        "", description="default of the parameter supabase_url: the Supabase project of the runs"
    )
    supabase_key_secret: SecretName = Field(
        "", description="name of the Secret Manager secret that holds the Supabase key"
    )
    supabase_db_url_secret: SecretName = Field(
        "",
        description="name of the secret that holds the database URL; empty: the REST API is used",
    )
    spot: bool = Field(False, description="train on a spot machine, which may be preempted")
    retries: int = Field(
        2, ge=0, le=10, description="retries of a failed step, for the steps that train or call a service"
    )
    notify_log: bool = Field(
        False, description="log one line at the end of every run, with severity ERROR if it failed"
    )
    model_registry: bool = Field(False, description="upload every published model to the Model Registry")
    notify_emails: tuple[Email, ...] = Field((), description="e-mail addresses to notify when a run ends")
    labels: dict[LabelName, LabelValue] = Field(
        default_factory=dict, description="labels of every run, besides git_sha and version"
    )
    machines: dict[str, Resources] = Field(default_factory=dict, description="CPU and memory of the steps, by step")
    parameters: dict[str, Value | dict[str, Value]] = Field(
        default_factory=dict, description="defaults of the pipeline's parameters"
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if bool(self.cpu_image) != bool(self.gpu_image):
            raise ValueError("one of cpu_image and gpu_image is set; set both, as `make images` does, or neither")
        if self.notify_log and self.notify_emails:
            raise ValueError("notify_log and notify_emails are both set, and a pipeline has one final step: choose one")
        if taken := [name for name in RUN_LABELS if name in self.labels]:
            raise ValueError(f"labels: every run has a {taken[0]} of its own")
        if "supabase_url" in self.parameters:
            raise ValueError("parameters: supabase_url is a setting, set it above")
        return self

    @classmethod
    def load(cls, file: Path = DEFAULT_FILE, environ: Mapping[str, str] | None = None) -> "Settings":
        """Reads a settings file; its ``images_file`` overrides it, and the ``MF_…`` variables of ``environ`` (default:
        the process's environment) override both.

        Raises:
            ConfigError: the file is missing or is not TOML; or one of the three has an unknown key, an invalid value or
                one that looks like a secret.
        """
        values = _read(file)
        settings = _checked(cls, values, str(file))
        if (images := images_file(file)).exists():
            values |= _read_images(images)
            settings = _checked(cls, values, str(images))
        if not (given := overrides(os.environ if environ is None else environ)):
            return settings
        return _checked(cls, _merged(values, given), ", ".join(f"{PREFIX}{name.upper()}" for name in given))

    @property
    def pinned(self) -> bool:
        """Whether the images are named by digest, which unlike a tag always means the same bytes."""
        return bool(self.cpu_image)

    def image(self, kind: str) -> str:
        """The image ``cpu`` or ``gpu`` that a step runs in."""
        if digest := {"cpu": self.cpu_image, "gpu": self.gpu_image}[kind]:
            return digest
        # An edited settings file makes the checkout dirty but is in no image, so the tag is that of the clean commit.
        return f"{self.image_repository}/mf-python-{kind}:{self.image_tag or git_sha().removesuffix('-dirty')}"

    def defaults(self) -> list[str]:
        """``parameters`` as they stand on a command line: name=value or name.key=value each."""
        flat: dict[str, Value] = {}
        for name, value in self.parameters.items():
            flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        return [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in flat.items()]


def overrides(environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings that stand in the environment.

    A list is written with blanks between its entries, a table as ``MF_PARAMETERS="epochs=20 solver_options.rank=16"``;
    an entry with a blank in it is quoted as in a shell.

    Raises:
        ConfigError: a quote is not closed.
    """
    found: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        text = environ.get(f"{PREFIX}{name.upper()}")
        if text is None:
            continue
        default = field.get_default(call_default_factory=True)
        if isinstance(default, dict):
            found[name] = _table(words(text, f"{PREFIX}{name.upper()}"))
        else:
            found[name] = words(text, f"{PREFIX}{name.upper()}") if isinstance(default, tuple) else text
    return found


def words(text: str, where: str) -> list[str]:
    """Splits a text into words as a shell does.

    Raises:
        ConfigError: a quote is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {str(error).lower()}, expected words as in a shell") from None


def _table(entries: Iterable[str]) -> dict[str, Any]:
    """``["train.cpu=16"]`` as ``{"train": {"cpu": "16"}}``."""
    table: dict[str, Any] = {}
    for entry in entries:
        path, _, text = entry.partition("=")
        nested: Any = text
        for key in reversed(path.split(".")):
            nested = {key: nested}
        table = _merged(table, nested)
    return table


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``below`` with the entries of ``above`` in their place; tables that both have are merged."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def images_file(file: Path) -> Path:
    """The generated file beside a settings file that holds the images' digests: ``settings.images.toml``."""
    return file.with_suffix(".images.toml")


def write_images(file: Path, images: Mapping[str, str]) -> Path:
    """Writes ``cpu_image`` and ``gpu_image`` to the ``images_file`` of the settings ``file``, and returns its path.

    Raises:
        ConfigError: a value is not an image by digest.
    """
    target = images_file(file)
    _checked(Settings, images, str(target))
    with written_aside(target) as aside:
        lines = [f"{name} = {json.dumps(image)}\n" for name, image in images.items()]
        aside.write_text(
            "# Written by `make images`. Without this file the images are named by their tag.\n" + "".join(lines)
        )
    return target


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}, expected a settings file") from None
    except ValueError as error:
        raise ConfigError(f"{file} is no TOML: {error}") from None


def _read_images(file: Path) -> dict[str, Any]:
    images = _read(file)
    if {*images} != {"cpu_image", "gpu_image"}:
        raise ConfigError(
            f"{file}: found {', '.join(images) or 'nothing'}, expected cpu_image and gpu_image: run `make images`"
        )
    return images


def _checked(settings: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    try:
        for name, value in values.items():
            leaks.refuse(name, str(value))
        if unknown := [name for name in values if name not in settings.model_fields]:
            raise ConfigError(f"there is no setting {unknown[0]!r}; there are {', '.join(settings.model_fields)}")
        return settings.of(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
