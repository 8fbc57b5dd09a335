variable "project" {
  description = "Id of the Google Cloud project, which exists and has billing."
  type        = string
}

variable "region" {
  description = "Region of the runs, the bucket and the images."
  type        = string
  default     = "europe-west4"
}

variable "bucket" {
  description = "Name of the bucket of the artifacts; empty: PROJECT-mf."
  type        = string
  default     = ""
}

variable "keep_days" {
  description = "Days after which a run's artifacts are deleted; 0: never, as the Model Registry needs."
  type        = number
  default     = 30
}

variable "secrets" {
  description = "Names of the secrets to create, empty: the Supabase key, and for a direct connection supabase-db-url."
  type        = set(string)
  default     = ["supabase-key"]
}

variable "spot" {
  description = "Whether the settings have spot = true or train_nodes above 1: the run then starts a job that acts as the steps' account."
  type        = bool
  default     = false
}

variable "github_repository" {
  description = "OWNER/NAME of the GitHub repository whose main branch may build images and submit runs; empty: none."
  type        = string
  default     = ""
}
