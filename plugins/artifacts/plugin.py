"""The plugin `artifacts`: checks what a task declares before it runs, and uploads it afterwards."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar

from pydantic import Field

from engines.base import Result
from plugins.artifacts.bucket import open_bucket
from plugins.artifacts.bucketconfig import BucketConfig
from plugins.artifacts.content import StoredEncoding
from plugins.artifacts.payload import ArtifactsPayload, Declared, DockerWorkerPayload, GenericWorkerPayload, read
from plugins.artifacts.stores import DeploymentStore, Store
from plugins.artifacts.uploading import Rules
from plugins.artifacts.uploads import upload_all
from plugins.base import Plugin, TaskHooks
from worker.model import COMPLETED, Verdict
from worker.quantities import Size
from worker.run import Run
from worker.schema import Document
from worker.services import Services

Pattern = Annotated[str, Field(pattern=r"^(\*|\.[^./]+|[a-z0-9.+-]+/([a-z0-9.+-]+|\*))$")]


class StoreConfig(Document):
    """A store of the operator's own."""

    s3: BucketConfig


class ArtifactsConfig(Document):
    """`parallelism` counts the uploads of one run at once; a file larger than `maxFileSize` is refused.

    `maxTotalSize` is what all files of a run may have together. `encodings` has rules for files whose task does not say
    it: an extension, a content type or `*`, and the encoding; the first that fits counts. Without a `store` the
    deployment keeps the artifacts.
    """

    parallelism: Annotated[int, Field(ge=1, le=100)] = 10
    max_file_size: Size | None = None
    max_total_size: Size | None = None
    encodings: dict[Pattern, StoredEncoding] = {}
    store: StoreConfig | None = None


class ArtifactsHooks(TaskHooks):
    """One run's artifacts."""

    def __init__(
        self,
        config: ArtifactsConfig,
        services: Services,
        run: Run[ArtifactsPayload],
        declared: Sequence[Declared],
        store: Store,
    ) -> None:
        self._config = config
        self._services = services
        self._run = run
        self._declared = declared
        self._store = store

    async def stopped(self, result: Result | None) -> Verdict:
        """Upload what is there; nothing, and nothing is held against the task, where no sandbox came to be."""
        if result is None:
            return COMPLETED
        return await upload_all(
            self._services,
            self._run,
            result,
            self._declared,
            self._store,
            Rules(self._config.max_file_size, self._config.max_total_size, self._config.encodings),
            parallelism=self._config.parallelism,
        )


class Artifacts(Plugin[ArtifactsConfig, ArtifactsPayload]):
    """`logPrefix` goes first, so that the lines on uploads follow those on the task's end."""

    Config: ClassVar[type[Document]] = ArtifactsConfig
    payloads: ClassVar = {"generic-worker": GenericWorkerPayload, "docker-worker": DockerWorkerPayload}
    after: ClassVar[frozenset[str]] = frozenset({"logPrefix"})

    def __init__(self, config: ArtifactsConfig, services: Services, *, store: Store | None = None) -> None:
        super().__init__(config, services)
        self._store: Store = store or DeploymentStore(services.storage)

    @asynccontextmanager
    async def worker_scope(self) -> AsyncGenerator[None, None]:
        """Make the client of the operator's own bucket, if there is one."""
        if self.config.store is None:
            yield
            return
        async with open_bucket(self.services.ports, self.config.store.s3) as self._store:
            yield

    @asynccontextmanager
    async def task_scope(self, run: Run[ArtifactsPayload]) -> AsyncGenerator[TaskHooks, None]:
        """Raises MalformedPayload for names and expiries that the queue would refuse."""
        declared = read(run.payload, run.task)
        yield ArtifactsHooks(self.config, self.services, run, declared, self._store) if declared else TaskHooks()
