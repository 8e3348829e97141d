"""A file's bytes on their way out, in chunks, as they are or compressed."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import trio

from engines.base import FileUnreadable, Result, SandboxFile
from plugins.artifacts.progress import Progress
from worker.ports import Ports
from worker.queue.upload import OpenContent

CHUNK = 256 * 1024  # bytes read at once, and all that one upload has in memory beside what a spool holds
SPOOLED = 1024 * 1024  # bytes of compressed content that stay in memory; more goes to the disk

_GZIP_FORMAT = zlib.MAX_WBITS + 16  # see zlib's deflateInit2; this way the header has neither a name nor a time


class FileChanged(Exception):
    """The file grew or shrank while it was read."""


@dataclass(frozen=True, slots=True)
class Content:
    """What is to be sent: its length, and how to open it, once for every attempt."""

    length: int
    open: OpenContent


class _Chunks(AsyncIterator[bytes]):
    # A class and not a generator: a generator that is left early is cleaned up by the garbage collector, in no scope.

    def __init__(self, read: Callable[[int], Awaitable[bytes]], progress: Progress) -> None:
        self._read = read
        self._progress = progress

    async def __anext__(self) -> bytes:
        chunk = await self._read(CHUNK)
        if not chunk:
            raise StopAsyncIteration
        self._progress.done += len(chunk)
        return chunk


def plain(result: Result, path: str, file: SandboxFile, progress: Progress) -> Content:
    """`file` as it is, which `result` has at `path`. The first attempt reads it, later ones open the path again."""
    unread = [file]

    @asynccontextmanager
    async def open_content() -> AsyncGenerator[AsyncIterable[bytes], None]:
        progress.begin("Uploading", file.size)
        if unread:
            yield _Chunks(_reader(path, unread.pop()), progress)
            return
        async with result.open(path) as again:
            yield _Chunks(_reader(path, again), progress)

    return Content(file.size, open_content)


@asynccontextmanager
async def compressed(
    ports: Ports, path: str, file: SandboxFile, folder: Path, progress: Progress
) -> AsyncGenerator[Content, None]:
    """`file` as gzip, kept in an unnamed file in `folder` where it is large, since its length must be known beforehand.

    Raises `FileChanged`, `FileUnreadable`, and OSError where `folder` has no room.
    """
    spool = tempfile.SpooledTemporaryFile(max_size=SPOOLED, dir=str(folder))  # noqa: SIM115 - closed below, in a thread
    try:
        length = await _compress(ports, path, file, spool, progress)

        @asynccontextmanager
        async def open_content() -> AsyncGenerator[AsyncIterable[bytes], None]:
            progress.begin("Uploading", length)
            await ports.run_sync(spool.seek, 0)
            yield _Chunks(partial(ports.run_sync, spool.read), progress)

        yield Content(length, open_content)
    finally:
        # There is no limit beside the shield: a call that has begun in a thread cannot be given up anyhow.
        with trio.CancelScope(shield=True):
            await ports.run_sync(spool.close)


async def _compress(ports: Ports, path: str, file: SandboxFile, into: IO[bytes], progress: Progress) -> int:
    compressor = zlib.compressobj(wbits=_GZIP_FORMAT)

    def compress(chunk: bytes) -> None:
        into.write(compressor.compress(chunk))

    progress.begin("Compressing", file.size)
    async for chunk in _Chunks(_reader(path, file), progress):
        await ports.run_sync(compress, chunk)
        if progress.done > file.size:
            break  # It may grow for ever.
    if progress.done != file.size:
        raise FileChanged(f"{path} changed its length while it was read")
    await ports.run_sync(lambda: into.write(compressor.flush()))
    return into.tell()


def _reader(path: str, file: SandboxFile) -> Callable[[int], Awaitable[bytes]]:
    """Reads `file`; what goes wrong with that is the task's affair, unlike other OSErrors."""

    async def read(size: int) -> bytes:
        try:
            return await file.receive_some(size)
        except OSError as error:
            raise FileUnreadable(f"{path} cannot be read: {error.strerror or error}") from error

    return read
