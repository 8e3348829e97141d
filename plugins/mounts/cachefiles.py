"""Caches on disk: what their folders look like, and which of them can be trusted. All of it blocks.

caches/N/meta.json, content   a cache that nobody uses
caches/clean                  all of them are on disk for certain, since the worker has ended in order
caches/boot                   the start of the machine at which they were: until its next one they are
leased/N/content              one that a run has
"""

from __future__ import annotations

import ctypes
import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from worker.errors import FatalWorkerFault

CACHES = "caches"
LEASED = "leased"
META = "meta.json"
CONTENT = "content"
CLEAN = "clean"
BOOT = "boot"

USED_WITH = ("mounts", "tasks", "trash")  # what is in one of these folders goes to the other by a rename, as do caches

_MOST_META = 64 * 1024  # bytes
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Cache:
    """One of the folders of a name, in `caches` or in `leased` by its number. Times are the services'."""

    number: int
    name: str
    made: datetime
    used: datetime

    def used_at(self, moment: datetime) -> Cache:
        """The same, used then."""
        return replace(self, used=moment)


@dataclass
class Found:
    """What there is at the start: caches that can be trusted, and what is to be thrown away."""

    caches: list[Cache] = field(default_factory=list)
    bad: list[Path] = field(default_factory=list)


def begin(caches: Path, leased: Path) -> Found:
    """Make the folders where they are missing, and look what is in them. Raises FatalWorkerFault."""
    try:
        caches.mkdir(parents=True, exist_ok=True, mode=0o700)
        leased.mkdir(parents=True, exist_ok=True, mode=0o700)
        for other in (leased, *(caches.parent / name for name in USED_WITH)):
            if _device(other) != _device(caches):
                raise FatalWorkerFault(f"{caches} and {other} must be on one filesystem: mount none of them")
        found = Found(bad=list(leased.iterdir()))
        is_clean = (caches / CLEAN).exists()
        is_whole = is_clean or _was_clean(caches)
        for path in caches.iterdir():
            if not path.name.isdecimal():
                continue
            try:
                found.caches.append(_read(path, is_whole))
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                found.bad.append(path)
        if is_clean:
            # For a worker that is killed, and not the machine: what it has not used by then is as whole as it was.
            with suppress(OSError):
                (caches / BOOT).write_text(_boot())
            (caches / CLEAN).unlink()
            _sync_folder(caches)  # or a loss of power could bring it back
    except OSError as error:
        raise FatalWorkerFault(f"caches cannot be had in workDir: {error.strerror}: {error.filename}") from error
    return found


def _device(folder: Path) -> int:
    """That of a folder which is there, or is yet to be made."""
    return (folder if folder.exists() else folder.parent).stat().st_dev


def _was_clean(caches: Path) -> bool:
    try:
        return (caches / BOOT).read_text() == _boot()
    except (OSError, ValueError):
        return False


def _read(path: Path, is_whole: bool) -> Cache:
    # Whatever else stands there: it must not block.
    descriptor = os.open(path / META, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        meta = json.loads(os.read(descriptor, _MOST_META))
    finally:
        os.close(descriptor)
    _check_folder(path / CONTENT)
    if meta["boot"] != _boot() and not is_whole:
        raise ValueError("the machine went down, and not all of it may be on disk")
    made, used = (datetime.fromisoformat(meta[key]) for key in ("made", "used"))
    if made.tzinfo is None or used.tzinfo is None:
        raise ValueError("a time without a zone")
    return Cache(int(path.name), str(meta["name"]), made, used)


def make(leased: Path) -> None:
    """A new cache. Raises OSError; then nothing is at `leased`."""
    leased.mkdir(mode=0o700)
    try:
        (leased / CONTENT).mkdir()
    except OSError:
        leased.rmdir()
        raise


def keep(cache: Cache, leased: Path, target: Path) -> None:
    """Bring a cache back. Raises OSError where there is none any more, and then nothing is at `target`."""
    _check_folder(leased / CONTENT)
    meta = {"name": cache.name, "made": cache.made.isoformat(), "used": cache.used.isoformat(), "boot": _boot()}
    with suppress(FileNotFoundError):
        (leased / META).unlink()
    with (leased / META).open("x") as file:
        file.write(json.dumps(meta))
    leased.rename(target)


def _check_folder(content: Path) -> None:
    try:
        is_folder = stat.S_ISDIR(content.lstat().st_mode)
    except FileNotFoundError:
        raise FileNotFoundError(None, "its folder is not at its place any more") from None
    if not is_folder:
        raise NotADirectoryError(None, "a link or a file has taken its folder's place")


def end(caches: Path) -> None:
    """Have all of it on disk. Raises OSError."""
    if not any(path.name.isdecimal() for path in caches.iterdir()):
        return
    _sync_filesystem(caches)
    (caches / CLEAN).touch()


def _boot() -> str:
    """Which start of the machine this is; nothing where nobody tells."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_filesystem(folder: Path) -> None:
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)
