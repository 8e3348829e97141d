"""Uploads the files and folders that a task names in its payload's `artifacts`."""

from plugins.artifacts.plugin import Artifacts

__all__ = ["Artifacts"]
