"""Finds what a block of a test leaves behind: processes, descriptors, threads, Trio tasks, files, cgroups, mounts.

    async def test_mine(tmp_path: Path) -> None:
        async with no_leaks(tmp_path):
            ...

or, around whole tests,

    @pytest.fixture
    async def nothing_left(tmp_path: Path) -> AsyncIterator[Watch]:
        async with no_leaks(tmp_path) as watch:
            yield watch

Everything is compared by identity with what there was before the block. So what is to be cleaned up inside of the block
must be opened inside of it too: a client that was opened before keeps its connections, and these count as left.
Processes, descriptors, cgroups and mounts are known on Linux alone.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import AsyncGenerator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio
from trio.testing import wait_all_tasks_blocked

from worker import cgroups

# Trio keeps threads for ten seconds after their last use. A thread at work has the name of what it does; one that waits
# for work has its own name back, and that before its last result is handed over (trio/_core/_thread_cache.py).
_IDLE_TRIO_THREAD = re.compile(r"Trio thread \d+")

_PROC = Path("/proc")


class Leaked(AssertionError):
    """The text has a line for everything that was left."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine; number and start time together are never used again."""

    pid: int
    started: int
    parent: int
    zombie: bool

    @property
    def command(self) -> str:
        """Its argv, as one line."""
        return _text(_PROC / str(self.pid) / "cmdline").replace("\0", " ").strip()

    @property
    def lives(self) -> bool:
        """Whether it is there and no zombie."""
        return _read_process(self.pid) == self

    def mentions(self, marks: Iterable[str]) -> bool:
        """Whether its arguments, environment, directory or cgroup have one of `marks` in them."""
        own = _PROC / str(self.pid)
        told = [_text(own / name) for name in ("cmdline", "environ", "cgroup")]
        with suppress(OSError):
            told.append(str((own / "cwd").readlink()))
        return any(mark in text for mark in marks for text in told)


@dataclass
class Watch:
    """What belongs to the block, beside what descends from this process.

    `folders` are looked into, and `marks` are texts by which processes, cgroups and mounts are known; add to both in
    the block, as with a task's id. As long as there are no marks, every new cgroup of a worker and every new mount
    counts: name marks where other workers run on the machine.
    """

    folders: list[Path]
    marks: list[str] = field(default_factory=list)
    kept: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """By which a process is known."""
        return [*self.marks, *map(str, self.folders)]


Found = Mapping[Hashable, str]  # what there is, by its identity, and how it is told


def processes() -> list[Process]:
    """All that there are now."""
    found = [_read_process(int(name)) for name in _names(_PROC) if name.isdecimal()]
    return [each for each in found if each is not None]


def _read_process(pid: int) -> Process | None:
    fields = _text(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    return Process(pid, int(fields[19]), int(fields[1]), zombie=fields[0] in "ZX") if fields else None


def left_processes(watch: Watch, before: Iterable[Process]) -> list[Process]:
    """Those that came since `before` and descend from this one, or are known by a mark or a folder."""
    there = processes()
    parents = {each.pid: each.parent for each in there}
    known = {(each.pid, each.started) for each in before}
    own = os.getpid()

    def descends(process: Process) -> bool:
        pid = process.parent
        while pid in parents and pid != own:
            pid = parents[pid]
        return pid == own

    new = [each for each in there if (each.pid, each.started) not in known and each.pid != own]
    # A zombie is its parent's to reap: ours only if that is us.
    return [
        each for each in new if (each.parent == own if each.zombie else descends(each) or each.mentions(watch.names))
    ]


def _processes(watch: Watch, before: Iterable[Process]) -> Iterator[str]:
    for each in left_processes(watch, before):
        what = "was not reaped" if each.zombie else each.command
        yield f"process {each.pid}: {what} (parent {each.parent})"


def _descriptors() -> Found:
    found: dict[Hashable, str] = {}
    for name in _names(_PROC / "self" / "fd"):
        with suppress(OSError):  # the one by which they are listed
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - Path would lose what is no path
            found[int(name), target] = f"descriptor {name}: {target}{_addresses(int(name), target)}"
    return found


def _addresses(descriptor: int, target: str) -> str:
    if not target.startswith("socket:"):
        return ""
    with suppress(OSError), closing(socket.socket(fileno=os.dup(descriptor))) as copy:
        return f", {copy.family.name}, bound to {copy.getsockname()!r}"
    return ""


def _threads() -> Found:
    return {
        thread: f"thread {thread.name}"
        for thread in threading.enumerate()
        if not _IDLE_TRIO_THREAD.fullmatch(thread.name)
    }


def _tasks() -> Found:
    found: dict[Hashable, str] = {}
    root = trio.lowlevel.current_root_task()
    waiting = [root] if root else []
    while waiting:
        task = waiting.pop()
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                found[child] = f"Trio task {child.name}, in a nursery of {task.name}"
                waiting.append(child)
    return found


def _files(watch: Watch) -> Found:
    """Files anywhere in the folders, and folders except the first level of them, which may well be made once."""
    found: dict[Hashable, str] = {}
    for top in watch.folders:
        for folder, below, files in os.walk(top):
            inside = Path(folder) != top
            for kind, names in (("file", files), ("folder", below if inside else [])):
                for path in (Path(folder, name) for name in names):
                    inner = path.relative_to(top)
                    if watch.kept.isdisjoint(map(str, (inner, *inner.parents))):
                        found[path] = f"{kind} {path}"
    return found


def _cgroups() -> dict[Hashable, str]:
    groups = {path for top in _own_cgroups() for path in cgroups.below(top) if path.name.startswith(cgroups.PREFIX)}
    return {path: f"cgroup {path}" for path in groups}


def _own_cgroups() -> set[Path]:
    """Where this process is, in every hierarchy that is mounted."""
    own = {
        controllers: path.lstrip("/")
        for _, controllers, path in (line.split(":", 2) for line in _text(_PROC / "self" / "cgroup").splitlines())
    }
    found = set()
    for fields in _mount_lines():
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        if kind not in {"cgroup", "cgroup2"}:
            continue
        named = [name for name in own if name and set(name.split(",")) <= set(options.split(","))]
        inside = own.get("" if kind == "cgroup2" else named[0] if named else "", "")
        place = Path(fields[4])
        found.add(place / inside if (place / inside).is_dir() else place)
    return found


def _mounts() -> dict[Hashable, str]:
    # Number and place together: a place may be mounted upon twice.
    return {(fields[0], fields[4]): f"mount {fields[4]} ({fields[fields.index('-') + 1]})" for fields in _mount_lines()}


def _mount_lines() -> list[list[str]]:
    return [line.split(" ") for line in _text(_PROC / "self" / "mountinfo").splitlines()]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is at one moment."""

    processes: Sequence[Process]
    descriptors: Found
    threads: Found
    tasks: Found
    files: Found
    cgroups: Found
    mounts: Found

    @classmethod
    def take(cls, watch: Watch) -> Snapshot:
        """Look, without letting anything else of this Trio run."""
        return cls(processes(), _descriptors(), _threads(), _tasks(), _files(watch), _cgroups(), _mounts())


def leaked(watch: Watch, before: Snapshot) -> list[str]:
    """A line for everything that is there now, belongs to the block, and was not there `before`."""
    now = Snapshot.take(watch)
    lines = list(_processes(watch, before.processes))
    for old, new in (
        (before.descriptors, now.descriptors),
        (before.threads, now.threads),
        (before.tasks, now.tasks),
        (before.files, now.files),
    ):
        lines += [text for what, text in new.items() if what not in old]
    for old, new in ((before.cgroups, now.cgroups), (before.mounts, now.mounts)):
        texts = [text for what, text in new.items() if what not in old]
        lines += [text for text in texts if not watch.marks or any(name in text for name in watch.names)]
    return lines


@asynccontextmanager
async def no_leaks(*folders: Path, marks: Iterable[str] = (), kept: Iterable[str] = ()) -> AsyncGenerator[Watch, None]:
    """Raise `Leaked` at the end of the block unless everything is gone that was begun in it. See `Watch`.

    `kept` are paths, relative to a folder, that may stay with all that is in them. Where the block itself raises, what
    is left is noted on that exception instead.
    """
    watch = Watch(list(folders), list(marks), frozenset(kept))
    before = Snapshot.take(watch)
    try:
        yield watch
    except BaseException as error:
        for line in leaked(watch, before):
            error.add_note(f"left: {line}")
        raise
    await wait_all_tasks_blocked()  # What was told to end has ended then, or does not end by itself.
    if lines := leaked(watch, before):
        raise Leaked("\n".join(["something was left:", *lines]))


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are wanted
    except OSError:
        return []


def _text(path: Path) -> str:
    """What there is to read; nothing where the process is gone, or is not ours to look at."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
