"""Moves and removes what tasks leave on disk, whatever they have made of it."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

log = logging.getLogger("worker")

BATCH = 1000  # entries of a folder that are in memory at once
MOST_STUCK = 100  # entries of one folder that cannot be removed: then the others are not tried
# Folders that are removed inside of one another; what is deeper is first moved up, so that no path gets too long.
DEPTH = 40

_MOUNTS = Path("/proc/self/mountinfo")


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it. Blocks. What cannot be removed is told in the worker's log."""
    for _ in removing(folder):
        pass


def removing(path: Path) -> Iterator[None]:
    """Remove a file, or a folder and all in it, bit by bit: each step is short. Each blocks.

    What was mounted in it is detached, and stays as it is. What cannot be removed is told in the worker's log.
    """
    try:
        _detach_mounts(path)
        if not path.is_symlink() and path.is_dir():
            yield from _removing(path, path, 0)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.error("%s could not be removed: %s", path, _reason(error))
    yield


def _removing(top: Path, folder: Path, depth: int) -> Iterator[None]:
    """Raises OSError where something is left; all else that is in the folder is gone then."""
    stuck: set[str] = set()
    failure: OSError | None = None
    while len(stuck) <= MOST_STUCK and (batch := _entries(folder, stuck)):
        for entry in batch:
            try:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)  # noqa: PTH108 - of a million, and a Path for each costs as much again
                elif depth < DEPTH:
                    yield from _removing(top, Path(entry.path), depth + 1)
                else:
                    move(Path(entry.path), _free_name(top))
            except OSError as error:
                stuck.add(entry.name)
                failure = failure or error
            yield
    if failure is not None:
        raise failure
    folder.rmdir()


def _entries(folder: Path, without: set[str]) -> list[os.DirEntry[str]]:
    def look() -> list[os.DirEntry[str]]:
        with os.scandir(folder) as entries:
            return list(islice((entry for entry in entries if entry.name not in without), BATCH))

    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        folder.chmod(0o700)
    return look()


def _free_name(folder: Path) -> Path:
    """For what is moved up: in the folder at the top, which is read again until nothing is in it."""
    number = 0
    while os.path.lexists(target := folder / f".deep-{number}"):
        number += 1
    return target


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder, be it one that may not be written to. Blocks. Raises OSError.

    POSIX wants a folder to be writable when it gets another parent, since its `..` changes.
    """
    try:
        source.rename(target)
    except PermissionError:
        mode = source.lstat().st_mode
        if not stat.S_ISDIR(mode):
            raise
        source.chmod(0o700)
        source.rename(target)
        target.chmod(stat.S_IMODE(mode))


def _detach_mounts(path: Path) -> None:
    """What is mounted there or below is another's: an engine that was killed may have left it."""
    for point in mounts_below(path):
        command = ["/usr/bin/env", "umount", "--lazy", "--", point]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(None, f"{point} is mounted, and cannot be detached: {done.stderr.strip()[:200]}")
        log.warning("detached %s, which was mounted in what is removed", point)


def mounts_below(path: Path) -> list[str]:
    """The mount points at `path` and below, those that were mounted last first. None where nobody tells."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return []
    # The fifth field (proc(5)), in which blanks and backslashes are octal numbers.
    points = [os.fsdecode(line.split(b" ")[4].decode("unicode_escape").encode("latin-1")) for line in lines]
    top = str(path.absolute())
    return [point for point in reversed(points) if point == top or point.startswith(f"{top}/")]


def _reason(error: OSError) -> str:
    return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror or error)
