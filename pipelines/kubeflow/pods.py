"""What a step's pod gets on Kubeflow: secrets as environment variables, and a label."""

from kfp.dsl import PipelineTask

NAMES = {"SUPABASE_KEY": True, "SUPABASE_DB_URL": False}  # entry of the secret, and whether it has to be there
# Entries for a ratings file in a bucket of an S3 service; only ingest gets them.
S3_NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL")
LABEL = "app.kubernetes.io/part-of"


def configure_pod(task: PipelineTask, pipeline: str, secret: str, *, supabase: bool, files: bool) -> None:
    """Sets the label of a task's pod, and the environment variables that come from a Kubernetes secret.

    Args:
        task: the step.
        pipeline: value of the label.
        secret: name of the Kubernetes secret; empty: none.
        supabase: the step needs the key to Supabase.
        files: the step reads a ratings file.
    """
    from kfp import kubernetes  # only here: Vertex AI has no use for it

    kubernetes.add_pod_label(task, LABEL, pipeline)
    if not secret:
        return
    wanted = NAMES if supabase else {}
    for name, required in {**wanted, **dict.fromkeys(S3_NAMES if files else (), False)}.items():
        kubernetes.use_secret_as_env(task, secret, {name: name}, optional=not required)
