"""The log compressed while it is written, so that little is left to do when the task has ended."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import asynccontextmanager

from worker.logfile import Follower, LogFile
from worker.ports import Ports
from worker.spool import Gzip, Gzipped, open_gzip

BATCH = 256 * 1024  # bytes that are compressed at once: each batch costs two calls in threads

log = logging.getLogger(__name__)


class Plain:
    """A closed log as it is; `length` is in bytes."""

    def __init__(self, file: LogFile) -> None:
        self._file = file
        self.length = file.size

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[AsyncIterable[bytes], None]:
        """From the beginning, as often as it is opened."""
        yield Follower(self._file)


class BackingLog:
    """One log as it will be stored."""

    def __init__(self, file: LogFile, gzip: Gzip) -> None:
        self._file = file
        self._gzip = gzip

    async def keep_up(self) -> None:
        """Compress what is there, until cancelled or the log is closed. A disk that is full is left for `finish`."""
        try:
            while not self._file.closed:
                await self._file.wait_size(self._gzip.fed + BATCH)
                await self._feed()
        except OSError as error:
            log.warning("%s: compressed at its end, not now: %s", self._file.path.name, error.strerror or error)
            await self._gzip.restart()

    async def finish(self) -> Gzipped:
        """The whole log, once it is closed, compressed. Raises OSError."""
        while await self._feed():
            pass
        return await self._gzip.finish()

    async def content(self) -> tuple[Gzipped | Plain, str | None]:
        """The whole log, once it is closed, and its content encoding: none where there is no room to compress it."""
        try:
            return await self.finish(), "gzip"
        except OSError as error:
            log.warning("%s: is stored as it is, not compressed: %s", self._file.path.name, error.strerror or error)
            return Plain(self._file), None

    async def _feed(self) -> bool:
        """Whether there was something; False at the end of the closed log."""
        chunk = await self._file.read(self._gzip.fed, BATCH)
        if chunk:
            await self._gzip.feed(chunk)
        return bool(chunk)


@asynccontextmanager
async def open_backing(ports: Ports, file: LogFile) -> AsyncGenerator[BackingLog, None]:
    """The backing log of `file`, in the same folder, for as long as the block lasts."""
    async with open_gzip(ports, file.path.parent) as gzip:
        yield BackingLog(file, gzip)
