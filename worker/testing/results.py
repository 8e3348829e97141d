"""What an engine's sandbox leaves behind, without an engine."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import trio

from engines.base import Ended, FileInvalid, FileMissing, FileUnreadable, Result, SandboxFile


class FolderFile(SandboxFile):
    """A real file. `reads` has the sizes that were asked for."""

    def __init__(self, file: BinaryIO, reads: list[int]) -> None:
        self.size = os.fstat(file.fileno()).st_size
        self._file = file
        self._reads = reads

    async def receive_some(self, max_bytes: int) -> bytes:
        """Inline and not in a thread: virtual time does not wait for threads."""
        await trio.lowlevel.checkpoint()
        self._reads.append(max_bytes)
        return self._file.read(max_bytes)


SUCCEEDED = Ended(success=True, exit_code=0)


class FolderResult(Result):
    """The files of a real folder, which the test fills.

    Paths in `unreadable` answer as if they may not be read; root may read everything, so a mode would not do. `ended`
    is None for a sandbox that was killed. `reads` has the size of every read of any file.
    """

    def __init__(self, folder: Path, ended: Ended | None = SUCCEEDED, unreadable: Collection[str] = ()) -> None:
        self.folder = folder
        self.ended = ended
        self.unreadable = unreadable
        self.reads: list[int] = []

    @asynccontextmanager
    async def open(self, path: str) -> AsyncGenerator[SandboxFile, None]:
        """As the interface says."""
        await trio.lowlevel.checkpoint()
        file = self._open(path)
        try:
            yield FolderFile(file, self.reads)
        finally:
            file.close()

    async def walk(self, path: str) -> AsyncGenerator[str, None]:
        """As the interface says."""
        folder = self._folder(path)
        for relative in _files(folder, ""):
            await trio.lowlevel.checkpoint()
            yield relative

    async def is_folder(self, path: str) -> bool:
        """As the interface says."""
        await trio.lowlevel.checkpoint()
        full = self.folder / path
        return full.is_dir() and not full.is_symlink()

    def _open(self, path: str) -> BinaryIO:
        if path in self.unreadable:
            raise FileUnreadable(f"{path} may not be read")
        full = self.folder / path
        if not full.exists():
            raise FileMissing(f"there is nothing at {path}")
        if not full.is_file():
            raise FileInvalid(f"{path} is not a regular file")
        return full.open("rb")

    def _folder(self, path: str) -> Path:
        if path in self.unreadable:
            raise FileUnreadable(f"{path} may not be read")
        full = self.folder / path
        if not full.exists():
            raise FileMissing(f"there is nothing at {path}")
        if not full.is_dir():
            raise FileInvalid(f"{path} is not a folder")
        return full


def _files(folder: Path, prefix: str) -> Iterator[str]:
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink():
            continue
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        elif entry.is_file():
            yield f"{prefix}{entry.name}"
