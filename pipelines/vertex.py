"""The compiled pipeline as a run on Vertex AI."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError
from google.cloud import aiplatform, storage  # type: ignore[attr-defined]
from google.cloud.aiplatform_v1.types import AcceleratorType

from mf.errors import ConfigError, MfError
from mf.version import git_sha
from pipelines.compiled import definitions_in
from pipelines.settings import Settings
from pipelines.training import NAME


def submit(settings: Settings, file: Path, parameters: Mapping[str, Any]) -> str:
    """Starts a run and says where to watch it.

    Args:
        settings: the project, region, bucket and account of the run.
        file: the compiled pipeline.
        parameters: checked values that differ from the pipeline's defaults.

    Raises:
        ConfigError: a setting or the Supabase project is missing, or there is no such GPU.
        MfError: Google Cloud refused, in its own words.
    """
    missing = [
        name for name in ("project", "region", "pipeline_root", "supabase_key_secret") if not getattr(settings, name)
    ]
    if missing:
        raise ConfigError(f"the settings lack {', '.join(missing)}: set them in pipelines/settings.toml")
    if not {"supabase_url": definitions_in(file)["supabase_url"]["defaultValue"], **parameters}["supabase_url"]:
        raise ConfigError(
            "supabase_url is empty: set it in pipelines/settings.toml and run `make compile`, "
            'or give it: make submit PARAMS="supabase_url=https://PROJECT.supabase.co"'
        )
    _check_gpu(parameters.get("train_accelerator_type"))
    try:
        _check_bucket(settings)
        aiplatform.init(project=settings.project, location=settings.region)
        # enable_caching stays unset: a value would override what each step says for itself.
        job = aiplatform.PipelineJob(
            display_name=NAME,
            template_path=str(file),
            pipeline_root=settings.pipeline_root,
            parameter_values=dict(parameters),
            labels={"git_sha": git_sha().lower()},
        )
        job.submit(service_account=settings.service_account or None)
    except (GoogleAPIError, GoogleAuthError) as error:
        raise MfError(f"Vertex AI did not take the run: {' '.join(str(error).split())}") from None
    return f"submitted {job.resource_name}\n{job._dashboard_uri()}"


def _check_gpu(name: str | None) -> None:
    """Vertex AI would find out about a wrong one when the train step's turn comes."""
    known = [gpu for gpu in AcceleratorType.__members__ if gpu.startswith("NVIDIA_")]
    if name is not None and name not in known:
        raise ConfigError(f"train_accelerator_type: found {name!r}, expected one of {', '.join(known)}")


def _check_bucket(settings: Settings) -> None:
    """The SDK would make a bucket that it does not find, in a place of its own choice."""
    bucket = settings.pipeline_root.removeprefix("gs://").split("/")[0]
    if storage.Client(project=settings.project).lookup_bucket(bucket) is None:
        raise ConfigError(
            f"pipeline_root: there is no bucket {bucket}; make it: "
            f"gcloud storage buckets create gs://{bucket} --location={settings.region}"
        )
