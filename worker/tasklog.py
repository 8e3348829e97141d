"""One run's log: an append-only file with one writer's end and many readers, each at an offset of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import trio

from worker.ports import Ports

log = logging.getLogger("worker.run")

CHUNK = 64 * 1024  # bytes that a reader gets at once, and that may wait in memory before they are written


class TaskLog:
    """Bytes go into a small buffer and from there to the file when it is full, or as soon as a reader wants them.

    So a log that nobody follows costs a few writes, and one that is followed is as fresh as its readers ask. Readers
    are served from the file alone: however slow they are, they hold up neither the task nor the memory.
    """

    def __init__(self, ports: Ports, path: Path, descriptor: int) -> None:
        self._ports = ports
        self._descriptor = descriptor
        self._buffer = bytearray()
        self._stored = 0  # bytes in the file
        self._flushing = trio.Lock()
        self._grown = trio.Event()  # replaced whenever it is set
        self.path = path
        self.closed = False

    @property
    def size(self) -> int:
        """How many bytes were written so far."""
        return self._stored + len(self._buffer)

    async def write(self, data: bytes) -> None:
        """Append a task's output, as it is. Waits while the disk is behind. Raises OSError, as from a full disk."""
        self._append(data)
        if len(self._buffer) >= CHUNK:
            await self.flush()
        else:
            await trio.lowlevel.checkpoint()

    def say(self, message: str) -> None:
        """Append a remark of the worker, a line or more: `[taskcluster 2026-01-31T00:00:00.000Z] message`.

        A remark that comes when the log is closed goes to the worker's own log.
        """
        self._remark(f"[taskcluster {_time(self._ports.now())}] ", message)

    def warn(self, message: str) -> None:
        """Append what its reader should know but did not end the task: `[taskcluster:warn TIME] message`."""
        self._remark(f"[taskcluster:warn {_time(self._ports.now())}] ", message)

    def error(self, message: str) -> None:
        """Append why the task did not complete: `[taskcluster:error] message`."""
        self._remark("[taskcluster:error] ", message)

    def _remark(self, prefix: str, message: str) -> None:
        if self.closed:
            log.info("%s: after its log was closed: %s", self.path.stem, message)
            return
        lines = message.splitlines() or [""]
        self._append("".join(f"{prefix}{line}\n" for line in lines).encode(errors="backslashreplace"))

    def _append(self, data: bytes) -> None:
        if self.closed:
            raise ValueError("the log is closed")
        self._buffer += data
        self._wake()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = trio.Event()

    async def flush(self) -> None:
        """Bring to the file what was written before this call. Raises OSError, and then keeps the data."""
        async with self._flushing:
            while self._buffer:
                data = bytes(self._buffer[:CHUNK])
                written = await self._ports.run_sync(os.pwrite, self._descriptor, data, self._stored)
                self._stored += written
                del self._buffer[:written]

    async def read(self, offset: int) -> bytes:
        """Up to 64 KiB from `offset` on; waits for them, and answers `b""` only where the closed log ends.

        Raises OSError where they cannot be brought to the file, except for the end of a closed log: that is read from
        memory, so that a full disk does not hide what has been said of it.
        """
        while offset >= self.size and not self.closed:
            await self._grown.wait()
        if offset >= self._stored and self.closed:
            await trio.lowlevel.checkpoint()
            return bytes(self._buffer[offset - self._stored :][:CHUNK])
        if offset >= self._stored:
            await self.flush()
        return await self._ports.run_sync(os.pread, self._descriptor, min(CHUNK, self._stored - offset), offset)

    async def follow(self, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """All bytes from `offset` on, as they are written, until the log is closed."""
        while chunk := await self.read(offset):
            yield chunk
            offset += len(chunk)

    async def close(self) -> None:
        """Take no more bytes; readers get what there is and then the end. Raises OSError; is closed all the same."""
        self.closed = True
        self._wake()
        await self.flush()


def _time(now: datetime) -> str:
    return now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@asynccontextmanager
async def open_tasklog(ports: Ports, path: Path) -> AsyncGenerator[TaskLog, None]:
    """A new log in `path`, readable until the block ends. Removing the file is the caller's."""
    descriptor = await ports.run_sync(os.open, path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield TaskLog(ports, path, descriptor)
    finally:
        os.close(descriptor)
