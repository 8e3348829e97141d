"""Environment variables: those of the payload, those of the config, and those that say which task it is."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar

from pydantic import Field

from engines.base import Builder
from plugins.base import Plugin, TaskHooks
from worker.run import Run
from worker.schema import Document, Slice

Name = Annotated[str, Field(pattern=r"^[^=\x00]+$")]
Value = Annotated[str, Field(pattern=r"^[^\x00]*$")]


class EnvPayload(Slice):
    env: dict[Name, Value] = {}


class EnvConfig(Document):
    """`variables` are set for every task; `location` is TASKCLUSTER_WORKER_LOCATION, a JSON object (RFC 0148)."""

    variables: dict[Name, Value] = {}
    location: dict[str, str] = {}


class EnvHooks(TaskHooks):
    def __init__(self, plugin: Env, run: Run[EnvPayload]) -> None:
        self._plugin = plugin
        self._run = run

    async def prepare(self, builder: Builder) -> None:
        config = self._plugin.config
        builder.env.update(config.variables | self._run.payload.env)
        builder.worker_env.update(
            TASK_ID=self._run.key.task_id,
            RUN_ID=str(self._run.key.run_id),
            TASK_GROUP_ID=self._run.task.task_group_id,
            TASKCLUSTER_ROOT_URL=self._plugin.services.identity.root_url,
        )
        if config.location:
            builder.worker_env["TASKCLUSTER_WORKER_LOCATION"] = json.dumps(config.location)


class Env(Plugin[EnvConfig, EnvPayload]):
    Config = EnvConfig
    payloads: ClassVar = {"generic-worker": EnvPayload, "docker-worker": EnvPayload}

    @asynccontextmanager
    async def task_scope(self, run: Run[EnvPayload]) -> AsyncGenerator[TaskHooks, None]:
        yield EnvHooks(self, run)
