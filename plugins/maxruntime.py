"""Ends a task that runs for longer than it said it would. Counted from the start of its sandbox."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated, ClassVar

import trio
from pydantic import Field

from engines.base import Sandbox
from plugins.base import Plugin, TaskHooks
from worker.errors import MalformedPayload, Problem
from worker.model import Cause, CauseKind
from worker.quantities import Duration, format_duration
from worker.run import Run
from worker.schema import Document, Slice


class MaxRunTimePayload(Slice):
    """Seconds; required, as generic-worker has it."""

    max_run_time: Annotated[int, Field(ge=1)]


class MaxRunTimeConfig(Document):
    """The longest that a task may ask for."""

    max_run_time: Duration = timedelta(hours=4)


class MaxRunTimeHooks(TaskHooks):
    def __init__(self, run: Run[MaxRunTimePayload]) -> None:
        self._run = run

    async def alongside(self, sandbox: Sandbox) -> None:
        seconds = self._run.payload.max_run_time
        await trio.sleep(seconds)
        message = f"task was ended after its maximum run time of {seconds} seconds"
        self._run.stop(Cause(CauseKind.MAX_RUN_TIME, message))


class MaxRunTime(Plugin[MaxRunTimeConfig, MaxRunTimePayload]):
    Config = MaxRunTimeConfig
    payloads: ClassVar = {"generic-worker": MaxRunTimePayload, "docker-worker": MaxRunTimePayload}

    @asynccontextmanager
    async def task_scope(self, run: Run[MaxRunTimePayload]) -> AsyncGenerator[TaskHooks, None]:
        most, wanted = self.config.max_run_time, run.payload.max_run_time
        if wanted > most.total_seconds():
            message = f"{wanted} seconds are more than this worker allows, {format_duration(most)}"
            raise MalformedPayload([Problem("maxRunTime", message)])
        yield MaxRunTimeHooks(run)
