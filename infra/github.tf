# Workload Identity: GitHub Actions of one repository's main branch build images and submit runs without a key.

locals {
  github = var.github_repository == "" ? 0 : 1
  deploy_roles = var.github_repository == "" ? [] : [
    "roles/aiplatform.user",
    "roles/artifactregistry.writer",
    "roles/cloudbuild.builds.editor",
    "roles/logging.viewer",
    "roles/serviceusage.serviceUsageConsumer",
  ]
}

resource "google_project_service" "github" {
  for_each           = toset(var.github_repository == "" ? [] : ["iamcredentials", "sts"])
  service            = "${each.value}.googleapis.com"
  disable_on_destroy = false
}

resource "google_iam_workload_identity_pool" "github" {
  count                     = local.github
  workload_identity_pool_id = "mf-github"
  depends_on                = [google_project_service.apis, google_project_service.github]
}

resource "google_iam_workload_identity_pool_provider" "github" {
  #checkov:skip=CKV_GCP_125:it reads the variable's default, which is empty; the condition names repository and branch
  count                              = local.github
  workload_identity_pool_id          = google_iam_workload_identity_pool.github[0].workload_identity_pool_id
  workload_identity_pool_provider_id = "github"
  attribute_condition                = "assertion.sub == 'repo:${var.github_repository}:ref:refs/heads/main'"
  attribute_mapping = {
    "google.subject"       = "assertion.sub"
    "attribute.repository" = "assertion.repository"
  }
  oidc {
    issuer_uri = "https://token.actions.githubusercontent.com"
  }
}

resource "google_service_account" "deploy" {
  count        = local.github
  account_id   = "mf-deploy"
  display_name = "mf: builds images and submits runs from GitHub Actions"
}

resource "google_service_account_iam_member" "deploy" {
  count              = local.github
  service_account_id = google_service_account.deploy[0].name
  role               = "roles/iam.workloadIdentityUser"
  member             = "principalSet://iam.googleapis.com/${google_iam_workload_identity_pool.github[0].name}/attribute.repository/${var.github_repository}"
}

resource "google_project_iam_member" "deploy" {
  for_each = toset(local.deploy_roles)
  project  = var.project
  role     = each.value
  member   = google_service_account.deploy[0].member
}

resource "google_storage_bucket_iam_member" "deploy" {
  count  = local.github
  bucket = google_storage_bucket.artifacts.name
  role   = "roles/storage.legacyBucketReader"
  member = google_service_account.deploy[0].member
}

resource "google_service_account_iam_member" "deploy_as_steps" {
  count              = local.github
  service_account_id = google_service_account.steps.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.deploy[0].member
}
