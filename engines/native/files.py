"""The files that a task left in its directory."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from engines.base import Ended, FileInvalid, FileMissing, FileUnreadable, Result, SandboxFile
from engines.native.volumes import is_folder
from worker.ports import Ports


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

    def __init__(self, ports: Ports, directory: Path, ended: Ended | None) -> None:
        self._ports = ports
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
        folders = [""]  # as deep as the tree is wide, not as it is large: each folder's own list is dropped when done
        while folders:
            folder = folders.pop()
            below, files = await self._ports.run_sync(_entries, top, folder)
            folders += reversed(below)
            for name in files:
                yield name

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


def _entries(top: Path, folder: str) -> tuple[list[str], list[str]]:
    """The folders and the regular files in `folder`, as paths relative to `top`, each list sorted."""
    folders, files = [], []
    try:
        with os.scandir(top / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                elif entry.is_file(follow_symlinks=False):
                    files.append(name)
    except FileNotFoundError:
        return [], []
    except PermissionError:
        raise FileUnreadable(f"{folder} may not be read") from None
    except OSError as error:  # such as a path that is longer than the system allows
        raise FileInvalid(f"{folder[:200]} cannot be read: {error.strerror}") from None
    return sorted(folders), sorted(files)
