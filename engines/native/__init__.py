"""Runs a task's commands as processes of the worker's own user, in a directory of their own.

The payload is generic-worker's: `command` is a list of argv lists, run in order up to the first that fails. stdout and
stderr are one pipe, so their order is kept. The task sees none of the worker's environment but `PATH` and the locale.
"""

from engines.native.engine import Native

__all__ = ["Native"]
