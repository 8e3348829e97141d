"""Who descends from whom, as /proc tells it (proc(5)), and the adoption of orphans (prctl(2), PR_SET_CHILD_SUBREAPER).

A descendant of a process cannot hide from this: what its parents leave behind is adopted by the nearest subreaper.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_GONE = (FileNotFoundError, ProcessLookupError)


def is_told() -> bool:
    """Whether this system tells the children of a process."""
    return Path(f"/proc/self/task/{os.getpid()}/children").exists()


def adopt_orphans(adopt: bool) -> None:
    """Whether this process becomes the parent of every descendant of its whose parents die."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0) != 0:
        raise OSError("prctl")  # Since Linux 3.4 it cannot fail.


def children(pid: int) -> list[int]:
    """The children of all threads of a process, dead ones that nobody has waited for included."""
    found: list[int] = []
    with suppress(*_GONE):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(*_GONE):
                found += map(int, (thread / "children").read_text().split())
    return found


def descendants(roots: Iterable[int]) -> set[int]:
    """The children of `roots`, theirs, and so on; the roots themselves are not among them."""
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        new = set(children(waiting.pop())) - found
        found |= new
        waiting += new
    return found


class Stat:
    """What /proc/PID/stat says. Raises FileNotFoundError or ProcessLookupError where there is no such process."""

    def __init__(self, pid: int) -> None:
        # The name comes first, in parentheses, and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        self.session = int(fields[3])
        self.started = int(fields[19])  # in clock ticks since the machine's start
        # A process whose first thread has ended is called a zombie too while other threads go on.
        self.alive = fields[0] not in "ZX" or int(fields[17]) > 1


def is_alive(pid: int, started: int | None = None) -> bool:
    """Whether that process is there, and the one that was `started` then, and not merely waiting to be reaped."""
    try:
        stat = Stat(pid)
    except _GONE:
        return False
    return stat.alive and started in (None, stat.started)


def environment_value(pid: int, name: str) -> str | None:
    """The value of a variable in the environment that a process was started with; None where it cannot be read."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (*_GONE, PermissionError):
        return None
    prefix = f"{name}=".encode()
    return next((os.fsdecode(entry.removeprefix(prefix)) for entry in entries if entry.startswith(prefix)), None)


def marked(name: str, prefix: str) -> list[int]:
    """All living processes whose variable `name` begins with `prefix`."""
    pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdecimal()]
    return [pid for pid in pids if (environment_value(pid, name) or "").startswith(prefix) and is_alive(pid)]


def send(find: Callable[[], set[int]], number: signal.Signals) -> set[int]:
    """Send a signal to all that `find` finds, and return them. Those that may not be signalled are left out.

    A number is looked up again after its process is held by a pidfd: so nothing is signalled by a number that was
    given to another process in between.
    """
    if not (found := find()):
        return set()
    held: dict[int, int] = {}
    try:
        for pid in found:
            with suppress(ProcessLookupError):
                held[pid] = os.pidfd_open(pid)
        there = find() & held.keys()
        for pid in there:
            with suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(held[pid], number)
    finally:
        for descriptor in held.values():
            os.close(descriptor)
    return there


def kill_all(find: Callable[[], set[int]]) -> set[int]:
    """KILL all that `find` finds, and return them; they are stopped before, so that none starts another meanwhile."""
    stopped: set[int] = set()
    while new := send(find, signal.SIGSTOP) - stopped:
        stopped |= new
    send(find, signal.SIGKILL)
    return stopped
