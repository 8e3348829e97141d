"""The log compressed while it is written, so that little is left to do when the task has ended."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import asynccontextmanager

from worker.logfile import Follower, LogFile
from worker.ports import Ports
from worker.queue.transfer import Content
from worker.spool import Compression, open_compression

BATCH = 256 * 1024  # bytes that are compressed at once: each batch costs two calls in threads

log = logging.getLogger(__name__)


class BackingLog:
    """One log as it will be stored."""

    def __init__(self, file: LogFile, compression: Compression) -> None:
        self._file = file
        self._compression = compression

    async def keep_up(self) -> None:
        """Compress what is there, until cancelled or the log is closed. A disk that is full is left for `finish`."""
        try:
            while not self._file.closed:
                await self._file.wait_size(self._compression.fed + BATCH)
                await self._feed()
        except OSError as error:
            log.warning("%s: compressed at its end, not now: %s", self._file.path.name, error.strerror or error)

    async def finish(self) -> Content:
        """The whole log, once it is closed: compressed, or `plain` where there is no room for that."""
        try:
            while await self._feed():
                pass
            compressed = await self._compression.finish()
        except OSError as error:
            log.warning("%s: is stored as it is, not compressed: %s", self._file.path.name, error.strerror or error)
            return self.plain
        return Content(compressed.length, compressed.open, "gzip")

    @property
    def plain(self) -> Content:
        """The whole log, once it is closed, as it is."""
        return Content(self._file.size, self._open_plain)

    @asynccontextmanager
    async def _open_plain(self) -> AsyncGenerator[AsyncIterable[bytes], None]:
        yield Follower(self._file)

    async def _feed(self) -> bool:
        """Whether there was something; False at the end of the closed log."""
        chunk = await self._file.read(self._compression.fed, BATCH)
        if chunk:
            await self._compression.feed(chunk)
        return bool(chunk)


@asynccontextmanager
async def open_backing(ports: Ports, file: LogFile) -> AsyncGenerator[BackingLog, None]:
    """The backing log of `file`, in the same folder, for as long as the block lasts."""
    async with open_compression(ports, file.path.parent) as compression:
        yield BackingLog(file, compression)
