"""Jobs on Google Cloud: TPUs of Compute Engine, and GPUs of Vertex AI, through `gcloud`."""
