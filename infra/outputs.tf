output "settings" {
  description = "Lines of pipelines/settings.toml: terraform output -raw settings"
  value       = <<-TOML
    project = "${var.project}"
    region = "${var.region}"
    pipeline_root = "gs://${google_storage_bucket.artifacts.name}/runs"
    service_account = "${google_service_account.steps.email}"
    image_repository = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
    supabase_key_secret = "projects/${var.project}/secrets/supabase-key/versions/latest"
    supabase_db_url_secret = "${contains(var.secrets, "supabase-db-url") ? "projects/${var.project}/secrets/supabase-db-url/versions/latest" : ""}"
  TOML
}

output "github" {
  description = "Inputs of the action google-github-actions/auth: workload_identity_provider and service_account."
  value = {
    workload_identity_provider = one(google_iam_workload_identity_pool_provider.github[*].name)
    service_account            = one(google_service_account.deploy[*].email)
  }
}
