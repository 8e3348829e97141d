"""Bytes compressed before they are sent, since storage must be told their length first."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Literal, Protocol, TypeVar

import trio

from worker.ports import Ports

CHUNK = 256 * 1024  # bytes that are sent at once
IN_MEMORY = 1024 * 1024  # compressed bytes that stay in memory; more goes to the disk
SMALL = 8 * 1024  # bytes that are compressed in about the time that a thread would take

_GZIP_FORMAT = zlib.MAX_WBITS + 16  # zlib's deflateInit2; the header has neither a name nor a time

T = TypeVar("T")
Read = Callable[[], Awaitable[bytes]]
Method = Literal["gzip", "zstd"]


class Compressor(Protocol):
    """What `zlib` and `zstandard` have in common."""

    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _compressor(method: Method) -> Compressor:
    if method == "gzip":
        return zlib.compressobj(wbits=_GZIP_FORMAT)
    import zstandard  # few need it

    return zstandard.ZstdCompressor().compressobj()


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


class Compressed:
    """Compressed content; `length` is in bytes."""

    def __init__(self, ports: Ports, spool: IO[bytes], length: int) -> None:
        self._ports = ports
        self._spool = spool
        self.length = length

    async def rewind(self) -> None:
        """Begin anew."""
        await self._perform(self._spool.seek, 0)

    async def read(self) -> bytes:
        """The next bytes, none at the end."""
        return await self._perform(self._spool.read, CHUNK)

    async def _perform(self, function: Callable[[int], T], argument: int) -> T:
        return await _perform(self._ports, self.length <= IN_MEMORY, function, argument)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[AsyncIterable[bytes], None]:
        """From the beginning, as often as it is opened, one after the other."""
        await self.rewind()
        yield Chunks(self.read)


class Compression:
    """Compresses what it is fed, into memory, or into an unnamed file where that is large.

    Equal content gives equal bytes, however it was split.
    """

    def __init__(self, ports: Ports, open_spool: Callable[[], IO[bytes]], method: Method = "gzip") -> None:
        """`open_spool` makes the file to write to, without blocking; called again to begin anew."""
        self._ports = ports
        self._open_spool = open_spool
        self._method = method
        self._begin()

    def _begin(self) -> None:
        self._spool = self._open_spool()
        self._compressor: Compressor | None = None  # made when it is needed: it takes 256 KiB
        self.fed = 0  # bytes

    async def feed(self, chunk: bytes) -> None:
        """Compress these too. Raises OSError where the folder has no room; then nothing is fed, and all begins anew."""
        await _perform(self._ports, self.fed + len(chunk) <= SMALL, self._compress, chunk)

    def _compress(self, chunk: bytes) -> None:
        # All of it is here, where the caller's cancellation comes either before it or after it.
        if self._compressor is None:
            self._compressor = _compressor(self._method)
        try:
            self._spool.write(self._compressor.compress(chunk))
        except BaseException:
            # A new file: the old one still has bytes in its buffer, which would fail again or come too late.
            self._close()
            self._begin()
            raise
        self.fed += len(chunk)

    def _close(self) -> None:
        with suppress(OSError):  # the disk is full; nobody wants what is in the buffer
            self._spool.close()

    async def finish(self) -> Compressed:
        """What was fed, compressed; nothing more can be. It is readable until the block of `open_compression` ends."""
        await _perform(self._ports, self.fed <= SMALL, self._finish)
        return Compressed(self._ports, self._spool, self._spool.tell())

    def _finish(self) -> None:
        compressor = self._compressor or _compressor(self._method)
        self._spool.write(compressor.flush())
        self._spool.flush()

    async def aclose(self) -> None:
        """Let go of the file, which takes no bytes on the disk then. Cancellation does not end it early."""
        # Freeing a large file's blocks takes a while. There is no limit beside the shield: a call that has begun in a
        # thread cannot be given up anyhow.
        with trio.CancelScope(shield=True):
            await _perform(self._ports, self.fed <= SMALL, self._close)


async def _perform(ports: Ports, at_once: bool, function: Callable[..., T], *args: object) -> T:
    """Call `function`: here where it takes no time, else in a thread. Cancellation comes before it or after it."""
    if at_once:
        await trio.lowlevel.checkpoint()
        return function(*args)
    return await ports.run_sync(function, *args)


@asynccontextmanager
async def open_compression(ports: Ports, folder: Path, method: Method = "gzip") -> AsyncGenerator[Compression, None]:
    """A `Compression` whose file is in `folder`, for as long as the block lasts."""
    spool = partial(tempfile.SpooledTemporaryFile, max_size=IN_MEMORY, dir=str(folder))
    compression = Compression(ports, spool, method)
    try:
        yield compression
    finally:
        await compression.aclose()


@asynccontextmanager
async def compressed(
    ports: Ports, read: Read, folder: Path, method: Method = "gzip"
) -> AsyncGenerator[Compressed, None]:
    """All that `read` gives, compressed.

    Raises OSError where `folder` has no room, and what `read` raises. Cancellation ends it between two chunks.
    """
    async with open_compression(ports, folder, method) as compression:
        async for chunk in Chunks(read):
            await compression.feed(chunk)
        yield await compression.finish()
