"""The plugin `mounts`: gets what a task wants to be brought in, and keeps what it wants to find again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Annotated, ClassVar

import trio
from pydantic import Field

from plugins.base import Plugin, TaskHooks
from plugins.mounts.caches import Caches, open_caches
from plugins.mounts.downloads import Downloads, DownloadSettings, open_downloads
from plugins.mounts.extraction import Limits
from plugins.mounts.payload import (
    DockerWorkerPayload,
    GenericWorkerPayload,
    MountsPayload,
    may_be_role,
    missing_scopes,
    read,
)
from plugins.mounts.preparing import MountsHooks, Shop
from worker.errors import FatalWorkerFault, MalformedPayload
from worker.quantities import Duration, Size
from worker.queue.retry import RetryPolicy
from worker.run import Run
from worker.schema import Document

FOLDER = "mounts"

_SIZE = 64 * 2**30


class MountsConfig(Document):
    """`parallelism` counts downloads at once, and extractions at once, of all runs together.

    `max_...` are limits of one download and of what one archive unpacks to; `max_ratio` is of unpacked to packed size.
    """

    parallelism: Annotated[int, Field(ge=1, le=100)] = 4
    keep_downloads: Size = 20 * 2**30
    max_download: Size = _SIZE
    download_time: Duration = timedelta(hours=1)
    download_attempts: Annotated[int, Field(ge=1, le=100)] = 8
    max_unpacked: Size = _SIZE
    max_entries: Annotated[int, Field(ge=1)] = 1_000_000
    max_ratio: Annotated[int, Field(ge=1)] = 1000


class Mounts(Plugin[MountsConfig, MountsPayload]):
    """`success` and `artifacts` are not waited for: whether a cache is kept depends on how the task ended, alone."""

    Config: ClassVar[type[Document]] = MountsConfig
    payloads: ClassVar = {"generic-worker": GenericWorkerPayload, "docker-worker": DockerWorkerPayload}
    downloads: Downloads  # these two while `worker_scope` lasts
    caches: Caches
    _shop: Shop

    @asynccontextmanager
    async def worker_scope(self) -> AsyncGenerator[None, None]:
        """The downloads, the caches, and the folder for what runs unpack, which begins empty."""
        folder = self.services.work_dir / FOLDER
        try:
            await self.services.trash.discard(folder)
            await self.services.ports.run_sync(folder.mkdir)
        except OSError as error:
            raise FatalWorkerFault(f"{folder} cannot be made: {error.strerror}") from error
        async with (
            open_downloads(self.services, self._settings()) as self.downloads,
            open_caches(self.services) as self.caches,
        ):
            self._shop = Shop(
                services=self.services,
                downloads=self.downloads,
                caches=self.caches,
                folder=folder,
                limits=Limits(self.config.max_unpacked, self.config.max_entries, self.config.max_ratio),
                extracting=trio.CapacityLimiter(self.config.parallelism),
            )
            yield

    def _settings(self) -> DownloadSettings:
        config = self.config
        time = config.download_time.total_seconds()
        return DownloadSettings(
            kept=config.keep_downloads,
            max_size=config.max_download,
            time=time,
            parallelism=config.parallelism,
            ratio=config.max_ratio,
            policy=RetryPolicy(attempts=config.download_attempts, total=time, first=1.0),
        )

    @asynccontextmanager
    async def task_scope(self, run: Run[MountsPayload]) -> AsyncGenerator[TaskHooks, None]:
        """Raises MalformedPayload for whatever the payload, the dependencies and the scopes tell."""
        found = read(run.payload, run.task)
        if not found:
            yield TaskHooks()
            return
        lacking = missing_scopes(run.payload, found, run.task.scopes)
        if lacking and not any(map(may_be_role, run.task.scopes)):
            raise MalformedPayload(lacking)
        # A run's downloads and caches are let go of when the engine has put back what it was lent.
        async with AsyncExitStack() as stack:
            yield MountsHooks(self._shop, run, found, stack, roles=bool(lacking))
