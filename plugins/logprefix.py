"""The landmarks in a task's log that people and log viewers look for (facts page, section 2)."""

from __future__ import annotations

import json
import platform
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version

import trio

from engines.base import Builder, Result
from plugins.base import Plugin, TaskHooks
from worker.model import COMPLETED, Verdict
from worker.run import Run
from worker.schema import Document, Slice
from worker.services import Services
from worker.tasklog import TaskLog


class LogPrefixConfig(Document):
    """`settings` are shown at the top of every log, beside the worker's name and version."""

    settings: dict[str, str] = {}


class LogPrefixHooks(TaskHooks):
    def __init__(self, log: TaskLog) -> None:
        self._log = log
        self._begun = trio.current_time()

    async def prepare(self, builder: Builder) -> None:
        self._log.say("=== Task Starting ===")

    async def stopped(self, result: Result | None) -> Verdict:
        self._log.say("=== Task Finished ===")
        self._log.say(f"Task Duration: {trio.current_time() - self._begun:.3f}s")
        return COMPLETED


class LogPrefix(Plugin[LogPrefixConfig, Slice]):
    Config = LogPrefixConfig
    malformed = True

    def __init__(self, config: LogPrefixConfig, services: Services) -> None:
        super().__init__(config, services)
        identity = services.identity
        settings = {
            **config.settings,
            "taskQueueId": identity.task_queue_id,
            "workerGroup": identity.worker_group,
            "workerId": identity.worker_id,
            "tc-worker": version("tc-worker"),
            "platform": f"{platform.system()} {platform.machine()}",
        }
        self._settings = json.dumps(settings)

    @asynccontextmanager
    async def task_scope(self, run: Run[Slice]) -> AsyncGenerator[TaskHooks, None]:
        run.log.say(f"Worker Type settings: {self._settings}")
        run.log.say(f"Task ID: {run.key.task_id}")
        yield LogPrefixHooks(run.log)
