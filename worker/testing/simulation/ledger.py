"""What is open in the simulated machines, and what must hold of it at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from worker.model import RunKey
from worker.testing.simulation import limits

if TYPE_CHECKING:
    from worker.testing.simulation.world import World

PLACE, FOLDER, SANDBOX, PROCESS, HOOKS = "place", "task directory", "sandbox", "process", "plugin"
INSIDE = {PLACE: (HOOKS, FOLDER), HOOKS: (FOLDER,), FOLDER: (SANDBOX,), SANDBOX: (PROCESS,)}


class Ledger:
    """Everything of every run that is open, by worker. Watches capacity, and that nothing executes past its claim."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._open: dict[tuple[str, RunKey, str], float] = {}
        self._dead: set[str] = set()
        self._changed = trio.Event()  # replaced whenever it is set
        self.leftovers: set[tuple[str, RunKey]] = set()  # processes of killed workers, by the worker's name
        self.ended: set[RunKey] = set()  # whose commands came to their end

    def opened(self, who: str, key: RunKey, what: str) -> None:
        """Something of a run begins to be."""
        if who in self._dead:
            return
        self._world.history.note(who, f"{key} + {what}")
        if (who, key, what) in self._open:
            self._world.history.fail("a run has one of each", f"{who} {key} {what}")
        self._open[who, key, what] = self._world.time()
        self._tell()
        taken = len(self.running(who))
        capacity = self._world.plan_for(who).capacity
        if taken > capacity:
            self._world.history.fail("capacity is never exceeded", f"{who} has {taken} runs open of {capacity}")

    def closed(self, who: str, key: RunKey, what: str) -> None:
        """It is no more."""
        if who in self._dead:
            return
        # Told before it is forgotten: whoever watches sees it as it was to its end.
        self._world.history.note(who, f"{key} - {what}")
        self._open.pop((who, key, what), None)
        self._tell()
        for inside in INSIDE.get(what, ()):
            if (who, key, inside) in self._open:
                self._world.history.fail("nothing outlives its run", f"{who} {key}: {inside} after its {what}")
        if what == PLACE:
            self._world.witness.gave_back(who, key)

    def died(self, who: str, *, leaves: bool) -> None:
        """The worker `who` was killed: it has nothing open any more, but its machine may go on with its processes."""
        self._dead.add(who)
        for entry in [entry for entry in self._open if entry[0] == who]:
            del self._open[entry]
            if leaves and entry[2] == PROCESS:
                self.leftovers.add((who.partition(".")[0], entry[1]))
                self._world.history.note(who, f"{entry[1]} leaves a process")
        self._tell()

    def is_dead(self, who: str) -> bool:
        """Whether that worker was killed."""
        return who in self._dead

    def end_leftovers(self, who: str) -> None:
        """What earlier lives of that worker have left is ended."""
        self.leftovers -= self.left_behind(who)

    def left_behind(self, who: str) -> set[tuple[str, RunKey]]:
        """What earlier lives of that worker have left, and what still executes."""
        return {entry for entry in self.leftovers if entry[0] == who.partition(".")[0]}

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait_idle(self) -> None:
        """Return when nothing is open."""
        while self._open:
            await self._changed.wait()

    async def wait_executing(self, key: RunKey) -> None:
        """Return when something of a run executes."""
        while not self.is_executing(key):
            await self._changed.wait()

    def left(self, who: str) -> list[str]:
        """What of `who` is open."""
        return [f"{key} {what}" for owner, key, what in self._open if owner == who]

    def running(self, who: str) -> set[RunKey]:
        """The runs of `who` that have anything open."""
        return {key for owner, key, _ in self._open if owner == who}

    def executing(self, who: str) -> list[str]:
        """The runs of `who` of which something executes."""
        return [str(key) for owner, key, what in self._open if owner == who and what == PROCESS]

    def executes(self, key: RunKey) -> list[str]:
        """What there is of a run that executes or may do so."""
        return [what for _, run, what in self._open if run == key and what in {SANDBOX, PROCESS}]

    def is_executing(self, key: RunKey) -> bool:
        """Whether anything of a run executes."""
        return PROCESS in self.executes(key)

    def check(self) -> None:
        """Nothing executes for longer than it may."""
        now = self._world.time()
        for who, key, what in self._open:
            for promise, until in self._limits(who, key) if what == PROCESS else ():
                if now > until:
                    self._world.history.fail(promise, f"{who} {key} by {now - until:.3f} s")
                    return

    def _limits(self, who: str, key: RunKey) -> list[tuple[str, float]]:
        """Until when a process of a run may execute, by promise."""
        grace = self._world.plan_for(who).kill_grace
        found = []
        if who in self._world.network.dated:  # Nobody else can know that it has passed.
            deadline = max(self._world.deadlines[key.task_id], self._world.network.dated[who])
            found.append(("nothing executes past its deadline", deadline + grace + limits.DEADLINE_SLACK))
        if (seen := self._world.witness.runs.get(key)) is not None:
            found.append(("nothing executes past takenUntil", seen.taken_until + limits.TAKEN_MARGIN))
            if seen.lost_at is not None:
                found.append(("a run that is lost is dead in seconds", seen.lost_at + grace + limits.DEAD_SLACK))
        return found
