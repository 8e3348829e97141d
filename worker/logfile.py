"""A file that only grows, with one writer and many readers, each at an offset of its own."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from worker.ports import Ports

log = logging.getLogger("worker.run")

CHUNK = 64 * 1024  # bytes that a reader gets at once, and that may wait in memory before they are written
RECENT = 64 * 1024  # bytes that stay in memory after they were written, for the readers that follow


class LogFile:
    """Bytes go into memory and from there to the file, in large pieces.

    The last of them stay in memory, once for all readers: so a log that is followed costs no reads from the file, be
    it by hundreds, and one that nobody follows costs a few writes. Whoever lags behind reads from the file alone:
    however slow, such a reader holds up neither the writer nor the memory. What is never flushed gets no file.
    """

    def __init__(self, ports: Ports, path: Path) -> None:
        self._ports = ports
        self._descriptor: int | None = None
        self._recent = bytearray()  # the last bytes; those that are not in the file are among them
        self._start = 0  # the offset at which they begin
        self._stored = 0  # bytes in the file
        self._flushing = trio.Lock()
        self._grown = trio.Event()  # replaced whenever it is set
        self.path = path
        self.closed = False

    @property
    def size(self) -> int:
        """How many bytes there are so far."""
        return self._start + len(self._recent)

    @property
    def has_file(self) -> bool:
        """Whether any of them had to be brought to the file."""
        return self._descriptor is not None

    @property
    def unwritten(self) -> int:
        """How many of them wait in memory."""
        return self.size - self._stored

    def append(self, data: bytes) -> None:
        """Add bytes, in memory; `flush` brings them to the file. Raises ValueError once it is closed."""
        if self.closed:
            raise ValueError("the log is closed")
        if data:
            self._recent += data
            self._wake()

    def close(self) -> None:
        """Take no more bytes; readers get what there is and then the end."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = trio.Event()

    async def flush(self) -> None:
        """Bring to the file what was added, also meanwhile. Raises OSError, and then keeps the data."""
        async with self._flushing:
            if self._descriptor is None:
                self._descriptor = await self._ports.run_sync(_create, self.path)
            while self.unwritten:
                behind = self._stored - self._start
                data = bytes(self._recent[behind : behind + CHUNK])
                self._stored += await self._ports.run_sync(os.pwrite, self._descriptor, data, self._stored)
                self._trim()

    def _trim(self) -> None:
        spare = self._stored - RECENT - self._start
        if spare > 0:
            del self._recent[:spare]
            self._start += spare

    async def wait_size(self, size: int) -> None:
        """Return when there are so many bytes, or the log is closed."""
        while self.size < size and not self.closed:
            await self._grown.wait()

    async def read(self, offset: int, most: int = CHUNK) -> bytes:
        """Up to `most` bytes from `offset` on; waits for one, and answers `b""` only where the closed log ends.

        What a full disk did not take is read from memory. Raises OSError where the file cannot be read.
        """
        await self.wait_size(offset + 1)
        if offset >= self._start:
            await trio.lowlevel.checkpoint()
            # No negative start, which would count from the end: the bytes may have gone to the file meanwhile.
            if offset >= self._start:
                begin = offset - self._start
                return bytes(self._recent[begin : begin + most])
        assert self._descriptor is not None
        data = await self._ports.run_sync(os.pread, self._descriptor, min(most, self._stored - offset), offset)
        if not data:
            raise OSError(errno.EIO, "the log's file has become shorter")
        return data

    async def aclose(self) -> None:
        """Remove the file, if there is one; nothing can be read any more. Cancellation does not end it early."""
        if self._descriptor is not None:
            # No limit: one short call, and what is not removed here would stay.
            with trio.CancelScope(shield=True):
                await self._ports.run_sync(_remove, self.path, self._descriptor)


def _create(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _remove(path: Path, descriptor: int) -> None:
    os.close(descriptor)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.error("%s could not be removed: %s", path, error.strerror)


class Follower(AsyncIterator[bytes]):
    """All bytes of a log from an offset on, as they are written, until it is closed.

    `pause` seconds after a piece that was not a full one, more of them are gathered: handing one on costs a viewer's
    connection much more than the bytes in it. A class and not a generator: one of these that is left early is cleaned
    up by the garbage collector, in no scope.
    """

    def __init__(self, file: LogFile, offset: int = 0, *, end: float = float("inf"), pause: float = 0) -> None:
        """Up to the offset `end`, if the log has so many bytes."""
        self._file = file
        self._end = end
        self._pause = pause
        self._partial = False
        self.offset = offset

    async def __anext__(self) -> bytes:
        if self._partial and self._pause and not self._file.closed:
            await trio.sleep(self._pause)
        chunk = b""
        if self.offset < self._end:
            chunk = await self._file.read(self.offset, int(min(CHUNK, self._end - self.offset)))
        if not chunk:
            raise StopAsyncIteration
        self._partial = len(chunk) < CHUNK
        self.offset += len(chunk)
        return chunk
