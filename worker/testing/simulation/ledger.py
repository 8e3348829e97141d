"""What is open in the simulated machines, and what must hold of it at any time."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import trio

from worker.model import RunKey
from worker.testing.simulation.limits import TAKEN_MARGIN

if TYPE_CHECKING:
    from worker.testing.simulation.world import World

FOLDER, SANDBOX, PROCESS, HOOKS = "task directory", "sandbox", "process", "plugin"


class Ledger:
    """Everything of every run that is open, by worker. Watches capacity, and that nothing executes past its claim."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._open: dict[tuple[str, RunKey, str], float] = {}
        self._dead: set[str] = set()
        self._changed = trio.Event()  # replaced whenever it is set
        self.executed: dict[RunKey, float] = {}  # when something of a run executed last

    def opened(self, who: str, key: RunKey, what: str) -> None:
        """Something of a run begins to be."""
        if who in self._dead:
            return
        self._world.history.note(who, f"{key} + {what}")
        if (who, key, what) in self._open:
            self._world.history.fail("a run has one of each", f"{who} {key} {what}")
        self._open[who, key, what] = self._world.time()
        self._tell()
        taken = len({run for owner, run, kind in self._open if owner == who and kind in {FOLDER, SANDBOX}})
        capacity = self._world.capacity_of(who)
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
        inside = {FOLDER: SANDBOX, SANDBOX: PROCESS}.get(what, "")
        if (who, key, inside) in self._open:
            self._world.history.fail("nothing outlives its run", f"{who} {key}: {inside} after its {what}")
        if what == PROCESS:
            self.executed[key] = self._world.time()

    def died(self, who: str) -> None:
        """The machine of `who` is no more, and all that it had open."""
        self._dead.add(who)
        for entry in [entry for entry in self._open if entry[0] == who]:
            del self._open[entry]
        self._tell()

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

    def is_executing(self, key: RunKey) -> bool:
        """Whether anything of a run executes."""
        return any(run == key and what == PROCESS for _, run, what in self._open)

    def check(self) -> None:
        """Nothing executes past the time until which the queue has given it to its worker."""
        now = self._world.queue_ports.now()
        for who, key, what in self._open:
            if what != PROCESS:
                continue
            until = self._world.witness.taken_until(key)
            if until is not None and now > until + TAKEN_MARGIN:
                late = (now - until) / timedelta(seconds=1)
                self._world.history.fail("nothing executes past takenUntil", f"{who} {key} by {late:.3f} s")
                return
