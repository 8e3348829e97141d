"""Brings in what a task names in its payload: files, folders with content, and caches."""

from plugins.mounts.plugin import Mounts

__all__ = ["Mounts"]
