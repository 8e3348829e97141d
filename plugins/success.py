"""The verdict that follows from how the task itself ended: exit status 0, one to be retried, or a failure."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar

from pydantic import Field

from engines.base import Result
from plugins.base import Plugin, TaskHooks
from worker.model import COMPLETED, Severity, Verdict
from worker.run import Run
from worker.schema import Document, Slice


class OnExitStatus(Slice):
    """Exit codes that mean: the failure may pass, run it again."""

    retry: list[Annotated[int, Field(ge=1)]] = []


class SuccessPayload(Slice):
    on_exit_status: OnExitStatus = OnExitStatus()


class SuccessHooks(TaskHooks):
    def __init__(self, run: Run[SuccessPayload]) -> None:
        self._retry = run.payload.on_exit_status.retry

    async def stopped(self, result: Result | None) -> Verdict:
        if result is None or result.ended is None or result.ended.success:
            return COMPLETED  # What was ended early has its cause.
        ended = result.ended
        if ended.exit_code in self._retry:
            return Verdict(Severity.INTERMITTENT, f"{ended.message}, on which the task is to be retried")
        return Verdict(Severity.FAILED, ended.message)


class Success(Plugin[Document, SuccessPayload]):
    payloads: ClassVar = {"generic-worker": SuccessPayload, "docker-worker": SuccessPayload}

    @asynccontextmanager
    async def task_scope(self, run: Run[SuccessPayload]) -> AsyncGenerator[TaskHooks, None]:
        yield SuccessHooks(run)
