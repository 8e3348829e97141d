"""A plugin for `exec`: the task's log, as it is written, on stdout."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import ClassVar

from plugins.base import Plugin, TaskHooks
from worker.model import Resolution
from worker.ports import Ports
from worker.run import Run
from worker.schema import Document, Slice
from worker.tasklog import TaskLog


class Echo(Plugin[Document, Slice]):
    """Copies every byte of a run's log."""

    malformed: ClassVar[bool] = True

    @asynccontextmanager
    async def task_scope(self, run: Run[Slice]) -> AsyncGenerator[TaskHooks, None]:
        """Hooks that begin at the log's start."""
        yield EchoHooks(run.log, self.services.ports)


class EchoHooks(TaskHooks):
    """Where one run's log was copied up to. A reader of stdout that went away is no fault of the task's."""

    def __init__(self, log: TaskLog, ports: Ports) -> None:
        self._log = log
        self._ports = ports
        self._offset = 0
        self._broken = False

    async def background(self) -> None:
        """Copy what is written while the task runs."""
        await self._copy()

    async def finished(self, resolution: Resolution) -> None:
        """Copy what came after it; the log is closed, so this ends."""
        await self._copy()

    async def _copy(self) -> None:
        async for chunk in self._log.follow(self._offset):
            if not self._broken:
                await self._ports.run_sync(self._write, chunk)

    def _write(self, chunk: bytes) -> None:
        try:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        except OSError:  # it went away, or its disk is full
            self._broken = True
        # Counted here, where no cancellation comes between writing and counting.
        self._offset += len(chunk)
