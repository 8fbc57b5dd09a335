"""Settings of the pipeline on Vertex AI: ``settings.toml``, overridden by the environment."""

import json
import math
import os
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from mf.config import Config, did_you_mean
from mf.errors import ConfigError
from mf.files import written_aside
from mf.supabase.credentials import NAME_FORM, SECRET_NAME, address_problem, project_url
from mf.version import git_sha
from pipelines import leaks
from pipelines.vertex import machines
from pipelines.vertex.machines import all_regions, is_region

DEFAULT_FILE = Path(__file__).with_name("settings.toml")
OWN_FILE = "pipelines/settings.toml"  # its name in the Makefile and in messages
# MF_REGION in the environment overrides the setting region.
PREFIX = "MF_"
RUN_LABELS = ("git_sha", "version", "content")  # set by every run, so the settings may not
# Settings without a meaning on open-source Kubeflow Pipelines, and those without one on Vertex AI.
VERTEX_ONLY = (
    "project", "region", "network", "supabase_key_secret", "supabase_db_url_secret", "spot", "train_nodes",
    "notify_log", "model_registry", "notify_emails", "build_region", "labels",
)  # fmt: skip
KUBEFLOW_ONLY = ("kubeflow_host", "kubeflow_namespace", "kubernetes_secret")
K8S_NAME, EMAIL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", r"[^\s@]+@[^\s@]+"
# In place of the registry path of the images where none is set: a name that no registry can have.
NO_REPOSITORY = "image-repository-is-not-set.invalid"


def _form(pattern: str, expected: str, *hints: tuple[str, str]) -> AfterValidator:
    """A validator of texts: empty, or ``pattern`` as a whole.

    Its error says ``expected`` in words, and not what was found, which may be a secret in the wrong place.

    Args:
        pattern: regular expression.
        expected: in words.
        hints: pattern that begins a text that is not valid, and what to say about it; the first that fits is said.
    """

    def check(text: str) -> str:
        if not text or re.fullmatch(pattern, text):
            return text
        said = next((hint for start, hint in hints if re.match(start, text)), "")
        # The type under which mf.config does not show a value.
        message = expected + (f"; {said}" if said else "")
        raise PydanticCustomError("string_pattern_mismatch", "expected {message}", {"message": message})

    return AfterValidator(check)


Email = Annotated[str, Field(min_length=1), _form(r"[^\s@,]+@[^\s@,]+", "an e-mail address such as me@example.com")]
LabelName = Annotated[
    str,
    Field(min_length=1),
    _form(r"[a-z][a-z0-9_-]{0,62}", "a lower-case letter, then at most 62 of a-z, 0-9, _ and -"),
]
Value = bool | int | float | str
LabelValue = Annotated[str, _form(r"[a-z0-9_-]{0,63}", "at most 63 of a-z, 0-9, _ and -")]
Digest = Annotated[str, _form(r"[^\s@]+@sha256:[0-9a-f]{64}", "an image by digest, REGISTRY/NAME@sha256:…")]
BLANK = (r"(?s).*\s", "it holds a blank")
Root = Annotated[
    str,
    _form(
        r"(?a)(gs|s3|minio)://[a-z0-9](?!.*\.\.)[a-z0-9._-]*[a-z0-9](/(?!\.{1,2}(/|$))[\w.~+=,@:-]+)*/?",
        "gs://bucket/folder, of letters, digits and . _ ~ + = , @ : - between single slashes",
        (
            r"https?://storage\.(cloud\.google|googleapis)\.com/",
            "this is a link for browsers: write gs:// and what follows the host",
        ),
        (
            r"https?://console\.cloud\.google\.com/storage/browser/",
            "this is a page of the console: write gs:// and what follows browser/",
        ),
        BLANK,
        (r"(?s).*[^\x00-\x7f]", "it holds a character that is not ASCII"),
        (r"/gcs/", "write gs:// in place of /gcs/"),
        (r"gcs:", "write gs:// in place of gcs:"),
        (r"gs:(?!//)", "gs: is followed by two slashes"),
        (r"(?!gs|s3|minio)(?i:gs|s3|minio)://", "gs is written in small letters"),
        (r"\w+://[^/]*[A-Z]", "a bucket's name has no capital letters"),
        (r"\w+://(/|$)", "it names no bucket"),
        (r"\w+://[^/]{1,2}(/|$)", "a bucket's name has 3 characters or more"),
        (r"\w+://.*//", "a folder has no name"),
        (r"\w+://.*/\.\.?(/|$)", "a folder is named . or .."),
        (r"[a-z0-9._-]+(/|$)", "write gs:// before it"),
    ),
]
Account = Annotated[
    str,
    _form(
        r"[^\s@:/]+@[^\s@:/]+|" + K8S_NAME,
        "an account: its e-mail address on Vertex AI, its Kubernetes name on Kubeflow",
        BLANK,
        (r"serviceAccount:", "leave out serviceAccount:"),
        (r"projects/", "leave out what stands before its e-mail address"),
    ),
]
Repository = Annotated[
    str,
    _form(
        r"[a-z0-9][a-z0-9.-]*(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*",
        "a registry path such as europe-west4-docker.pkg.dev/my-project/mf",
        (r"https?://", "leave out https://"),
        (r".*/$", "leave out the slash at its end"),
        BLANK,
        (r".*PROJECT", "put your project's id in place of PROJECT"),
        (r".*[A-Z]", "it has no capital letters"),
        (r"[^/]+/.*[:@]", "leave out the tag: that is the setting image_tag"),
    ),
]


def _list(value: Any) -> Any:
    if isinstance(value, str):
        raise PydanticCustomError("list", 'expected a list, ["me@example.com"]')
    return value


def _scalar(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
        raise PydanticCustomError("value", "expected a text, a finite number, true or false")
    return value


def _parameter(value: Any) -> Any:
    return {key: _scalar(one) for key, one in value.items()} if isinstance(value, dict) else _scalar(value)


def _address(url: str) -> str:
    if "://PROJECT." in url:
        raise PydanticCustomError("address", "expected the project's address: PROJECT stands for its reference")
    if url and (problem := address_problem(project_url(url))):
        # Braces would be a template's.
        raise PydanticCustomError("address", "the address {problem}", {"problem": problem})
    return url


def _secret_name(name: str) -> str:
    if name and not SECRET_NAME.fullmatch(name):
        raise PydanticCustomError("secret_name", f"a name of the form {NAME_FORM} is expected")
    if name.startswith("projects/PROJECT/"):
        raise PydanticCustomError("secret_name", "PROJECT stands for the project's id: put yours in its place")
    return name


SecretName = Annotated[str, AfterValidator(_secret_name)]


def _region(name: str) -> str:
    if name and not is_region(name):
        regions = all_regions()
        near = did_you_mean(re.sub("-[a-z]$", "", name.strip().lower()), regions)
        raise PydanticCustomError(
            "region", "expected one of {regions}{near}", {"regions": ", ".join(regions), "near": near}
        )
    return name


class Resources(Config):
    """CPU and memory of a step."""

    cpu: Annotated[str, _form(machines.CPU, "CPU cores, for example 4, 0.5 or 500m")] = Field(
        "", description="CPU cores, for example 4; empty: the step's own"
    )
    memory: Annotated[
        str,
        _form(
            machines.MEMORY,
            "a whole number and one of M, G, T, Mi, Gi and Ti, for example 16G",
            (r"\s*[\d.]+\s*[kKmMgGtT][iI]?[bB]\s*$", "without a B: 16G, not 16GB"),
        ),
    ] = Field("", description="memory, for example 16G; empty: the step's own")

    def overridden(self, other: "Resources | None") -> "Resources":
        """These, with what ``other`` sets in their place."""
        return Resources(cpu=other.cpu or self.cpu, memory=other.memory or self.memory) if other else self


class Settings(Config):
    """Settings of the pipeline's compilation, submission and schedules; everything else is a parameter of the run."""

    target: Literal["vertex", "kubeflow"] = Field(
        "vertex", description="vertex: Vertex AI Pipelines; kubeflow: open-source Kubeflow Pipelines"
    )
    project: Annotated[
        str,
        _form(
            r"[a-z][a-z0-9.:-]*", "the project's id (not its name or number): lower-case letters, digits and hyphens"
        ),
    ] = Field("", description="Google Cloud project of the runs")
    region: Annotated[str, AfterValidator(_region)] = Field("europe-west4", description="region of the runs")
    pipeline_root: Root = Field("", description="gs://bucket/folder for artifacts")
    service_account: Account = Field("", description="service account of the steps; empty: the project's default")
    network: Annotated[
        str, _form(r"projects/[^/\s]+/global/networks/[^/\s]+", "projects/NUMBER/global/networks/NAME")
    ] = Field("", description="VPC network that the steps are peered with; empty: none")
    image_repository: Repository = Field("", description="registry path that the images were pushed to")
    image_tag: Annotated[str, _form(r"[A-Za-z0-9_][\w.-]{0,127}", "a tag: letters, digits, . _ and -")] = Field(
        "", description="their tag; empty: the commit"
    )
    cpu_image: Digest = Field("", description="the CPU image by digest; empty: by its tag")
    gpu_image: Digest = Field("", description="the GPU image by digest; empty: by its tag")
    cuda: Literal[tuple(machines.CUDA_BUILDS)] = Field(  # type: ignore[valid-type]
        machines.DEFAULT_CUDA, description="PyTorch's CUDA build in the GPU image"
    )
    build_region: Annotated[str, AfterValidator(_region)] = Field(
        "", description="region of Cloud Build; empty: its global region"
    )
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
    train_nodes: int = Field(
        1, ge=1, le=64, description="machines that share a training, each with train_accelerator_count GPUs"
    )
    retries: int = Field(
        2, ge=0, le=10, description="retries of a failed step, for the steps that train or call a service"
    )
    experiment: Annotated[
        str, _form(r"[a-z0-9][a-z0-9-]{0,127}", "a name of a-z, 0-9 and -, at most 128, that starts with no hyphen")
    ] = Field("", description="experiment that the runs belong to; empty: none")
    notify_log: bool = Field(
        False, description="log one line at the end of every run, with severity ERROR if it failed"
    )
    model_registry: bool = Field(False, description="upload every published model to the Model Registry")
    notify_emails: Annotated[tuple[Email, ...], BeforeValidator(_list)] = Field(
        (), description="e-mail addresses to notify when a run ends"
    )
    kubeflow_host: Annotated[
        str,
        _form(
            r"https?://[^\s/]+(/\S*)?",
            "an address such as http://localhost:8080",
            (r"[\w.-]+(:\d+)?(/|$)", "put http:// or https:// before it"),
        ),
    ] = Field("", description="address of the Kubeflow Pipelines API; empty: kfp finds it in the cluster or by kubectl")
    kubeflow_namespace: Annotated[str, _form(K8S_NAME, "a Kubernetes name: a-z, 0-9 and -")] = Field(
        "", description="namespace of the runs, where Kubeflow has several users"
    )
    kubernetes_secret: Annotated[str, _form(K8S_NAME, "a Kubernetes name: a-z, 0-9 and -")] = Field(
        "", description="Kubernetes secret that holds SUPABASE_KEY"
    )
    labels: dict[LabelName, LabelValue] = Field(
        default_factory=dict, description="labels of every run, besides git_sha and version"
    )
    machines: dict[str, Resources] = Field(default_factory=dict, description="CPU and memory of the steps, by step")
    parameters: dict[str, Annotated[Any, AfterValidator(_parameter)]] = Field(
        default_factory=dict, description="defaults of the pipeline's parameters"
    )

    _file: Path = PrivateAttr(DEFAULT_FILE)  # for messages

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
        self._agree_with_target()
        return self

    def _agree_with_target(self) -> None:
        on_vertex = self.target == "vertex"
        own = Settings.model_fields
        foreign = KUBEFLOW_ONLY if on_vertex else VERTEX_ONLY
        given = [n for n in foreign if getattr(self, n) != own[n].get_default(call_default_factory=True)]
        if given:
            place, other = ("Vertex AI", "kubeflow") if on_vertex else ("open-source Kubeflow Pipelines", "vertex")
            raise ValueError(
                f"{', '.join(given)}: without a meaning on {place}; leave {'it' if len(given) == 1 else 'them'} empty, "
                f'or set target = "{other}"'
            )
        if on_vertex and self.pipeline_root and not self.pipeline_root.startswith("gs://"):
            raise ValueError("pipeline_root: expected gs://bucket/folder on Vertex AI")
        pattern, expected = (EMAIL, "an account's e-mail address") if on_vertex else (K8S_NAME, "a Kubernetes name")
        if self.service_account and not re.fullmatch(pattern, self.service_account):
            raise ValueError(f"service_account: expected {expected}")

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
        if given := overrides(os.environ if environ is None else environ):
            where = ", ".join(f"{PREFIX}{name.upper()}" for name in given)
            settings = _checked(cls, _merged(values, given), where)
        settings._file = file
        return settings

    @property
    def file(self) -> str:
        """Name of the file that they come from, for messages."""
        return OWN_FILE if self._file == DEFAULT_FILE else str(self._file)

    @property
    def on_make(self) -> str:
        """What make's command line has to say for the same settings, and a blank; empty for make's own file."""
        if self.file != OWN_FILE:
            return f"SETTINGS={shlex.quote(self.file)} "
        return "TARGET=kubeflow " if self.target == "kubeflow" else ""

    def require(self, names: Iterable[str]) -> None:
        """Refuses settings that are empty.

        Raises:
            ConfigError: naming all of them.
        """
        if empty := [name for name in names if not getattr(self, name)]:
            them = "it" if len(empty) == 1 else "them"
            raise ConfigError(f"the settings lack {', '.join(empty)}: set {them} in {self.file}")

    @property
    def pinned(self) -> bool:
        """Whether the images are named by digest, which unlike a tag always means the same bytes."""
        return bool(self.cpu_image)

    def image(self, kind: str) -> str:
        """The image ``cpu`` or ``gpu`` that a step runs in."""
        if digest := {"cpu": self.cpu_image, "gpu": self.gpu_image}[kind]:
            return digest
        return f"{self.image_repository or NO_REPOSITORY}/mf-python-{kind}:{self.tag}"

    @property
    def tag(self) -> str:
        """The images' tag. An edited settings file makes the checkout dirty but is in no image, so it is that of the
        clean commit."""
        return self.image_tag or git_sha().removesuffix("-dirty")

    @property
    def has_gpu(self) -> bool:
        """Whether the train step has a GPU; not so for ``train_accelerator_count = 0`` under ``parameters``."""
        try:
            return int(self.parameters.get("train_accelerator_count", 1)) != 0
        except (TypeError, ValueError):
            return True  # compiling refuses it

    @property
    def custom_job(self) -> bool:
        """Whether the train step is a Vertex custom job, whose machines are set at compile time."""
        return self.spot or self.train_nodes > 1

    @property
    def image_kinds(self) -> tuple[str, ...]:
        """The kinds of image that the steps run in."""
        return ("cpu", "gpu") if self.has_gpu else ("cpu",)

    def check_images(self) -> None:
        """Refuses images whose names are somebody else's or nobody's.

        Raises:
            ConfigError: the settings name no registry, or neither a tag nor the commit is known.
        """
        if self.pinned:
            return
        if not self.image_repository:
            raise ConfigError(
                f"image_repository is empty: set it in {self.file} to the registry path of the images, such as "
                "europe-west4-docker.pkg.dev/PROJECT/mf, then run `make images`"
            )
        host, slash, path = self.image_repository.partition("/")
        if host.endswith(".pkg.dev") and "/" not in path:
            raise ConfigError(
                f"image_repository: found {self.image_repository!r}, expected the project and the repository after the "
                f"host, {host}/my-project/mf"
            )
        if not slash or not ("." in host or ":" in host or host == "localhost"):
            raise ConfigError(
                f"image_repository: found {self.image_repository!r}, which names no registry, and an image without one "
                "is looked for on Docker Hub, where its name may be anybody's: set the registry path, such as "
                f"europe-west4-docker.pkg.dev/PROJECT/mf, in {self.file}, then run `make images`"
            )
        if self.tag == "unknown":
            raise ConfigError(
                "the images' tag is not known: it is this checkout's commit, and git is missing, this folder is no "
                "git checkout, or git refuses it because it belongs to another account (git config --global --add "
                "safe.directory FOLDER): run `make images` in a git checkout, which writes the images' digests, or set "
                f"image_tag in {self.file}"
            )

    @property
    def is_begun(self) -> bool:
        """Whether the settings name anything of a project of the user's own."""
        return bool(self.project or self.pipeline_root or self.image_repository or self.kubeflow_host)

    def defaults(self) -> list[str]:
        """``parameters`` as they stand on a command line: name=value or name.key=value each."""
        flat: dict[str, Value] = {}
        for name, value in self.parameters.items():
            flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        return [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in flat.items()]


def target_of(file: Path, environ: Mapping[str, str]) -> str:
    """The setting ``target`` of a file that need not be valid otherwise, overridden by ``environ``."""
    with suppress(ConfigError):
        return str(environ.get(f"{PREFIX}TARGET") or _read(file).get("target", "vertex"))
    return "vertex"


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
