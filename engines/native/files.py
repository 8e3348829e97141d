"""The files that a task left in its directory."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, asynccontextmanager
from itertools import islice
from pathlib import Path

from engines.base import Ended, FileInvalid, FileMissing, FileUnreadable, Result, SandboxFile
from engines.native.volumes import is_folder
from worker.ports import Ports

PIECE = 10_000  # entries of a folder that are in memory at once


class LocalFile(SandboxFile):
    """A regular file of this machine."""

    def __init__(self, ports: Ports, descriptor: int, size: int) -> None:
        self._ports = ports
        self._descriptor = descriptor
        self.size = size

    async def receive_some(self, max_bytes: int) -> bytes:
        return await self._ports.run_sync(os.read, self._descriptor, max_bytes)


class FolderResult(Result):
    """What is in `directory`. A relative path must not lead out of it, by links neither; an absolute one may."""

    def __init__(self, ports: Ports, directory: Path, ended: Ended | None, *, piece: int = PIECE) -> None:
        """A walk has `piece` entries of a folder in memory at once."""
        self._ports = ports
        self._piece = piece
        self._directory = directory
        self.ended = ended

    @asynccontextmanager
    async def open(self, path: str) -> AsyncGenerator[SandboxFile, None]:
        descriptor = await self._ports.run_sync(self._open, path)
        try:
            yield LocalFile(self._ports, descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    async def walk(self, path: str) -> AsyncGenerator[str, None]:
        top = await self._ports.run_sync(self._folder, path)
        # From the top to where it is: a piece of each, and a descriptor of those alone that are larger than a piece.
        folders = [_Folder(top, "", self._piece)]
        try:
            while folders:
                folder = folders[-1]
                if folder.below:
                    folders.append(_Folder(top, folder.below.pop(), self._piece))
                elif folder.done:
                    folders.pop()
                else:
                    for name in await self._ports.run_sync(folder.read):
                        yield name
        finally:
            for folder in folders:
                folder.close()

    async def is_folder(self, path: str) -> bool:
        return await self._ports.run_sync(is_folder, self._directory, path)

    def _resolve(self, path: str) -> Path:
        try:
            resolved = (self._directory / path).resolve(strict=True)
        except (FileNotFoundError, NotADirectoryError):
            raise FileMissing(f"there is nothing at {path}") from None
        except PermissionError:
            raise FileUnreadable(f"{path} may not be read") from None
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long, a NUL
            raise FileInvalid(f"{path} is no usable path: {error}") from None
        if not Path(path).is_absolute() and not resolved.is_relative_to(self._directory.resolve()):
            raise FileInvalid(f"{path} leads out of the task's directory")
        return resolved

    def _open(self, path: str) -> int:
        resolved = self._resolve(path)
        try:
            # Not blocking, for what is swapped for a FIFO between the check and the opening.
            descriptor = os.open(resolved, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise FileMissing(f"there is nothing at {path}") from None
        except PermissionError:
            raise FileUnreadable(f"{path} may not be read") from None
        except OSError as error:
            raise FileInvalid(f"{path} cannot be opened: {error.strerror}") from None
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise FileInvalid(f"{path} is not a regular file")

    def _folder(self, path: str) -> Path:
        resolved = self._resolve(path)
        if not resolved.is_dir():
            raise FileInvalid(f"{path} is not a folder")
        if not os.access(resolved, os.R_OK | os.X_OK):
            raise FileUnreadable(f"{path} may not be read")
        return resolved


class _Folder:
    """One folder of a walk, read piece by piece. All that it does blocks."""

    def __init__(self, top: Path, folder: str, piece: int) -> None:
        self._top = top
        self._folder = folder
        self._piece = piece
        self._entries: Iterator[os.DirEntry[str]] | None = None
        self._stack = ExitStack()
        self.below: list[str] = []  # the folders of the last piece, relative to the top, the first one last
        self.done = False

    def read(self) -> list[str]:
        """The regular files among the next `piece` entries, relative to the top, sorted; `done` if these are all."""
        try:
            return self._read()
        except FileNotFoundError:
            self.close()
            return []
        except PermissionError:
            raise FileUnreadable(f"{self._folder} may not be read") from None
        except OSError as error:  # such as a path that is longer than the system allows
            raise FileInvalid(f"{self._folder[:200]} cannot be read: {error.strerror}") from None

    def _read(self) -> list[str]:
        if self._entries is None:
            self._entries = self._stack.enter_context(os.scandir(self._top / self._folder))
        piece = list(islice(self._entries, self._piece))
        if len(piece) < self._piece:
            self.close()
        prefix = f"{self._folder}/" if self._folder else ""
        below = [prefix + entry.name for entry in piece if entry.is_dir(follow_symlinks=False)]
        self.below = sorted(below, reverse=True)
        return sorted(prefix + entry.name for entry in piece if entry.is_file(follow_symlinks=False))

    def close(self) -> None:
        """Read no more of it."""
        self.done = True
        self._stack.close()
