"""Process trees: what is started in one is dead when its block ends.

A tree is held together by a cgroup of its own (v2, also on hybrid machines) where the worker may make one. Elsewhere by
its session, which a process can leave: `containment()` says which it is. Nothing is signalled by a number that may have
been reused: members are looked up, held by a pidfd, and looked up again before the signal is sent.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from worker.ports import Ports

# How long the dead may take to vanish after KILL: a process in uninterruptible sleep cannot be waited for at will.
KILL_LIMIT = 5.0
# Puts itself into the cgroup that is its first argument, then becomes the command: nothing runs in between. A shell is
# soonest there, but shells drop variables whose names they cannot use: for these Python does the same.
_SHELL = ("/bin/sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"')
_PYTHON = (
    sys.executable,
    "-ISc",
    "import os, sys\n"
    "with open(sys.argv[1] + '/cgroup.procs', 'w') as file:\n"
    "    file.write('0')\n"
    "try:\n"
    "    os.execvp(sys.argv[2], sys.argv[2:])\n"
    "except OSError as error:\n"
    "    print(f'{sys.argv[2]}: {error.strerror}', file=sys.stderr)\n"
    "    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)\n",
)
_SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SpawnFailed(Exception):
    """The command could not be started; the text says which one and why."""


class NotContained(Exception):
    """Processes outlived KILL; the text has their ids."""


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds that a tree has computed, in its own code and in the kernel's."""

    user: float
    kernel: float


class Group(ABC):
    """What holds a tree together. `leaders` are the processes that were started in it, each in a session of its own."""

    kind: str

    def __init__(self) -> None:
        self.leaders: list[trio.Process] = []

    @abstractmethod
    def launcher(self, env: Mapping[str, str]) -> Sequence[str]:
        """The argv that the command's own is appended to, so that it is a member before it runs with `env`."""

    @abstractmethod
    def members(self) -> list[int]:
        """The living, as far as the group can tell."""

    def has(self, pid: int) -> bool:
        """Whether the process of that number is a member now."""
        return pid in self.members()

    def kill(self) -> None:
        """KILL to all of them."""
        send(self, signal.SIGKILL)

    def cpu_time(self) -> CpuTime | None:
        """What all members, dead ones too, have computed; None where nobody counted."""
        return None

    def remove(self) -> None:
        """Forget an empty group."""


class CgroupGroup(Group):
    """A cgroup v2 below the worker's own."""

    kind = "cgroup"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        path.mkdir(parents=True)

    def launcher(self, env: Mapping[str, str]) -> Sequence[str]:
        return (*(_SHELL if all(map(_SHELL_NAME.fullmatch, env)) else _PYTHON), str(self._path))

    def members(self) -> list[int]:
        found: list[int] = []
        for path in self._path.glob("**/cgroup.procs"):
            # A task may remove groups that it has made below its own, or make them threaded.
            with suppress(OSError):
                found += [int(line) for line in path.read_text().split()]
        return found

    def has(self, pid: int) -> bool:
        try:
            own = Path(f"/proc/{pid}/cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return any(line.startswith("0::") and f"/{self._path.name}" in line for line in own.splitlines())

    def kill(self) -> None:
        try:
            (self._path / "cgroup.kill").write_text("1")
        except FileNotFoundError:  # before Linux 5.14
            super().kill()

    def cpu_time(self) -> CpuTime | None:
        lines = dict(line.split() for line in (self._path / "cpu.stat").read_text().splitlines())
        return CpuTime(int(lines["user_usec"]) / 1e6, int(lines["system_usec"]) / 1e6)

    def remove(self) -> None:
        for path in sorted(self._path.glob("**/"), reverse=True):
            path.rmdir()


class SessionGroup(Group):
    """The sessions of the processes that were started: all that is left without cgroups, and escapable by setsid."""

    kind = "session"

    def launcher(self, env: Mapping[str, str]) -> Sequence[str]:
        return ()

    def members(self) -> list[int]:
        leaders = {process.pid for process in self.leaders}
        if not Path("/proc/self/stat").exists():
            return [process.pid for process in self.leaders if process.poll() is None]
        return [pid for pid in _processes() if _session_of(pid) in leaders]

    def has(self, pid: int) -> bool:
        return _session_of(pid) in {process.pid for process in self.leaders}

    def kill(self) -> None:
        # Without /proc the members are known by their leaders alone, so their process groups go as a whole. A leader
        # that was not reaped keeps its number; one that was may have left a group behind, whose number is kept too.
        if sys.platform != "linux":
            for process in self.leaders:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
        super().kill()


class ProcessTree:
    """Processes that live and die together."""

    def __init__(self, group: Group) -> None:
        self.group = group

    async def spawn(
        self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: int, output: int
    ) -> trio.Process:
        """Start a process in the tree, in a session of its own, stdout and stderr to the descriptor `output`.

        Raises SpawnFailed. Cancellation is noticed before the start, not in the middle of it.
        """
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):  # A process that was started and is not known would live on.
            try:
                process = await trio.lowlevel.open_process(
                    [*self.group.launcher(env), *argv],
                    stdin=stdin,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env=env,
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                raise SpawnFailed(f"{argv[0]}: {getattr(error, 'strerror', None) or error}") from error
        self.group.leaders.append(process)
        return process

    async def end(self, ports: Ports, grace: float) -> None:
        """TERM to all, KILL to those that are left after `grace` seconds; return when nobody is.

        Raises NotContained. Not to be cancelled: the caller shields it; it takes `grace` + 5 s at most.
        """
        # The request to end is a courtesy: whatever hinders it, the killing follows.
        with trio.move_on_after(grace), suppress(OSError):
            if await ports.run_sync(send, self.group, signal.SIGTERM):
                await self._wait_empty(ports)
        await ports.run_sync(self.group.kill)
        with trio.move_on_after(KILL_LIMIT):
            await self._wait_empty(ports)
        if left := await ports.run_sync(self.group.members):
            raise NotContained(f"processes survived KILL: {left}")
        await ports.run_sync(self.group.remove)

    async def _wait_empty(self, ports: Ports) -> None:
        """Wait for the members to die, also for those that they start meanwhile. Our own children are reaped."""
        async with trio.open_nursery() as nursery:
            for leader in self.group.leaders:
                nursery.start_soon(leader.wait)
        while pids := await ports.run_sync(self.group.members):
            await _wait_dead(pids[0])


async def _wait_dead(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except (ProcessLookupError, AttributeError):  # AttributeError: not Linux; the members are children, and reaped
        return
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


def send(group: Group, signal_number: signal.Signals) -> int:
    """Send a signal to every member; how many there were. One that may not be signalled is left out."""
    pids = group.members()
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            _send_one(group, pid, signal_number)
    return len(pids)


def _send_one(group: Group, pid: int, signal_number: signal.Signals) -> None:
    if sys.platform != "linux":
        os.kill(pid, signal_number)
        return
    descriptor = os.pidfd_open(pid)
    try:
        # Who is still a member after its pidfd was opened is the process that the pidfd means.
        if group.has(pid):
            signal.pidfd_send_signal(descriptor, signal_number)
    finally:
        os.close(descriptor)


def _processes() -> list[int]:
    return [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdecimal()]


def _session_of(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[3])


def cgroup_home() -> Path | None:
    """The worker's own cgroup (v2), where it may make others below; None where it may not."""
    try:
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except (OSError, StopIteration):
        return None
    mount = next((fields[4] for fields in mounts if "cgroup2" in fields[fields.index("-") :]), None)
    if mount is None:
        return None
    home = Path(mount) / own.removeprefix("0::").lstrip("/")
    # The common ancestor's cgroup.procs must be writable too, for a process to move from one to the other.
    return home if os.access(home, os.W_OK) and os.access(home / "cgroup.procs", os.W_OK) else None


def containment() -> str:
    """Which kind of group holds trees together on this machine: `cgroup` or `session`."""
    return SessionGroup.kind if cgroup_home() is None else CgroupGroup.kind


@asynccontextmanager
async def open_tree(ports: Ports, name: str, grace: float) -> AsyncGenerator[ProcessTree, None]:
    """A tree, to be known by `name`. When the block ends, it is ended: TERM, `grace` seconds, KILL.

    Raises NotContained where something survived, which takes a process that the kernel itself cannot end.
    """
    home = cgroup_home()
    group = (
        SessionGroup()
        if home is None
        else await ports.run_sync(CgroupGroup, home / f"tc-worker-{name}-{ports.token(6)}")
    )
    tree = ProcessTree(group)
    try:
        yield tree
    finally:
        with trio.CancelScope(shield=True):
            await tree.end(ports, grace)
