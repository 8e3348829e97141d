"""A file's bytes on their way out, in chunks, as they are or compressed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import asynccontextmanager
from pathlib import Path

from engines.base import FileUnreadable, Result, SandboxFile
from plugins.artifacts.progress import Progress
from worker.ports import Ports
from worker.queue.transfer import Content
from worker.spool import CHUNK, Chunks, Method, Read
from worker.spool import compressed as compressed_spool


class FileChanged(Exception):
    """The file grew or shrank while it was read."""


def plain(result: Result, path: str, size: int, progress: Progress, opened: SandboxFile | None = None) -> Content:
    """The file as it is, which `result` has at `path`.

    The first attempt reads `opened`, where it is given; later ones open the path again.
    """
    unread = [opened] if opened else []

    @asynccontextmanager
    async def open_content() -> AsyncGenerator[AsyncIterable[bytes], None]:
        progress.begin("Uploading", size)
        if unread:
            yield Chunks(_counted(_reader(path, unread.pop()), progress))
            return
        async with result.open(path) as again:
            yield Chunks(_counted(_reader(path, again), progress))

    return Content(size, open_content)


@asynccontextmanager
async def compressed(
    ports: Ports, path: str, file: SandboxFile, folder: Path, progress: Progress, method: Method
) -> AsyncGenerator[Content, None]:
    """`file` compressed, kept in an unnamed file in `folder` where it is large.

    Raises `FileChanged`, `FileUnreadable`, and OSError where `folder` has no room.
    """
    read_counted = _counted(_reader(path, file), progress)

    async def read() -> bytes:
        chunk = await read_counted()
        # It may grow for ever.
        if progress.done > file.size or (not chunk and progress.done < file.size):
            raise FileChanged(f"{path} changed its length while it was read")
        return chunk

    progress.begin("Compressing", file.size)
    async with compressed_spool(ports, read, folder, method) as spool:

        @asynccontextmanager
        async def open_content() -> AsyncGenerator[AsyncIterable[bytes], None]:
            progress.begin("Uploading", spool.length)
            await spool.rewind()
            yield Chunks(_counted(spool.read, progress))

        yield Content(spool.length, open_content, method)


def _counted(read: Read, progress: Progress) -> Read:
    async def counted() -> bytes:
        chunk = await read()
        progress.done += len(chunk)
        return chunk

    return counted


def _reader(path: str, file: SandboxFile) -> Read:
    """Reads `file`; what goes wrong with that is the task's affair, unlike other OSErrors."""

    async def read() -> bytes:
        try:
            return await file.receive_some(CHUNK)
        except OSError as error:
            raise FileUnreadable(f"{path} cannot be read: {error.strerror or error}") from error

    return read
