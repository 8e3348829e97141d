"""Volumes in a task's directory: what is given or lent is moved there, what is shared is copied.

A lent folder is in one place at a time, so a worker that dies leaves it in the task's directory, and not in the store
that it came from.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from engines.base import Lending, Volume
from worker.disk import fault_of
from worker.errors import TaskFault
from worker.ports import Ports
from worker.tasklog import TaskLog

# What a path says that leads nowhere a volume could be, and what it says that is closed to the worker for good.
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
_CLOSED = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}

# Bytes that are copied in one call, which cancellation waits for.
PIECE = 64 * 2**20
BUFFER = 4 * 2**20


class Volumes:
    """Those of one run, in `directory`."""

    def __init__(self, ports: Ports, directory: Path, log: TaskLog) -> None:
        self._ports = ports
        self._directory = directory
        self._log = log
        self._placed: list[Volume] = []

    async def place(self, volumes: Iterable[Volume]) -> None:
        """Mount them, in their order.

        Raises TaskFault where a path cannot be had, ResourceUnavailable where the disk is full, and WorkerFault.
        """
        for volume in volumes:
            try:
                if volume.lending is Lending.SHARED:
                    await self._copy(volume)
                else:
                    await self._ports.run_sync(self._move, volume)
            except OSError as error:
                raise fault_of(error, f"{volume.path} could not be mounted") from error

    async def put_back(self) -> None:
        """Move what was lent to where it came from, without what was mounted in it; what is no folder is lost."""
        lent = [PurePosixPath(volume.path) for volume in self._placed if volume.lending is Lending.LENT]
        for volume in reversed(self._placed):
            if volume.lending is Lending.LENT:
                target = volume.source
            elif any(PurePosixPath(volume.path).is_relative_to(path) for path in lent):
                # The task may have made whatever name it could foresee, to keep something in the cache.
                target = self._directory / f".mounted-{self._ports.token()}"
            else:
                continue
            try:
                await self._ports.run_sync(self._move_out, volume, target)
            except OSError as error:
                if volume.lending is Lending.LENT:
                    self._log.warn(f"{volume.path} is not kept: {error.strerror or error}")

    def _move(self, volume: Volume) -> None:
        with self._place_of(volume) as (parent, name):
            # A folder may take the place of an empty one. A file would take that of any other.
            with suppress(FileNotFoundError):
                if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.rename(volume.source, name, dst_dir_fd=parent)
        # In the same call, so that no cancel comes between.
        self._placed.append(volume)

    def _move_out(self, volume: Volume, target: Path) -> None:
        path = PurePosixPath(volume.path)
        with _folder(self._directory, path.parent.parts) as parent:
            # Whoever is not root may move only what it may write to, out of what it may write to.
            if not _let_in(path.name, parent) and volume.lending is Lending.LENT:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            os.rename(path.name, target, src_dir_fd=parent)

    async def _copy(self, volume: Volume) -> None:
        with ExitStack() as files:
            source, target = await self._ports.run_sync(self._open_both, volume, files)
            while await self._ports.run_sync(_copy_piece, source, target):
                pass

    def _open_both(self, volume: Volume, files: ExitStack) -> tuple[BinaryIO, BinaryIO]:
        source = files.enter_context(volume.source.open("rb", buffering=0))
        with self._place_of(volume) as (parent, name):
            opened = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=parent)
        self._placed.append(volume)
        return source, files.enter_context(os.fdopen(opened, "wb", buffering=0))

    @contextmanager
    def _place_of(self, volume: Volume) -> Generator[tuple[int, str], None, None]:
        """The folder that it goes to, made as needed, and its name there. Raises TaskFault."""
        path = PurePosixPath(volume.path)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise TaskFault(f"{volume.path} cannot be mounted: it must be a path in the task's directory")
        try:
            with _folder(self._directory, path.parent.parts, make=True) as parent:
                yield parent, path.name
        except OSError as error:
            if error.errno in _TAKEN:
                raise TaskFault(f"{volume.path} cannot be mounted, something is there: {error.strerror}") from error
            if error.errno in _CLOSED:
                # It would be so for each run to come that has what it was to be mounted in.
                self._placed = [each for each in self._placed if not path.is_relative_to(each.path)]
                raise TaskFault(f"{volume.path} cannot be mounted: {error.strerror}") from error
            raise


def _copy_piece(source: BinaryIO, target: BinaryIO) -> int:
    """How many bytes were copied. The blocks are shared where the file system can (copy_file_range(2))."""
    if sys.platform == "linux":
        try:
            return os.copy_file_range(source.fileno(), target.fileno(), PIECE)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP}:
                raise
    piece = source.read(BUFFER)
    rest = memoryview(piece)
    while rest:
        rest = rest[target.write(rest) :]
    return len(piece)


def is_folder(top: Path, path: str) -> bool:
    """Whether a folder is at `path` below `top`, and no link there or on the way to it."""
    *parents, name = PurePosixPath(path).parts
    try:
        with _folder(top, parents) as parent:
            return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _let_in(name: str | Path, parent: int | None = None) -> bool:
    """Whether it is a folder, which then may be read and written to by its owner. Raises OSError."""
    mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    if not stat.S_ISDIR(mode):
        return False
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        os.chmod(name, stat.S_IMODE(mode) | stat.S_IRWXU, dir_fd=parent)
    return True


@contextmanager
def _folder(top: Path, parts: Iterable[str], *, make: bool = False) -> Generator[int, None, None]:
    """A descriptor of a folder below `top`, to which no link leads. Raises OSError.

    Whoever is not root must be let in, and may be the owner of what a task has closed.
    """
    _let_in(top)
    folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=folder)
            _let_in(part, folder)
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = below
        yield folder
    finally:
        os.close(folder)
