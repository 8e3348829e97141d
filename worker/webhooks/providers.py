"""What the ways to expose the web server have in common."""

from __future__ import annotations

from typing import Protocol

import trio


class Outside(Protocol):
    """Told by a provider of how others reach the server."""

    def at(self, base_url: str) -> None:
        """They reach it below `base_url`, which has no slash at its end."""

    def trouble(self, reason: str) -> None:
        """Nobody reaches it, and why; empty when they do again."""


class Provider(Protocol):
    """One way to expose the server."""

    async def run(self, outside: Outside, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Expose it until cancelled, or for as long as there is something to do for that.

        Started when it has told `outside` where. Raises FatalWorkerFault, before that alone.
        """


class Local:
    """Others reach the server where it listens, or by a way that is none of the worker's business."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url

    async def run(self, outside: Outside, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Provider`."""
        outside.at(self._base_url)
        task_status.started()
