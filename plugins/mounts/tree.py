"""Writes what an archive holds into a folder, and nowhere else.

Every entry is reached from the folder's descriptor by one name at a time, and no link is followed on the way. So what
an archive calls its entries cannot lead out, whatever the filesystem makes of cases and of odd characters. A link that
is made leads to inside of the folder: see `link_problem`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EEXIST, EILSEQ, EINVAL, EISDIR, ELOOP, EMLINK, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTEMPTY, EPERM
from pathlib import Path
from typing import IO

# What an archive can cause by its names and by what it has there; whatever else there is says something of the machine.
_ARCHIVE = {ENAMETOOLONG, ELOOP, ENOTDIR, EISDIR, EEXIST, ENOENT, ENOTEMPTY, EILSEQ, EINVAL, EMLINK}
_LINKS = {EPERM, EACCES}  # what some filesystems and some settings of Linux say to hard links

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

MAX_DEPTH = 200
MAX_NAME = 4000  # characters; paths of more than 4096 bytes are of no use to most programs


class Refused(Exception):
    """The archive holds what is not unpacked. The text names the entry, and why."""


def shown(name: str) -> str:
    """An entry's name for an error: printable, and not too long."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return repr(text if len(text) <= 200 else text[:200] + "…")


def parts_of(name: str) -> list[str]:
    """The steps of an entry's name; none for the folder itself. Raises Refused for one that leads out."""
    if name.startswith("/"):
        raise Refused(f"{shown(name)} is an absolute path")
    if "\0" in name:
        raise Refused(f"{shown(name)} has a NUL in it")
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise Refused(f"{shown(name)} leads out of its directory by ..")
    if len(name) > MAX_NAME:
        raise Refused(f"{shown(name)} has more than {MAX_NAME} characters")
    if len(parts) > MAX_DEPTH:
        raise Refused(f"{shown(name)} is more than {MAX_DEPTH} directories deep")
    return parts


def link_problem(parts: list[str], target: str) -> str | None:
    """Why a symbolic link at `parts` to `target` is refused, if it is.

    `..` may stand at its beginning alone, and not lead above the folder. The link's own directory is none that a link
    leads to, so these steps go where they seem to; what follows goes down, into directories or through links of which
    the same is true. A `..` behind one of those would go nobody knows where.
    """
    if not target or "\0" in target:
        return "leads nowhere"
    if target.startswith("/"):
        return "is absolute"
    steps = [step for step in target.split("/") if step not in {"", "."}]
    up = next((index for index, step in enumerate(steps) if step != ".."), len(steps))
    if ".." in steps[up:]:
        return "has .. behind a name"
    return "leads out of the archive" if up > len(parts) - 1 else None


class Tree:
    """A folder that is being filled; all of it blocks, and may be called in any thread, one call at a time."""

    def __init__(self, root: Path, made: Callable[[], None]) -> None:
        """`made` is called for each directory that no entry stands for."""
        self._made = made
        self._root = os.open(root, _DIRECTORY)
        # That of the last entry, since the next one is most likely in it too.
        self._parent: tuple[list[str], int] | None = None

    def close(self) -> None:
        """Let go of the descriptors."""
        self._forget_parent()
        os.close(self._root)

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def directory(self, name: str) -> None:
        """Make a directory, unless it is there."""
        parts = parts_of(name)
        with _blaming(name):
            self._open_parent([*parts, ""])

    @contextmanager
    def file(self, name: str, mode: int, mtime: float | None) -> Iterator[IO[bytes]]:
        """A new file to write to; what was there by that name, if it is no directory, is gone."""
        parts = self._parts_below(name)
        with _blaming(name):
            parent = self._open_parent(parts)
            self._clear(parts[-1], parent)
            descriptor = os.open(parts[-1], _NEW_FILE, 0o600, dir_fd=parent)
        # The parent may be another one when the block is left.
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            yield file
            with _blaming(name):
                os.fchmod(descriptor, mode & 0o755 | 0o600)
                if mtime is not None:
                    with suppress(OverflowError, ValueError, OSError):
                        os.utime(descriptor, (mtime, mtime))

    def symlink(self, name: str, target: str) -> None:
        """A link that stays inside."""
        parts = self._parts_below(name)
        if problem := link_problem(parts, target):
            raise Refused(f"{shown(name)} is a link whose target {shown(target)} {problem}")
        with _blaming(name):
            parent = self._open_parent(parts)
            self._clear(parts[-1], parent)
            os.symlink(target, parts[-1], dir_fd=parent)

    def hard_link(self, name: str, target: str) -> int:
        """A second name for a file that was unpacked before; its size."""
        parts, source = self._parts_below(name), self._parts_below(target)
        with _blaming(name):
            try:
                held = os.dup(self._open_parent(source, make=False))
            except OSError as error:
                if error.errno not in _ARCHIVE:
                    raise
                raise Refused(f"{shown(name)} is a link to {shown(target)}, which is not there") from None
            try:
                return self._link(name, parts, target, source[-1], held)
            finally:
                os.close(held)

    def _link(self, name: str, parts: list[str], target: str, source: str, source_parent: int) -> int:
        try:
            found = os.stat(source, dir_fd=source_parent, follow_symlinks=False)
        except FileNotFoundError:
            raise Refused(f"{shown(name)} is a link to {shown(target)}, which is not there") from None
        if not stat.S_ISREG(found.st_mode):
            raise Refused(f"{shown(name)} is a hard link to {shown(target)}, which is no regular file")
        parent = self._open_parent(parts)
        if os.path.samestat(os.fstat(parent), os.fstat(source_parent)) and parts[-1] == source:
            return 0
        self._clear(parts[-1], parent)
        try:
            os.link(source, parts[-1], src_dir_fd=source_parent, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:  # It was the same name in another spelling, on a disk that makes no difference.
            raise Refused(f"{shown(name)} is a link to itself") from None
        except OSError as error:
            if error.errno not in _LINKS:
                raise
            raise Refused(f"{shown(name)} is a hard link, which the disk does not take: {error.strerror}") from None
        return found.st_size

    def _parts_below(self, name: str) -> list[str]:
        parts = parts_of(name)
        if not parts:
            raise Refused(f"{shown(name)} would be in the place of the directory itself")
        return parts

    def _open_parent(self, parts: list[str], *, make: bool = True) -> int:
        """The descriptor of the directory of the entry at `parts`, made where it is missing; valid until the next."""
        wanted = parts[:-1]
        if self._parent is not None and self._parent[0] == wanted:
            return self._parent[1]
        current = os.dup(self._root)
        try:
            for part in wanted:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=current)
                        self._made()
                below = os.open(part, _DIRECTORY, dir_fd=current)
                os.close(current)
                current = below
        except BaseException:
            os.close(current)
            raise
        self._forget_parent()
        self._parent = (wanted, current)
        return current

    @staticmethod
    def _clear(name: str, parent: int) -> None:
        with suppress(FileNotFoundError):
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                raise Refused(f"{shown(name)} would be in the place of a directory")
            os.unlink(name, dir_fd=parent)


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """What the filesystem does not take of an archive is the archive's fault; else it is the machine's (OSError)."""
    try:
        yield
    except NotADirectoryError:
        raise Refused(f"{shown(name)} is below something that is no directory, or a link") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in _ARCHIVE:
            raise
        # ELOOP among them: where a directory should be there is a link.
        text = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise Refused(f"{shown(name)} cannot be made: {text}") from None
