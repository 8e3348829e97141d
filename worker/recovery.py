"""Takes over a worker's directory: one worker at a time has it, and finds it empty of what an earlier one left.

After `kill -9` or a loss of power there may be processes, cgroups, task directories and logs. Mounts go with their
namespace. The runs themselves are the queue's: their claims expire, and it runs the tasks again.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from worker import cgroups, proctree
from worker.errors import FatalWorkerFault
from worker.freezer import own_freezer, thaw
from worker.orphans import MARK
from worker.ports import Ports
from worker.process import AGAIN, KILL_LIMIT, owner_of
from worker.proctree import Identity
from worker.trash import FOLDER as TRASH
from worker.trash import throw_away

log = logging.getLogger("worker")

LOCK = "lock"
FOLDERS = ("tasks", "logs", "leased")  # of runs: nothing in them outlives the worker

EndProcesses = Callable[[Ports, str], Awaitable[None]]


async def end_leftovers(ports: Ports, owner: str) -> None:
    """End what an earlier worker of that name has left running. Raises FatalWorkerFault where that cannot be done."""
    if not await ports.run_sync(proctree.is_told):
        return
    freezer = await ports.run_sync(own_freezer)

    def marked() -> set[int]:
        grouped = [cgroups.members(group) for group in cgroups.leftovers(f"{cgroups.PREFIX}{owner}-")]
        return set().union(proctree.marked(MARK, f"{owner}-"), *grouped)

    def look() -> set[Identity]:
        found = proctree.identify(marked)
        return found | proctree.descendants(each.pid for each in found)

    def kill() -> set[Identity]:
        left = proctree.kill_all(look)
        thaw(freezer, left)
        return left

    left: set[Identity] = set()
    with trio.move_on_after(KILL_LIMIT) as in_time:
        while left := await ports.run_sync(kill):
            log.warning("ended %d processes that an earlier worker has left", len(left))
            with trio.move_on_after(AGAIN):
                for process in left:
                    await proctree.wait_dead(process)
    if in_time.cancelled_caught:
        pids = sorted(process.pid for process in left)
        raise FatalWorkerFault(f"processes of an earlier worker survive KILL: {pids}")
    await ports.run_sync(_remove_groups, owner)


def _remove_groups(owner: str) -> None:
    for group in cgroups.leftovers(f"{cgroups.PREFIX}{owner}-"):
        try:
            cgroups.remove(group)
        except OSError as error:
            log.warning("a cgroup of an earlier worker could not be removed: %s", error)


@asynccontextmanager
async def open_work_dir(
    ports: Ports, work_dir: Path, end_processes: EndProcesses = end_leftovers
) -> AsyncGenerator[None, None]:
    """The directory, made where it is missing, is this worker's alone while the block lasts, and begins clean.

    `end_processes` is what a simulation replaces. Raises FatalWorkerFault where another worker has the directory or
    something in it cannot be ended, and OSError.
    """
    lock = await ports.run_sync(_lock, work_dir)
    try:
        await end_processes(ports, await ports.run_sync(owner_of, work_dir))
        await ports.run_sync(_remove_folders, work_dir)
        yield
    finally:
        os.close(lock)


def _lock(work_dir: Path) -> int:
    work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(work_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode().strip()
        os.close(descriptor)
        raise FatalWorkerFault(
            f"worker.workDir, {work_dir}, is in use by another worker (process {holder}): give each its own"
        ) from None
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _remove_folders(work_dir: Path) -> None:
    trash, numbers = work_dir / TRASH, itertools.count()
    trash.mkdir(mode=0o700, exist_ok=True)
    for folder in FOLDERS:
        left = list((work_dir / folder).iterdir()) if (work_dir / folder).is_dir() else []
        for path in left:
            throw_away(path, trash, numbers)
        if left:
            log.warning("removes %d of an earlier worker's entries in %s", len(left), work_dir / folder)
