"""Process trees: what is started in one is dead when its block ends, whatever it does.

On Linux a tree is held by what the machine permits: a cgroup, for killing all at once and for limits; a PID namespace,
which no process can leave, for what moves to another cgroup; and where there is no namespace, the fact that orphans are
adopted by the worker, which finds them among its descendants. Elsewhere there is but the process group, which a process
can leave: `Containment.kind` says what it is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from worker import cgroups, proctree
from worker.cgroups import Cgroup, Homes, Limits, Usage
from worker.freezer import own_freezer
from worker.launcher import launch, memory_file
from worker.members import GroupMembers, Members, ToldMembers
from worker.orphans import MARK, Orphans
from worker.pidns import NoNamespace, PidNamespace, namespaces_work, open_pidns
from worker.ports import Ports
from worker.proctree import Identity

log = logging.getLogger("worker")

T = TypeVar("T")

# How long the dead may take to vanish after KILL: a process in uninterruptible sleep cannot be waited for at will.
KILL_LIMIT = 5.0
# After so many seconds KILL is sent again, to whoever is there by then, and who was frozen meanwhile is thawed.
AGAIN = 0.2


def owner_of(work_dir: Path) -> str:
    """What marks the processes of the worker that has this directory, in all of its lives. Raises OSError.

    By the directory itself, not its path, which may be another directory's for a worker in a container.
    """
    found = work_dir.stat()
    return hashlib.sha256(f"{found.st_dev}:{found.st_ino}".encode()).hexdigest()[:12]


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
        self,
        containment: Containment,
        mark: str,
        members: Members,
        cgroup: Cgroup | None = None,
        namespace: PidNamespace | None = None,
    ) -> None:
        self._containment = containment
        self._ports = containment.ports
        self._members = members
        self._cgroup = cgroup
        self._namespace = namespace
        self._usage: Usage | None = None
        self._out_of_memory: str | None = None
        self._ended = False
        self.mark = mark
        self.ending = Ending()

    @property
    def leaders(self) -> Sequence[trio.Process]:
        return self._members.leaders

    async def spawn(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], output: int) -> trio.Process:
        """Start a process in the tree, in a session of its own, with no stdin, stdout and stderr to `output`.

        Raises SpawnFailed. Cancellation is noticed before the start, not in the middle of it.
        """
        await trio.lowlevel.checkpoint()
        env = {**env, MARK: self.mark}
        # A process that was started and is not known would live on.
        with trio.CancelScope(shield=True):
            async with self._containment.still():
                try:
                    process = await self._start(argv, cwd, env, output)
                    self._members.add(process)
                except (OSError, ValueError) as error:
                    raise SpawnFailed(f"{argv[0]}: {getattr(error, 'strerror', None) or error}") from error
        return process

    async def _start(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], output: int) -> trio.Process:
        start = partial(
            trio.lowlevel.open_process, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, start_new_session=True
        )
        if not self._containment.is_told:
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
        if self._cgroup is not None and not self._ended:
            with suppress(OSError):  # Else the tree has removed its group, and the last that is known holds.
                self._usage = self._cgroup.usage()
        return self._usage

    def out_of_memory(self) -> str | None:
        """In words, whether the kernel has killed any of it for want of memory; None where it has not."""
        if self._cgroup is not None and not self._ended:
            with suppress(OSError):
                self._out_of_memory = self._cgroup.out_of_memory()
        return self._out_of_memory

    async def _in_thread(self, look: Callable[[], T]) -> T:
        async with self._containment.still():
            return await self._ports.run_sync(look)

    # The end

    async def end(self, grace: float, hurry: trio.Event) -> None:
        """TERM to all, KILL to those that are left after `grace` seconds or when `hurry` is set; return when nobody is.

        Raises NotContained. Not to be cancelled: the caller shields it; it takes `grace` + 5 s at most, and
        what it waits for a thread.
        """
        # From the last to the first: whatever hinders the request to end, which is a courtesy, the killing follows.
        async with AsyncExitStack() as steps:
            steps.callback(self._close_accounts)
            steps.push_async_callback(self._end_by_force)
            try:
                await self._ask_to_end(grace, hurry)
            except* OSError as group:
                log.warning("processes could not be asked to end: %s", group.exceptions[0])

    async def _ask_to_end(self, grace: float, hurry: trio.Event) -> None:
        asked = await self._in_thread(self._members.ask)
        left = asked.found
        with trio.move_on_after(grace):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when, hurry, nursery.cancel_scope)
                while left:
                    await self._members.wait_dead(left)
                    left = await self._in_thread(self._members.alive)
                nursery.cancel_scope.cancel()
        killed = await self._ports.run_sync(self._members.alive_of, left) if left else left
        self.ending = Ending(len(asked.running), len(asked.strayed), len(killed))

    async def _end_by_force(self) -> None:
        left: set[Identity] | None = None
        trouble = ""
        with trio.CancelScope() as in_time:
            while left is None or left:
                try:
                    left = await self._in_thread(self._members.kill)
                    with trio.move_on_after(AGAIN):
                        await self._members.wait_dead(left)
                except OSError as error:  # such as that there are no more descriptors, which may pass
                    trouble = f"; {error}"
                    await trio.sleep(AGAIN)
                # From the first attempt on: that may have waited for a thread, or for others who look.
                in_time.deadline = min(in_time.deadline, trio.current_time() + KILL_LIMIT)
            for process in self.leaders if self._namespace is None else (*self.leaders, self._namespace.holder):
                await process.wait()
        if in_time.cancelled_caught and (survivors := await self._in_thread(self._members.alive)):
            raise NotContained(f"processes survived KILL: {sorted(each.pid for each in survivors)}{trouble}")

    def _close_accounts(self) -> None:
        self.usage()
        self.out_of_memory()
        self._ended = True


@dataclass(frozen=True)
class Containment:
    """What holds the trees of one worker. `owner` is in their marks, and in the names of their cgroups.

    `orphans` are adopted where there is no namespace; `freezer` is where who is frozen can be thawed.
    """

    ports: Ports
    owner: str
    homes: Homes | None
    namespaces: bool
    is_told: bool
    orphans: Orphans | None = None
    freezer: Path | None = None

    @property
    def kind(self) -> str:
        """What holds a tree, in words for logs."""
        holding = "PID namespace" if self.namespaces else "subreaper" if self.is_told else "process group"
        return holding if self.homes is None else f"cgroup and {holding}"

    def lacking(self, limits: Limits) -> list[str]:
        """The cgroup controllers that `limits` need and that are not to be had."""
        return self.homes.lacking(limits) if self.homes is not None else cgroups.wanted(limits)

    def still(self) -> AbstractAsyncContextManager[None]:
        """Held while a child is started and while somebody looks for the processes of a tree, where this matters."""
        return nullcontext() if self.orphans is None else self.orphans.still

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
                try:
                    namespace = await holds.enter_async_context(open_pidns({MARK: mark}))
                except NoNamespace as error:
                    raise NotContained(f"no PID namespace could be made: {error}") from error
            members: Members = GroupMembers()
            if self.is_told:
                members = told = ToldMembers(mark, cgroup, namespace, self.orphans, self.freezer)
                if self.orphans is not None:
                    holds.enter_context(self.orphans.known(told))
            tree = ProcessTree(self, mark, members, cgroup, namespace)
            try:
                yield tree
            finally:
                with trio.CancelScope(shield=True):
                    await tree.end(grace, trio.Event() if hurry is None else hurry)

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
    freezer = await ports.run_sync(own_freezer)
    if namespaces or not is_told:
        yield Containment(ports, owner, homes, namespaces, is_told, freezer=freezer)
        return
    orphans = Orphans()
    proctree.adopt_orphans(True)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(orphans.reap, ports)
            yield Containment(ports, owner, homes, namespaces, is_told, orphans, freezer)
            nursery.cancel_scope.cancel()
    finally:
        proctree.adopt_orphans(False)


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
