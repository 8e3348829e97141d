"""Bytes compressed before they are sent, since storage must be told their length first."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import trio

from worker.ports import Ports

CHUNK = 256 * 1024  # bytes that are sent at once
IN_MEMORY = 1024 * 1024  # compressed bytes that stay in memory; more goes to the disk

_GZIP_FORMAT = zlib.MAX_WBITS + 16  # zlib's deflateInit2; the header has neither a name nor a time

Read = Callable[[], Awaitable[bytes]]


class Chunks(AsyncIterator[bytes]):
    """What `read` gives, until it gives nothing.

    A class and not a generator: a generator that is left early is cleaned up by the garbage collector, in no scope.
    """

    def __init__(self, read: Read) -> None:
        self._read = read

    async def __anext__(self) -> bytes:
        if chunk := await self._read():
            return chunk
        raise StopAsyncIteration


class Gzipped:
    """Compressed content; `length` is in bytes."""

    def __init__(self, ports: Ports, spool: IO[bytes], length: int) -> None:
        self._ports = ports
        self._spool = spool
        self.length = length

    async def rewind(self) -> None:
        """Begin anew."""
        await self._ports.run_sync(self._spool.seek, 0)

    async def read(self) -> bytes:
        """The next bytes, none at the end."""
        return await self._ports.run_sync(self._spool.read, CHUNK)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[AsyncIterable[bytes], None]:
        """From the beginning, as often as it is opened, one after the other."""
        await self.rewind()
        yield Chunks(self.read)


@asynccontextmanager
async def gzipped(ports: Ports, read: Read, folder: Path) -> AsyncGenerator[Gzipped, None]:
    """All that `read` gives, compressed in memory, or in an unnamed file in `folder` where it is large.

    Equal content gives equal bytes. Raises OSError where `folder` has no room, and what `read` raises. Cancellation
    ends it between two chunks.
    """
    # It does nothing that blocks before it leaves memory, and that happens in a thread.
    spool = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, dir=str(folder))  # noqa: SIM115 - closed below
    compressor = zlib.compressobj(wbits=_GZIP_FORMAT)

    def compress(chunk: bytes) -> None:
        spool.write(compressor.compress(chunk))

    try:
        async for chunk in Chunks(read):
            await ports.run_sync(compress, chunk)
        await ports.run_sync(lambda: spool.write(compressor.flush()))
        yield Gzipped(ports, spool, spool.tell())
    finally:
        # Freeing a large file's blocks takes a while. There is no limit beside the shield: a call that has begun in a
        # thread cannot be given up anyhow.
        with trio.CancelScope(shield=True):
            await ports.run_sync(spool.close)
