"""Moves and removes what tasks leave on disk, whatever they have made of it. All of it blocks."""

from __future__ import annotations

import itertools
import logging
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

log = logging.getLogger("worker")

BATCH = 1000  # entries of a folder that are in memory at once
MOST_STUCK = 100  # entries of a folder that cannot be removed: then others in it are not tried any more
# Folders in one another, and bytes of a path below the top, that are followed. What is deeper is moved up first.
DEPTH, LENGTH = 40, 2000

_MOUNTS = Path("/proc/self/mountinfo")


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it. What cannot be removed is told in the worker's log."""
    for _ in removing(folder):
        pass


def removing(path: Path) -> Iterator[None]:
    """Remove a file, or a folder and all in it, in steps that are short each, and in bounded memory.

    What is mounted in it is detached, and stays as it is. What cannot be removed is told in the worker's log.
    """
    try:
        _detach_mounts(path)
        if not path.is_symlink() and path.is_dir():
            yield from _Removal(path).folder(str(path), 0)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.error("%s could not be removed: %s", path, reason(error))


class _Removal:
    def __init__(self, top: Path) -> None:
        self._top = top
        self._longest = len(os.fsencode(top)) + LENGTH  # in bytes, as the system counts
        self._numbers = itertools.count()

    def folder(self, folder: str, depth: int) -> Iterator[None]:
        """Raises OSError where something is left; most of the rest is gone then too."""
        stuck: set[str] = set()
        failure: OSError | None = None
        _make_writable(folder)
        while len(stuck) <= MOST_STUCK and (batch := _entries(folder, stuck)):
            for entry in batch:
                try:
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.path)  # noqa: PTH108 - a Path for each of a million takes as long again
                    elif depth < DEPTH and len(os.fsencode(entry.path)) < self._longest:
                        yield from self.folder(entry.path, depth + 1)
                    else:
                        self._move_up(Path(entry.path))
                except OSError as error:
                    stuck.add(entry.name)
                    failure = failure or error
                yield
        if failure is not None:
            raise failure
        Path(folder).rmdir()

    def _move_up(self, path: Path) -> None:
        """To the top, whose entries are read until there are none."""
        names = (self._top / f".deep-{number}" for number in self._numbers)
        move(path, next(name for name in names if not os.path.lexists(name)))


def _make_writable(folder: str) -> None:
    path = Path(folder)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        with suppress(PermissionError):  # It is another user's; perhaps we may all the same.
            path.chmod(mode | stat.S_IRWXU)


def _entries(folder: str, without: set[str]) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(islice((entry for entry in entries if entry.name not in without), BATCH))


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder, be it one that may not be written to. Raises OSError.

    POSIX wants a folder to be writable when it gets another parent, since its `..` changes.
    """
    try:
        source.rename(target)
    except PermissionError:
        mode = source.lstat().st_mode
        if not stat.S_ISDIR(mode):
            raise
        source.chmod(stat.S_IMODE(mode) | stat.S_IRWXU)
        source.rename(target)
        target.chmod(stat.S_IMODE(mode))


def size_of(folder: Path, most: int = 100_000) -> tuple[int, bool]:
    """The bytes that a folder and all in it take on the disk, and whether that is all: `most` entries are looked at."""
    size = count = 0
    left = [str(folder)]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    count += 1
                    if count > most:
                        return size, False
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
        except OSError:
            continue  # It may just be removed, or be somebody else's.
    return size, True


def _detach_mounts(path: Path) -> None:
    """What is mounted there is another's: an engine that was killed may have left a cache or a folder of the host's."""
    for point in mounts_below(path):
        command = ["/usr/bin/env", "umount", "--lazy", "--", point]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            raise OSError(None, f"{point} is mounted, and cannot be detached: {done.stderr.strip()[:200]}")
        log.warning("detached %s, which was mounted in what is removed", point)


def mounts_below(path: Path) -> list[str]:
    """The mount points at `path` and below, those that were mounted last first. None where nobody tells."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return []
    # The fifth field (proc(5)); blanks and backslashes in it are octal numbers.
    points = [os.fsdecode(line.split(b" ")[4].decode("unicode_escape").encode("latin-1")) for line in lines]
    top = str(path.parent.resolve() / path.name)
    return [point for point in reversed(points) if point == top or point.startswith(f"{top}/")]


def reason(error: OSError) -> str:
    """What went wrong, and with which file, in words."""
    return f"{error.strerror}: {error.filename!a}"[:500] if error.filename else str(error.strerror or error)
