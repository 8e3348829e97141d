"""The room on the worker's disk: kept free by giving up what was used least recently and nobody uses now."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from worker.errors import ResourceUnavailable, WorkerFault
from worker.ports import Ports
from worker.quantities import approximate_size, format_size
from worker.trash import Trash

log = logging.getLogger("worker")

FULL = 64 * 1024  # bytes: with so few left some writes fail
MOST_NAMES = 10  # of what was removed, in the log


@dataclass(frozen=True, slots=True)
class Item:
    """Something that a store could do without. `name` is for the log; `key` is the store's own.

    `last_used` is in seconds since 1970.
    """

    last_used: float
    name: str
    key: str


def is_full(error: OSError) -> bool:
    """Whether it says that nothing more can be written."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def fault_of(error: OSError, what: str) -> ResourceUnavailable | WorkerFault:
    """What an error on the worker's disk is to a run: a full one is no fault, but a lack. `what` could not be done."""
    if is_full(error):
        return ResourceUnavailable(f"{what}: the worker's disk is full: {error.strerror}")
    return WorkerFault(f"{what}: {error.strerror or error}")


class Store(Protocol):
    """What keeps something on the disk that can be had again, at a price."""

    async def unused(self) -> list[Item]:
        """What nobody uses now."""

    async def remove(self, item: Item) -> bool:
        """Give one of these up; False where it is gone, or somebody has begun to use it meanwhile."""


@dataclass(frozen=True, slots=True)
class Lacking:
    """Why there is no room: `of` which kind, the same for as long as it is the same reason, and in words."""

    of: str
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Room:
    """What is free: bytes, and files that can be made, None where the filesystem does not count them."""

    free: int
    inodes: int | None


def look(path: Path) -> Room:
    """The room where `path` is. Blocks. Raises OSError."""
    counts = os.statvfs(path)
    return Room(shutil.disk_usage(path).free, counts.f_favail if counts.f_files else None)


class Disk:
    """The disk of `work_dir`: at least `minimum_space` bytes and `minimum_inodes` files are to be free on it."""

    def __init__(self, ports: Ports, work_dir: Path, trash: Trash, minimum_space: int, minimum_inodes: int) -> None:
        self._ports = ports
        self._work_dir = work_dir
        self._trash = trash
        self._minimum_space = minimum_space
        self._minimum_inodes = minimum_inodes
        self._stores: list[Store] = []
        self._making_room = trio.Lock()

    @contextmanager
    def add(self, store: Store) -> Generator[None, None, None]:
        """`store` gives up what is needed, while the block lasts."""
        self._stores.append(store)
        try:
            yield
        finally:
            self._stores.remove(store)

    async def make_room(self) -> Lacking | None:
        """Have the minimum free, if need be by removing what was used least recently.

        What is in the trash goes first, and is waited for. Returns what is lacking all the same. Raises OSError where
        nobody can look. Cancellation ends it between two items.
        """
        async with self._making_room:
            lacking = await self._lacking_beside_trash()
            if lacking and self._stores:
                lacking = await self._remove_until_enough(lacking)
            return lacking

    async def full(self) -> str:
        """What there is no more of, in words; nothing where there is, or nobody can look."""
        try:
            room = await self._ports.run_sync(look, self._work_dir)
        except OSError:
            return ""
        if room.free < FULL:
            return "nothing more can be written"
        return "no more files can be made" if room.inodes == 0 else ""

    async def _lacking_beside_trash(self) -> Lacking | None:
        while True:
            was_busy = self._trash.busy
            lacking = await self._lacking()
            # It has not seen what was removed while it looked, even where all is by now.
            if not lacking or not (was_busy or self._trash.busy):
                return lacking
            await self._trash.wait_progress()

    async def _lacking(self) -> Lacking | None:
        room = await self._ports.run_sync(look, self._work_dir)
        if room.free < self._minimum_space:
            wanted = f"minimumDiskSpace is {format_size(self._minimum_space)}"
            return Lacking("bytes", f"{approximate_size(room.free)} are free in workDir, and {wanted}")
        if room.inodes is not None and room.inodes < self._minimum_inodes:
            wanted = f"minimumInodes is {self._minimum_inodes}"
            return Lacking("files", f"{room.inodes} files can be made in workDir, and {wanted}")
        return None

    async def _remove_until_enough(self, lacking: Lacking) -> Lacking | None:
        found = [(item, store) for store in self._stores for item in await store.unused()]
        still: Lacking | None = lacking
        removed = []
        try:
            for item, store in sorted(found, key=lambda pair: pair[0].last_used):
                try:
                    gone = await store.remove(item)
                except OSError as error:  # Others can be.
                    log.error("%s could not be removed: %s", item.name, error.strerror)
                    continue
                if gone:
                    removed.append(item)
                    await self._trash.wait_empty()
                    if not (still := await self._lacking()):
                        break
        finally:
            if removed:
                log.warning("%s; removed what was used least recently: %s", lacking, _names(removed))
        return still


def _names(items: Sequence[Item]) -> str:
    more = f" and {len(items) - MOST_NAMES} more" if len(items) > MOST_NAMES else ""
    return ", ".join(item.name for item in items[:MOST_NAMES]) + more
