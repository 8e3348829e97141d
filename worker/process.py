"""Process trees: what is started in one is dead when its block ends, whatever it does.

On Linux a tree is held by what the machine permits: a cgroup, for killing all at once and for limits; a PID namespace,
which no process can leave, for what moves to another cgroup; and where there is no namespace, the fact that orphans are
adopted by the worker, which finds them among its descendants. Elsewhere there is but the process group, which a process
can leave: `Containment.kind` says what it is.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from worker import cgroups, proctree
from worker.cgroups import Cgroup, Homes, Limits, Usage
from worker.launcher import launch, memory_file
from worker.pidns import NoNamespace, PidNamespace, namespaces_work, open_pidns
from worker.ports import Ports

# How long the dead may take to vanish after KILL: a process in uninterruptible sleep cannot be waited for at will.
KILL_LIMIT = 5.0
# In the environment of every process of a tree, so that it can be told whose it is.
MARK = "TC_WORKER_TREE"
_LOOKS = 100
_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # the clock of /proc, on Linux


def owner_of(work_dir: Path) -> str:
    """What marks the processes of the worker that has this directory, in all of its lives."""
    return hashlib.sha256(os.fsencode(work_dir.resolve())).hexdigest()[:12]


class SpawnFailed(Exception):
    """The command could not be started; the text says which one and why."""


class NotContained(Exception):
    """A tree could not be held, or processes of it outlived KILL; the text says why, or has their ids."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a tree came to its end: processes that were `left`, those of them that were `strayed` from the cgroup, and
    those that had to be `killed` since they were there after the grace."""

    left: int = 0
    strayed: int = 0
    killed: int = 0


class ProcessTree:
    """Processes that live and die together. `leaders` are those that were started by `spawn` and the tree's own.

    Once it has ended, `ending`, `usage` and `out_of_memory` are what they were in the end.
    """

    def __init__(
        self, containment: Containment, mark: str, cgroup: Cgroup | None, namespace: PidNamespace | None
    ) -> None:
        self._containment = containment
        self._ports = containment.ports
        self._cgroup = cgroup
        self._namespace = namespace
        self._begun = int(time.clock_gettime(_SINCE_BOOT) * os.sysconf("SC_CLK_TCK"))
        self._last_usage: Usage | None = None
        self._last_out_of_memory: str | None = None
        self._ended = False
        self.mark = mark
        self.leaders: list[trio.Process] = []
        self._started: dict[int, int] = {}  # when each leader was, since its number may be given to another one
        self.ending = Ending()

    async def spawn(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], output: int) -> trio.Process:
        """Start a process in the tree, in a session of its own, with no stdin, stdout and stderr to `output`.

        Raises SpawnFailed. Cancellation is noticed before the start, not in the middle of it.
        """
        await trio.lowlevel.checkpoint()
        env = {**env, MARK: self.mark}
        # A process that was started and is not known would live on.
        with trio.CancelScope(shield=True):
            async with self._containment.spawning:
                try:
                    process = await self._start(argv, cwd, env, output)
                except (OSError, ValueError) as error:
                    raise SpawnFailed(f"{argv[0]}: {getattr(error, 'strerror', None) or error}") from error
                self.leaders.append(process)
                if self._containment.is_told:
                    # It was not waited for yet, so the number is its own.
                    self._started[process.pid] = proctree.Stat(process.pid).started
        return process

    async def _start(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], output: int) -> trio.Process:
        start = partial(
            trio.lowlevel.open_process, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, start_new_session=True
        )
        if self._cgroup is None and self._namespace is None:
            return await start(argv, stdin=subprocess.DEVNULL, env=env)
        groups = () if self._cgroup is None else self._cgroup.paths
        launcher, stdin = launch(cwd, groups, env)
        entry, session = ((), ()) if self._namespace is None else (self._namespace.entry(), self._namespace.session())
        argv = [*entry, *launcher, *session, *argv]
        descriptor = memory_file(stdin)
        try:
            return await start(argv, stdin=descriptor, env={MARK: self.mark})
        finally:
            os.close(descriptor)

    def usage(self) -> Usage | None:
        """What the tree has used so far, its dead included; None where nobody counts."""
        return self._last_usage if self._ended or self._cgroup is None else self._cgroup.usage()

    def out_of_memory(self) -> str | None:
        """In words, whether the kernel has killed any of it for want of memory; None where it has not."""
        return self._last_out_of_memory if self._ended or self._cgroup is None else self._cgroup.out_of_memory()

    def members(self) -> set[int]:
        """Who is alive in it."""
        if not self._containment.is_told:
            return self._related()
        # One look can miss what is adopted in the middle of it, but not the parent that died: so look again until
        # there is nobody new, dead or alive. Whoever forks faster than that is not waited for; KILL is quicker.
        seen: set[int] = set()
        for _ in range(_LOOKS):
            found = self._cgroup_members() | self._related()
            if found <= seen:
                break
            seen |= found
        return {pid for pid in seen if proctree.is_alive(pid)}

    def _cgroup_members(self) -> set[int]:
        own = set() if self._namespace is None else {self._namespace.init}
        return set() if self._cgroup is None else self._cgroup.members() - own

    def _related(self) -> set[int]:
        if not self._containment.is_told:
            return {process.pid for process in self.leaders if process.poll() is None}
        leaders = {pid for pid, started in self._started.items() if proctree.is_alive(pid, started)}
        if self._namespace is not None:
            return self._namespace.members(leaders)
        roots = {*leaders, *self._containment.orphans_of(self)}
        return roots | proctree.descendants(roots)

    def may_own(self, orphan: int) -> bool:
        """Whether a process without a mark may be of this tree."""
        return proctree.Stat(orphan).started >= self._begun

    # The end

    async def end(self, grace: float, hurry: trio.Event) -> None:
        """TERM to all, KILL to those that are left after `grace` seconds or when `hurry` is set; return when nobody is.

        Raises NotContained. Not to be cancelled: the caller shields it; it takes `grace` + 5 s at most.
        """
        # The request to end is a courtesy: whatever hinders it, the killing follows.
        with suppress(OSError):
            await self._ask_to_end(grace, hurry)
        with trio.move_on_after(KILL_LIMIT):
            while killed := await self._ports.run_sync(self._kill):
                for pid in killed:
                    await wait_dead(pid)
            for leader in self.leaders:
                await leader.wait()
        left = await self._ports.run_sync(self._take_stock)
        if left:
            raise NotContained(f"processes survived KILL: {sorted(left)}")

    async def _ask_to_end(self, grace: float, hurry: trio.Event) -> None:
        left = await self._ports.run_sync(self._send_term)
        if not left:
            return
        strayed = 0 if self._cgroup is None else len(left - self._cgroup_members())
        self.ending = Ending(len(left), strayed)
        with trio.move_on_after(grace):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when, hurry, nursery.cancel_scope)
                while pids := await self._ports.run_sync(self.members):
                    await wait_dead(pids.pop())
                nursery.cancel_scope.cancel()

    def _send_term(self) -> set[int]:
        """TERM to all; who that was."""
        if self._containment.is_told:
            return proctree.send(self.members, signal.SIGTERM)
        return self._send_to_groups(signal.SIGTERM)

    def _send_to_groups(self, number: signal.Signals) -> set[int]:
        # A leader that was not reaped keeps its number; one that was may have left a group behind, whose number is
        # kept too.
        for leader in self.leaders:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(leader.pid, number)
        return self.members()

    def _kill(self) -> set[int]:
        """KILL to all; who that was."""
        left = self.members()
        if left and not self.ending.killed:
            self.ending = Ending(max(len(left), self.ending.left), self.ending.strayed, len(left))
        if self._namespace is not None:
            self._namespace.kill()
        if self._cgroup is not None:
            self._cgroup.kill()
        if not self._containment.is_told:
            self._send_to_groups(signal.SIGKILL)
        elif self._namespace is None:
            proctree.kill_all(self.members)
        return left

    def _take_stock(self) -> set[int]:
        if self._cgroup is not None:
            self._last_usage, self._last_out_of_memory = self._cgroup.usage(), self._cgroup.out_of_memory()
        self._ended = True
        return self.members()


@dataclass
class Containment:
    """What holds the trees of one worker. `owner` is in their marks, and in the names of their cgroups."""

    ports: Ports
    owner: str
    homes: Homes | None
    namespaces: bool
    is_told: bool
    # Held while a child is started: until its tree knows it, it looks like an orphan.
    spawning: trio.Lock = field(default_factory=trio.Lock)
    _trees: list[ProcessTree] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """What holds a tree, in words for logs."""
        holding = "PID namespace" if self.namespaces else "subreaper" if self.is_told else "process group"
        return holding if self.homes is None else f"cgroup and {holding}"

    def lacking(self, limits: Limits) -> list[str]:
        """The cgroup controllers that `limits` need and that are not to be had."""
        return self.homes.lacking(limits) if self.homes is not None else cgroups.wanted(limits)

    @asynccontextmanager
    async def open_tree(
        self, name: str, grace: float, *, limits: Limits | None = None, hurry: trio.Event | None = None
    ) -> AsyncGenerator[ProcessTree, None]:
        """A tree, to be known by `name`. When the block ends, it is ended: TERM, `grace` seconds, KILL.

        `hurry`, once set, cuts the grace short. Raises NotContained, also where something survived, which takes a
        process that the kernel itself cannot end. Cancellation does not cut the end off: `grace` + 5 s at most.
        """
        mark = f"{self.owner}-{name}-{self.ports.token(6)}"
        async with AsyncExitStack() as holds:
            cgroup = namespace = None
            if self.homes is not None:
                cgroup = await holds.enter_async_context(self._open_cgroup(self.homes, mark, limits or Limits()))
            if self.namespaces:
                groups = () if cgroup is None else cgroup.paths
                try:
                    namespace = await holds.enter_async_context(open_pidns(groups, {MARK: mark}))
                except NoNamespace as error:
                    raise NotContained(f"no PID namespace could be made: {error}") from error
            tree = ProcessTree(self, mark, cgroup, namespace)
            self._trees.append(tree)
            try:
                yield tree
            finally:
                with trio.CancelScope(shield=True):
                    await tree.end(grace, trio.Event() if hurry is None else hurry)
                self._trees.remove(tree)

    @asynccontextmanager
    async def _open_cgroup(self, homes: Homes, mark: str, limits: Limits) -> AsyncGenerator[Cgroup, None]:
        try:
            cgroup = await self.ports.run_sync(Cgroup, homes, cgroups.PREFIX + mark, limits)
        except OSError as error:
            raise NotContained(f"no cgroup could be made: {error}") from error
        try:
            yield cgroup
        finally:
            with trio.CancelScope(shield=True):
                try:
                    await self.ports.run_sync(cgroup.remove)
                except OSError as error:
                    raise NotContained(f"its cgroup could not be removed: {error}") from error

    # Orphans, where the worker adopts them

    def orphans_of(self, tree: ProcessTree) -> list[int]:
        """The worker's adopted children that belong to `tree`.

        By the mark in their environment. One that has removed its mark may be anybody's: it is of any tree that it may
        have been started in, so that it dies with the first of them.
        """
        marks = {other.mark for other in self._trees}
        found = []
        for pid in self._orphans():
            with suppress(FileNotFoundError, ProcessLookupError):
                mark = proctree.environment_value(pid, MARK)
                if mark == tree.mark or (mark not in marks and tree.may_own(pid)):
                    found.append(pid)
        return found

    def _orphans(self) -> list[int]:
        # Tree members are in sessions of their own, and cannot enter the worker's: its helpers are.
        own = os.getsid(0)
        leaders = {leader.pid for tree in self._trees for leader in tree.leaders}
        found = []
        for pid in proctree.children(os.getpid()):
            with suppress(FileNotFoundError, ProcessLookupError):
                if pid not in leaders and proctree.Stat(pid).session != own:
                    found.append(pid)
        return found

    async def reap_orphans(self) -> None:
        """Wait for adopted children when they die, until cancelled."""
        with trio.open_signal_receiver(signal.SIGCHLD) as signals:
            async for _ in signals:
                async with self.spawning:
                    await self.ports.run_sync(self._reap)

    def _reap(self) -> None:
        for pid in self._orphans():
            if not proctree.is_alive(pid):
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


@asynccontextmanager
async def open_containment(
    ports: Ports, owner: str, *, use_cgroups: bool = True, use_namespaces: bool = True
) -> AsyncGenerator[Containment, None]:
    """The best containment that this machine permits, for as long as the block lasts; it is tried, not guessed.

    Less where the caller wants less. Without namespaces, this process adopts orphans while the block lasts.
    """
    is_told = await ports.run_sync(proctree.is_told)
    homes = await ports.run_sync(cgroups.open_homes) if use_cgroups else None
    namespaces = use_namespaces and is_told and await namespaces_work()
    containment = Containment(ports, owner, homes, namespaces, is_told)
    if namespaces or not is_told:
        yield containment
        return
    proctree.adopt_orphans(True)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(containment.reap_orphans)
            yield containment
            nursery.cancel_scope.cancel()
    finally:
        proctree.adopt_orphans(False)


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def wait_dead(pid: int) -> None:
    """Wait for a process to end; it need not be a child."""
    try:
        descriptor = os.pidfd_open(pid)
    except (ProcessLookupError, AttributeError):  # AttributeError: not Linux; the members are children, and reaped
        return
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
