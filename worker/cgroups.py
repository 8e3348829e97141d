"""Control groups: one per process tree, for killing (v2), for limits and for accounts (v2 or v1, or both side by side).

Source: the kernel's documentation, admin-guide/cgroup-v2 and admin-guide/cgroup-v1.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from worker.quantities import approximate_size, format_size

PREFIX = "tc-worker-"
# Where a worker moves itself before it hands out controllers: a v2 group has either processes or groups to limit.
_OWN = "tc-worker"
_PERIOD = 100_000  # microseconds, over which a share of the processors is measured
# Controllers by their names in v2; v1 calls one of them otherwise.
_CONTROLLERS = ("memory", "pids", "cpu", "io")
_LEGACY_NAMES = {"blkio": "io"}
_MOST_GROUPS = 5000  # that a task may make in its own; half a millisecond each in the end


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tree may use at most: bytes, processes (threads count), processors. None is unlimited."""

    memory: int | None = None
    processes: int | None = None
    cpus: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tree has used, its dead included: seconds of computing, bytes. None where nobody counted."""

    user: float
    kernel: float
    peak_memory: int | None = None
    read: int | None = None
    written: int | None = None


@dataclass(frozen=True, slots=True)
class Home:
    """The worker's own group in one hierarchy: the trees' groups are made in it."""

    path: Path
    unified: bool  # v2


@dataclass(frozen=True, slots=True)
class Homes:
    """`unified` holds trees together; `controllers` says where each of memory, pids, cpu and io is to be had."""

    unified: Path
    controllers: Mapping[str, Home]

    def lacking(self, limits: Limits) -> list[str]:
        """The controllers that `limits` need and this machine does not give."""
        return [name for name in wanted(limits) if name not in self.controllers]


def wanted(limits: Limits) -> list[str]:
    """The controllers that `limits` need."""
    by_controller = {"memory": limits.memory, "pids": limits.processes, "cpu": limits.cpus}
    return [name for name, limit in by_controller.items() if limit is not None]


def open_homes(own: Path = Path("/proc/self")) -> Homes | None:
    """Find the groups that the worker may divide, and make v2 controllers available in them; None without v2.

    Blocks. For controllers of v2 the worker moves into a group of its own below the one that it was started in, which
    takes that nobody else is in there, as under systemd with `Delegate=yes`. `own` is what /proc has of the worker.
    """
    homes = own_groups(own)
    if "" not in homes:
        return None
    unified = homes.pop("")
    if unified.name == _OWN:  # A worker of this process has been here before.
        unified = unified.parent
    found = {name: Home(path, unified=False) for name, path in homes.items() if name in _CONTROLLERS}
    for name in _divide(unified) - found.keys():
        found[name] = Home(unified, unified=True)
    return Homes(unified, found)


def own_groups(own: Path = Path("/proc/self")) -> dict[str, Path]:
    """The worker's own groups that it may divide, by controller; `""` is v2's."""
    try:
        groups = [line.split(":", 2) for line in (own / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (own / "mountinfo").read_text().splitlines()]
    except OSError:
        return {}
    homes: dict[str, Path] = {}
    for fields in mounts:
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        for _, names, path in groups:
            if kind != ("cgroup" if names else "cgroup2") or not set(names.split(",")) <= {*options, ""}:
                continue
            # What is mounted may be a part of the hierarchy, as in a container.
            home = Path(fields[4]) / path.removeprefix(fields[3]).lstrip("/")
            # A process may move where it can write to the procs file of the groups' common ancestor too.
            if os.access(home, os.W_OK) and os.access(home / "cgroup.procs", os.W_OK):
                homes |= {_LEGACY_NAMES.get(name, name): home for name in names.split(",")}
    return homes


def hasten_moves(own: Path = Path("/proc/self")) -> str | None:
    """The command that has processes move to groups without waiting; None where nothing keeps them waiting. Blocks.

    The kernel waits some 10 ms where nobody has moved one shortly before, since it favours that processes start and
    end: cgroup2's option `favordynmods`, since Linux 6.0, which a remount takes with all options that are to stay.
    """
    with suppress(OSError):
        for fields in (line.split() for line in (own / "mountinfo").read_text().splitlines()):
            *_, kind, _source, options = fields
            if kind == "cgroup2" and "favordynmods" not in options.split(","):
                return f"mount -o remount,{options},favordynmods {fields[4]}"
    return None


def _divide(home: Path) -> set[str]:
    """Hand out the v2 controllers of `home` to the groups below it; which those are."""
    control = home / "cgroup.subtree_control"
    wanted = set((home / "cgroup.controllers").read_text().split()) & set(_CONTROLLERS)
    with suppress(OSError):
        if wanted - set(control.read_text().split()):
            if (home / "cgroup.type").exists():  # The root of a hierarchy has no type, and may have processes.
                _leave(home)
            control.write_text(" ".join(f"+{name}" for name in wanted))
    return wanted & set(control.read_text().split())


def _leave(home: Path) -> None:
    if (home / "cgroup.procs").read_text().split() == [str(os.getpid())]:
        (home / _OWN).mkdir(exist_ok=True)
        (home / _OWN / "cgroup.procs").write_text("0")


def settings(places: Mapping[str, Home], limits: Limits) -> Iterator[tuple[Path, str]]:
    """Which files take which values, to limit a tree whose groups are `places`, by controller."""
    if limits.memory is not None:
        place, limit = places["memory"], str(limits.memory)
        yield place.path / ("memory.max" if place.unified else "memory.limit_in_bytes"), limit
        # Else swap takes what is beyond the limit. v1 limits the sum of both, v2 each.
        swap = place.path / ("memory.swap.max" if place.unified else "memory.memsw.limit_in_bytes")
        if swap.exists():
            yield swap, "0" if place.unified else limit
    if limits.processes is not None:
        yield places["pids"].path / "pids.max", str(limits.processes)
    if limits.cpus is not None:
        place, quota = places["cpu"], round(limits.cpus * _PERIOD)
        if place.unified:
            yield place.path / "cpu.max", f"{quota} {_PERIOD}"
        else:
            yield place.path / "cpu.cfs_period_us", str(_PERIOD)
            yield place.path / "cpu.cfs_quota_us", str(quota)


class Cgroup:
    """The groups of one tree: one in each hierarchy, all of the same name. All methods block, for microseconds."""

    def __init__(self, homes: Homes, name: str, limits: Limits) -> None:
        """Raises OSError."""
        self._unified = homes.unified / name
        self._places = {
            controller: Home(home.path / name, home.unified) for controller, home in homes.controllers.items()
        }
        self._memory_limit = limits.memory
        self.paths = tuple({self._unified, *(place.path for place in self._places.values())})
        try:
            for path in self.paths:
                path.mkdir()
            # What a task makes below is looked through and removed in the end, which must not take long.
            if (most := self._unified / "cgroup.max.descendants").exists():
                most.write_text(str(_MOST_GROUPS))
            for file, value in settings(self._places, limits):
                file.write_text(value)
        except OSError:
            with suppress(OSError):
                self.remove()
            raise

    def members(self) -> set[int]:
        """Who is in it now, by process id."""
        return members(self._unified)

    def kill(self) -> None:
        """KILL to all members, at once. Does nothing before Linux 5.14, nor where that is not to be done now."""
        with suppress(OSError):
            (self._unified / "cgroup.kill").write_text("1")

    def usage(self) -> Usage:
        """What was used so far. Raises OSError where the tree has removed the group, as root may."""
        times = _table(self._unified / "cpu.stat")
        read, written = self._input_output()
        return Usage(times["user_usec"] / 1e6, times["system_usec"] / 1e6, self._peak(), read, written)

    def _peak(self) -> int | None:
        if (place := self._places.get("memory")) is None:
            return None
        file = place.path / ("memory.peak" if place.unified else "memory.max_usage_in_bytes")
        return int(file.read_text()) if file.exists() else None  # memory.peak: since Linux 5.19

    def _input_output(self) -> tuple[int | None, int | None]:
        if (place := self._places.get("io")) is None:
            return None, None
        if place.unified:
            words = (place.path / "io.stat").read_text().split()
            pairs = [word.split("=") for word in words if "=" in word]
            names = "rbytes", "wbytes"
        else:
            lines = (place.path / "blkio.throttle.io_service_bytes_recursive").read_text().splitlines()
            pairs = [line.split()[1:] for line in lines if line.count(" ") == 2]
            names = "Read", "Write"
        read, written = (sum(int(value) for key, value in pairs if key == name) for name in names)
        return read, written

    def out_of_memory(self) -> str | None:
        """In words, whether the kernel killed for want of memory; None where it did not, or nobody counted.

        Raises OSError where the tree has removed the group.
        """
        if (place := self._places.get("memory")) is None:
            return None
        counts = _table(place.path / ("memory.events" if place.unified else "memory.oom_control"))
        if not (kills := counts.get("oom_kill", 0)):
            return None
        peak = "" if (used := self._peak()) is None else f"; its peak was {approximate_size(used)}"
        limit = (
            "the machine's memory" if self._memory_limit is None else f"its limit of {format_size(self._memory_limit)}"
        )
        processes = "a process" if kills == 1 else f"{kills} processes"
        return f"out of memory: the kernel killed {processes} of the task, which reached {limit}{peak}"

    def remove(self) -> None:
        """Remove the groups, and those that the tree has made below. Raises OSError while anyone is in them."""
        for path in self.paths:
            remove(path)


def trees_of(pid: int) -> set[str]:
    """The marks of the trees in whose groups a process is: none, or one, but where workers run in tasks of workers."""
    with suppress(OSError):
        parts = Path(f"/proc/{pid}/cgroup").read_text().replace("\n", "/").split("/")
        return {part.removeprefix(PREFIX) for part in parts if part.startswith(PREFIX)}
    return set()


def members(group: Path) -> set[int]:
    """Who is in a group or in one below it."""
    found: set[int] = set()
    for path in below(group):
        # A task may remove groups that it has made below its own, or make them threaded.
        with suppress(OSError):
            found |= {int(line) for line in (path / "cgroup.procs").read_text().split()}
    return found


def remove(group: Path) -> None:
    """Remove a group and those below it, as far as they are there. Raises OSError while anyone is in them."""
    try:
        for path in reversed(list(below(group))):
            with suppress(FileNotFoundError):
                path.rmdir()
    except OSError:
        # Those that are too far below to have a path (PATH_MAX), which `find` gets at; or somebody is in there.
        argv = ["find", str(group), "-depth", "-type", "d", "-delete"]
        subprocess.run(argv, capture_output=True, check=False)
        with suppress(FileNotFoundError):
            group.rmdir()


def leftovers(prefix: str) -> list[Path]:
    """Every group of this machine whose name begins so, in whichever hierarchy."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    roots = [Path(fields[4]) for fields in mounts if fields[fields.index("-") + 1] in {"cgroup", "cgroup2"}]
    return [path for root in roots for path in below(root) if path.name.startswith(prefix)]


def below(group: Path) -> Iterator[Path]:
    """A group and all below it, parents first, as far as they have a path and do not vanish meanwhile."""
    # `os.walk` calls itself for each level, and a task may make more levels than Python can follow.
    waiting = [group]
    while waiting:
        path = waiting.pop()
        with suppress(OSError), os.scandir(path) as entries:
            yield path
            waiting += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _table(path: Path) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in path.read_text().splitlines())}
