"""The plugin `artifacts`: checks what a task declares before it runs, and uploads it afterwards."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar

from pydantic import Field

from engines.base import Result
from plugins.artifacts.payload import ArtifactsPayload, Declared, DockerWorkerPayload, GenericWorkerPayload, read
from plugins.artifacts.uploads import upload_all
from plugins.base import Plugin, TaskHooks
from worker.model import COMPLETED, Verdict
from worker.quantities import Size
from worker.run import Run
from worker.schema import Document
from worker.services import Services


class ArtifactsConfig(Document):
    """`parallelism` counts the uploads of one run at once; a file larger than `maxFileSize` is refused."""

    parallelism: Annotated[int, Field(ge=1, le=100)] = 10
    max_file_size: Size | None = None


class ArtifactsHooks(TaskHooks):
    """One run's artifacts."""

    def __init__(
        self, config: ArtifactsConfig, services: Services, run: Run[ArtifactsPayload], declared: Sequence[Declared]
    ) -> None:
        self._config = config
        self._services = services
        self._run = run
        self._declared = declared

    async def stopped(self, result: Result | None) -> Verdict:
        """Upload what is there; nothing, and nothing is held against the task, where no sandbox came to be."""
        if result is None or not self._declared:
            return COMPLETED
        return await upload_all(
            self._services,
            self._run,
            result,
            self._declared,
            parallelism=self._config.parallelism,
            max_file_size=self._config.max_file_size,
        )


class Artifacts(Plugin[ArtifactsConfig, ArtifactsPayload]):
    """`logPrefix` goes first, so that the lines on uploads follow those on the task's end."""

    Config: ClassVar[type[Document]] = ArtifactsConfig
    payloads: ClassVar = {"generic-worker": GenericWorkerPayload, "docker-worker": DockerWorkerPayload}
    after: ClassVar[frozenset[str]] = frozenset({"logPrefix"})

    @asynccontextmanager
    async def task_scope(self, run: Run[ArtifactsPayload]) -> AsyncGenerator[TaskHooks, None]:
        """Raises MalformedPayload for names and expiries that the queue would refuse."""
        yield ArtifactsHooks(self.config, self.services, run, read(run.payload, run.task))
