"""The closed log as gzip, on its way to storage."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import trio

from worker.ports import Ports

BLOCK = 1024 * 1024  # bytes that are read and compressed at once
IN_MEMORY = 1024 * 1024  # compressed bytes that are kept in memory; more goes to the disk
CHUNK = 256 * 1024  # bytes that are sent at once

_GZIP_FORMAT = zlib.MAX_WBITS + 16  # zlib's deflateInit2; the header has neither a name nor a time


class Gzipped:
    """A file's content, compressed. `length` is in bytes."""

    def __init__(self, ports: Ports, spool: IO[bytes], length: int) -> None:
        self._ports = ports
        self._spool = spool
        self.length = length

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[AsyncIterable[bytes], None]:
        """From the beginning, as often as it is opened, one after the other."""
        await self._ports.run_sync(self._spool.seek, 0)
        yield _Chunks(self._ports, self._spool)


class _Chunks(AsyncIterator[bytes]):
    # A class and not a generator: a generator that is left early is cleaned up by the garbage collector, in no scope.

    def __init__(self, ports: Ports, spool: IO[bytes]) -> None:
        self._ports = ports
        self._spool = spool

    async def __anext__(self) -> bytes:
        chunk = await self._ports.run_sync(self._spool.read, CHUNK)
        if not chunk:
            raise StopAsyncIteration
        return chunk


@asynccontextmanager
async def gzipped(ports: Ports, path: Path) -> AsyncGenerator[Gzipped, None]:
    """The file in `path`, compressed into an unnamed file beside it, or in memory where it is small.

    Raises OSError, as from a full disk. Cancellation ends it between two blocks.
    """
    # It does nothing that blocks before it leaves memory, and that happens in a thread.
    spool = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, dir=str(path.parent))  # noqa: SIM115  # closed below
    try:
        source = await ports.run_sync(lambda: path.open("rb"))
        try:
            compressor = zlib.compressobj(wbits=_GZIP_FORMAT)

            def compress_some() -> bool:
                block = source.read(BLOCK)
                spool.write(compressor.compress(block) if block else compressor.flush())
                return bool(block)

            while await ports.run_sync(compress_some):
                pass
        finally:
            source.close()
        yield Gzipped(ports, spool, spool.tell())
    finally:
        # Freeing a large file's blocks takes a while. There is no limit beside the shield: a call that has begun in a
        # thread cannot be given up anyhow.
        with trio.CancelScope(shield=True):
            await ports.run_sync(spool.close)
