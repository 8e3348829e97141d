"""Who is in a process tree, and how signals reach all of them: as far as the system tells who is whose child, or not.

All methods block but `wait_dead`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio

from worker import proctree
from worker.cgroups import Cgroup
from worker.freezer import thaw
from worker.orphans import Orphans
from worker.pidns import PidNamespace
from worker.proctree import Identity

_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # the clock of /proc, on Linux


def _ticks() -> int:
    return int(time.clock_gettime(_SINCE_BOOT) * os.sysconf("SC_CLK_TCK"))


@dataclass(frozen=True, slots=True)
class Asked:
    """Who was there when TERM was sent: all that were `found`, those of them that were not about to end by themselves,
    `running`, and those of these that were outside of the tree's cgroup, `strayed`."""

    found: set[Identity]
    running: set[Identity]
    strayed: set[Identity]


class Members(Protocol):
    """The processes of a tree. `leaders` are those that `add` was told of."""

    leaders: list[trio.Process]

    def add(self, leader: trio.Process) -> None:
        """One that was started, and that nobody has waited for yet. Raises OSError, and does not know it then."""

    def alive(self) -> set[Identity]:
        """Those that live, as far as a fraction of a second shows them."""

    def alive_of(self, processes: set[Identity]) -> set[Identity]:
        """Those of `processes` that live yet."""

    def ask(self) -> Asked:
        """TERM to all."""

    def kill(self) -> set[Identity]:
        """KILL to all; who that was. Also to those whom it cannot look for, as far as there is a way."""

    async def wait_dead(self, processes: Iterable[Identity]) -> None:
        """Wait for all these to end."""


@dataclass
class ToldMembers:
    """By cgroup, by namespace, and else by descent, which `orphans` completes."""

    mark: str
    cgroup: Cgroup | None
    namespace: PidNamespace | None
    orphans: Orphans | None
    freezer: Path | None
    begun: int = field(default_factory=_ticks)
    leaders: list[trio.Process] = field(default_factory=list)
    led_by: set[Identity] = field(default_factory=set)  # the leaders again, since their numbers may go to others

    def add(self, leader: trio.Process) -> None:
        self.led_by.add(Identity(leader.pid, proctree.Stat(leader.pid).started))
        self.leaders.append(leader)

    def alive(self) -> set[Identity]:
        return proctree.find_all(self._look)

    def alive_of(self, processes: set[Identity]) -> set[Identity]:
        return {process for process in processes if proctree.is_alive(*process)}

    def _look(self) -> set[Identity]:
        leaders = {leader for leader in self.led_by if proctree.is_alive(*leader)}
        numbers = [leader.pid for leader in leaders]
        if self.namespace is not None:
            return self._grouped() | self.namespace.members(numbers)
        orphans = set() if self.orphans is None else self.orphans.of(self)
        related = proctree.descendants([*numbers, *(orphan.pid for orphan in orphans)])
        return self._grouped() | leaders | orphans | related

    def _grouped(self) -> set[Identity]:
        return set() if self.cgroup is None else proctree.identify(self.cgroup.members)

    def ask(self) -> Asked:
        found = self.alive()
        # In this order: who was started meanwhile is in the group, and who is about to end has left it.
        strayed = found - self._grouped() if self.cgroup is not None else set()
        running = {each for each in found if proctree.is_running(each)}
        proctree.send(found, signal.SIGTERM)
        proctree.send(found, signal.SIGCONT)  # Who is stopped does not act on it.
        return Asked(found, running, strayed & running)

    def kill(self) -> set[Identity]:
        if self.namespace is not None:
            self.namespace.kill()
        if self.cgroup is not None:
            self.cgroup.kill()
        left = self.alive() if self.namespace is not None else proctree.kill_all(self._look)
        thaw(self.freezer, left)
        if self.namespace is not None and not left:
            # The leaders are outside, and one whose command was stopped is stopped itself: nothing else ends it. It
            # comes last, since it is by the leaders that the others are found.
            proctree.send(self.led_by, signal.SIGKILL)
        return left

    async def wait_dead(self, processes: Iterable[Identity]) -> None:
        for process in processes:
            await proctree.wait_dead(process)


@dataclass
class GroupMembers:
    """By process group alone: the leaders, and who has stayed in their groups."""

    leaders: list[trio.Process] = field(default_factory=list)

    def add(self, leader: trio.Process) -> None:
        self.leaders.append(leader)

    def alive(self) -> set[Identity]:
        return {Identity(leader.pid, 0) for leader in self.leaders if leader.poll() is None}

    def alive_of(self, processes: set[Identity]) -> set[Identity]:
        return processes & self.alive()

    def ask(self) -> Asked:
        found = self.alive()
        self._send(signal.SIGTERM)
        return Asked(found, found, set())

    def kill(self) -> set[Identity]:
        found = self.alive()
        self._send(signal.SIGKILL)
        return found

    def _send(self, number: signal.Signals) -> None:
        # A leader that was not reaped keeps its number; one that was may have left a group behind, whose number is
        # kept too.
        for leader in self.leaders:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(leader.pid, number)

    async def wait_dead(self, processes: Iterable[Identity]) -> None:
        for leader in self.leaders:
            await leader.wait()
