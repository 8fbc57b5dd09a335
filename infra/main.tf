# What docs/vertex.md sets up by hand: APIs, bucket, registry, the steps' account with its roles, and empty secrets.

locals {
  bucket = var.bucket != "" ? var.bucket : "${var.project}-mf"
  apis = [
    "aiplatform", "artifactregistry", "cloudbuild", "cloudresourcemanager", "iam", "secretmanager", "serviceusage",
    "storage",
  ]
}

resource "google_project_service" "apis" {
  for_each           = toset(local.apis)
  service            = "${each.value}.googleapis.com"
  disable_on_destroy = false # others in the project may use them
}

resource "google_storage_bucket" "artifacts" {
  #checkov:skip=CKV_GCP_62:a log of every access to artifacts that live for a month costs more than it tells
  #checkov:skip=CKV_GCP_78:a run's artifacts are written once, each run in a folder of its own
  name                        = local.bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  dynamic "lifecycle_rule" {
    for_each = var.keep_days > 0 ? [var.keep_days] : []
    content {
      action {
        type = "Delete"
      }
      condition {
        age            = lifecycle_rule.value
        matches_prefix = ["runs/"]
      }
    }
  }
  depends_on = [google_project_service.apis]
}

# A schedule names its images by digest: the 20 newest of each stay, and those that bear a tag beginning with "keep".
resource "google_artifact_registry_repository" "images" {
  #checkov:skip=CKV_GCP_84:the images hold no data and no key, only this repository's code and public libraries
  repository_id = "mf"
  location      = var.region
  format        = "DOCKER"

  cleanup_policies {
    id     = "delete-old"
    action = "DELETE"
    condition {
      older_than = "7776000s" # 90 days
    }
  }
  cleanup_policies {
    id     = "keep-newest"
    action = "KEEP"
    most_recent_versions {
      keep_count = 20
    }
  }
  cleanup_policies {
    id     = "keep-tagged"
    action = "KEEP"
    condition {
      tag_state    = "TAGGED"
      tag_prefixes = ["keep"]
    }
  }
  depends_on = [google_project_service.apis]
}

resource "google_service_account" "steps" {
  account_id   = "mf-steps"
  display_name = "mf: steps of the pipeline"
  depends_on   = [google_project_service.apis]
}

resource "google_project_iam_member" "steps" {
  project = var.project
  role    = "roles/aiplatform.user"
  member  = google_service_account.steps.member
}

resource "google_storage_bucket_iam_member" "steps" {
  bucket = google_storage_bucket.artifacts.name
  role   = "roles/storage.objectUser"
  member = google_service_account.steps.member
}

resource "google_service_account_iam_member" "steps_on_itself" {
  count              = var.spot ? 1 : 0
  service_account_id = google_service_account.steps.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.steps.member
}

# The values are added by hand, so that no key is in the state: gcloud secrets versions add NAME --data-file=-
resource "google_secret_manager_secret" "secrets" {
  for_each  = var.secrets
  secret_id = each.value
  replication {
    auto {}
  }
  depends_on = [google_project_service.apis]
}

resource "google_secret_manager_secret_iam_member" "steps" {
  for_each  = google_secret_manager_secret.secrets
  secret_id = each.value.id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.steps.member
}
