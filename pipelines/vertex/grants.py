"""What a person needs and may lack, and the commands that give it: credentials, and roles."""

LOGIN = "gcloud auth application-default login"
# Reading a bucket's location, and the names of its objects; no role of fewer permissions has both.
BUCKET_READER = "roles/storage.legacyBucketReader"


def grant_bucket(name: str) -> str:
    """The command that lets somebody see a bucket."""
    return f"gcloud storage buckets add-iam-policy-binding gs://{name} --member=user:YOU --role={BUCKET_READER}"
