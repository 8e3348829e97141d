"""The Taskcluster API for Trio: client, retry, signing and typed models."""
