"""Who descends from whom, as /proc tells it (proc(5)), and the adoption of orphans (prctl(2), PR_SET_CHILD_SUBREAPER).

A descendant of a process cannot hide from this: what its parents leave behind is adopted by the nearest subreaper.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import trio

_PR_SET_CHILD_SUBREAPER = 36
_PF_EXITING = 0x4  # from the kernel's include/linux/sched.h
GONE = (FileNotFoundError, ProcessLookupError)
# Seconds of looking for those who are new since the last look. Who forks faster than one can look is not waited for.
_LOOKING = 0.2


class Identity(NamedTuple):
    """A process, by what no other one has: its number, and when it was started, in ticks since the machine's start."""

    pid: int
    started: int


def is_told() -> bool:
    """Whether this system tells the children of a process."""
    return Path(f"/proc/self/task/{os.getpid()}/children").exists()


def adopt_orphans(adopt: bool) -> None:
    """Whether this process becomes the parent of every descendant of its whose parents die."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0) != 0:
        raise OSError("prctl")  # Since Linux 3.4 it cannot fail.


def threads(pid: int) -> list[Path]:
    """What /proc has of each thread of a process; nothing where it is gone."""
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except GONE:
        return []


def children(pid: int) -> list[int]:
    """The children of all threads of a process, dead ones that nobody has waited for included."""
    found: list[int] = []
    for thread in threads(pid):
        with suppress(*GONE):
            found += map(int, (thread / "children").read_text().split())
    return found


def descendants(roots: Iterable[int]) -> set[Identity]:
    """The children of `roots`, theirs, and so on; the roots themselves are not among them."""
    found: set[Identity] = set()
    waiting = list(roots)
    while waiting:
        parent = waiting.pop()
        for pid in children(parent):
            with suppress(*GONE):
                stat = Stat(pid)
                # Else it was adopted meanwhile, or the number is another one's by now.
                if stat.parent == parent and (child := Identity(pid, stat.started)) not in found:
                    found.add(child)
                    waiting.append(pid)
    return found


class Stat:
    """What /proc/PID/stat says. Raises FileNotFoundError or ProcessLookupError where there is no such process."""

    def __init__(self, pid: int) -> None:
        # The name comes first, in parentheses, and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        self.parent = int(fields[1])
        self.session = int(fields[3])
        self.exiting = bool(int(fields[6]) & _PF_EXITING)  # It runs no code of its own any more, in its first thread.
        self.started = int(fields[19])  # in clock ticks since the machine's start
        # A process whose first thread has ended is called a zombie too while other threads go on.
        self.alive = fields[0] not in "ZX" or int(fields[17]) > 1
        # Where its environment is; 0 while it goes from one program to the next, and where it may not be read.
        self.environment = int(fields[47])


def is_alive(pid: int, started: int | None = None) -> bool:
    """Whether that process is there, and the one that was `started` then, and not merely waiting to be reaped."""
    try:
        stat = Stat(pid)
    except GONE:
        return False
    return stat.alive and started in (None, stat.started)


def is_running(process: Identity) -> bool:
    """Whether it is alive, and not about to end either."""
    try:
        stat = Stat(process.pid)
    except GONE:
        return False
    return stat.alive and stat.started == process.started and not stat.exiting


def identify(find: Callable[[], Iterable[int]]) -> set[Identity]:
    """Those whose numbers `find` finds. It is called again afterwards: a number may have gone to another one."""
    found = set()
    for pid in find():
        with suppress(*GONE):
            found.add(Identity(pid, Stat(pid).started))
    again = set(find()) if found else set()
    return {each for each in found if each.pid in again}


def environment_value(pid: int, name: str) -> str | None:
    """The value of a variable in the environment that a process was started with; None where it cannot be read."""
    prefix = f"{name}=".encode()
    # The first thread has none when it has ended, which others may outlive.
    for path in (Path(f"/proc/{pid}"), *threads(pid)):
        with suppress(*GONE, PermissionError):
            if text := (path / "environ").read_bytes():
                entries = text.split(b"\0")
                return next(
                    (os.fsdecode(each.removeprefix(prefix)) for each in entries if each.startswith(prefix)), None
                )
    return None


def settled_value(pid: int, name: str, until: float) -> str | None:
    """As `environment_value`; where the process is about to execute another program this is waited for.

    `until` is by the monotonic clock. Raises FileNotFoundError or ProcessLookupError.
    """
    while True:
        before = Stat(pid)
        if (value := environment_value(pid, name)) is not None or before.exiting or time.monotonic() > until:
            return value
        after = Stat(pid).environment
        if before.environment == after != 0 or not os.access(f"/proc/{pid}/environ", os.R_OK):
            return None
        time.sleep(0.001)


def marked(name: str, prefix: str) -> list[int]:
    """All living processes whose variable `name` begins with `prefix`."""
    pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdecimal()]
    return [pid for pid in pids if (environment_value(pid, name) or "").startswith(prefix) and is_alive(pid)]


def send(processes: Iterable[Identity], number: signal.Signals) -> None:
    """Send a signal to `processes`; those that are gone, or that may not be signalled, are passed over.

    It is looked at again when it is held by a pidfd, one at a time: so no other one that got its number is signalled.
    """
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            descriptor = os.pidfd_open(process.pid)
            try:
                if is_alive(*process):
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)


async def wait_dead(process: Identity) -> None:
    """Wait for a process to end; it need not be a child."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(*process):
            await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


def find_all(look: Callable[[], set[Identity]]) -> set[Identity]:
    """The living that `look` finds, which is called until it finds nobody new, dead or alive.

    For one look can miss what is adopted in the middle of it, but not the parent that has died.
    """
    seen: set[Identity] = set()
    until = time.monotonic() + _LOOKING
    while new := look() - seen:
        seen |= new
        if time.monotonic() > until:
            break
    return {each for each in seen if is_alive(*each)}


def kill_all(look: Callable[[], set[Identity]]) -> set[Identity]:
    """KILL all that `look` finds, as `find_all` does; they are stopped before, so that none starts another meanwhile.

    Who was alive of them. Nobody is left stopped, not by an error of `look` either.
    """
    stopped: set[Identity] = set()
    until = time.monotonic() + _LOOKING
    try:
        while new := look() - stopped:
            stopped |= new
            send(new, signal.SIGSTOP)
            if time.monotonic() > until:
                break
        return {each for each in stopped if is_alive(*each)}
    finally:
        send(stopped, signal.SIGKILL)
